//! Every change that the writer knows, one struct each.

use async_trait::async_trait;
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{COLUMNS, History, writer::Change};
use crate::{
    clock::Timestamp,
    name::Name,
    secret::Fingerprint,
    store::{Lease, RunRecord},
};

pub(super) struct Checkout {
    pub name: Name,
    pub lease: Lease,
}

pub(super) enum CheckedOut {
    Granted {
        before: SqliteRow,
        buried: bool,
    },
    /// Until when, in milliseconds.
    Busy(i64),
}

#[async_trait]
impl Change for Checkout {
    type Output = CheckedOut;

    async fn apply(&self, connection: &mut SqliteConnection) -> Result<CheckedOut, sqlx::Error> {
        let before = match self.look(connection).await? {
            Some(before) => before,
            None => {
                create(&self.name, connection).await?;
                self.look(connection)
                    .await?
                    .ok_or(sqlx::Error::RowNotFound)?
            }
        };
        let now = self.lease.taken_at.timestamp_millis();
        let owner: Option<String> = before.try_get("lease_owner")?;
        let until: Option<i64> = before.try_get("lease_until")?;
        if let (Some(owner), Some(until)) = (owner, until)
            && owner != self.lease.owner
            && until > now
        {
            return Ok(CheckedOut::Busy(until));
        }
        let buried: bool = before.try_get("buried")?;
        // A buried token is not going to be sent, so there is nothing to intend.
        sqlx::query(
            "UPDATE credentials SET lease_owner = ?1, lease_until = ?2,
                 intent = CASE WHEN ?3 THEN intent ELSE fingerprint END,
                 intent_at = CASE WHEN ?3 THEN intent_at ELSE ?4 END
             WHERE name = ?5",
        )
        .bind(&self.lease.owner)
        .bind(now + self.lease.lasts.as_millis() as i64)
        .bind(buried)
        .bind(now)
        .bind(self.name.as_str())
        .execute(connection)
        .await?;
        Ok(CheckedOut::Granted { before, buried })
    }
}

impl Checkout {
    async fn look(
        &self,
        connection: &mut SqliteConnection,
    ) -> Result<Option<SqliteRow>, sqlx::Error> {
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {COLUMNS}, lease_owner, lease_until,
                    EXISTS (SELECT 1 FROM buried WHERE buried.name = credentials.name
                            AND buried.fingerprint = credentials.fingerprint) AS buried
             FROM credentials WHERE name = ?"
        ));
        sqlx::query(sql)
            .bind(self.name.as_str())
            .fetch_optional(connection)
            .await
    }
}

/// A row for a credential that has none yet.
async fn create(name: &Name, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO credentials (name) VALUES (?) ON CONFLICT DO NOTHING")
        .bind(name.as_str())
        .execute(connection)
        .await?;
    Ok(())
}

pub(super) struct Save {
    pub name: Name,
    pub expected: u64,
    pub key_id: String,
    pub sealed: Vec<u8>,
    pub details: String,
    pub fingerprint: Option<Fingerprint>,
}

#[async_trait]
impl Change for Save {
    /// Whether the version was the expected one.
    type Output = bool;

    async fn apply(&self, connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
        // The row exists but for an import into an empty store.
        if self.expected == 0 {
            create(&self.name, connection).await?;
        }
        let done = sqlx::query(
            "UPDATE credentials SET version = version + 1, key_id = ?, sealed = ?, details = ?,
                 fingerprint = ?, standing = '{}', intent = NULL, intent_at = NULL,
                 lease_owner = NULL, lease_until = NULL
             WHERE name = ? AND version = ?",
        )
        .bind(&self.key_id)
        .bind(&self.sealed)
        .bind(&self.details)
        .bind(self.fingerprint.map(|fingerprint| fingerprint.0.to_vec()))
        .bind(self.name.as_str())
        .bind(self.expected as i64)
        .execute(connection)
        .await?;
        Ok(done.rows_affected() == 1)
    }
}

pub(super) struct Settle {
    pub name: Name,
    pub owner: String,
    pub standing: String,
    pub doubtful: bool,
    pub bury: Option<Fingerprint>,
}

#[async_trait]
impl Change for Settle {
    type Output = ();

    async fn apply(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        // Only the holder of the lease speaks: one that overslept it says nothing.
        if let Some(fingerprint) = self.bury {
            sqlx::query(
                "INSERT INTO buried (name, fingerprint)
                 SELECT name, ?1 FROM credentials WHERE name = ?2 AND lease_owner = ?3
                 ON CONFLICT DO NOTHING",
            )
            .bind(fingerprint.0.to_vec())
            .bind(self.name.as_str())
            .bind(&self.owner)
            .execute(&mut *connection)
            .await?;
        }
        sqlx::query(
            "UPDATE credentials SET standing = ?1, lease_owner = NULL, lease_until = NULL,
                 intent = CASE WHEN ?2 THEN intent END, intent_at = CASE WHEN ?2 THEN intent_at END
             WHERE name = ?3 AND lease_owner = ?4",
        )
        .bind(&self.standing)
        .bind(self.doubtful)
        .bind(self.name.as_str())
        .bind(&self.owner)
        .execute(connection)
        .await?;
        Ok(())
    }
}

pub(super) struct AddRun {
    pub run: RunRecord,
    pub history: History,
}

#[async_trait]
impl Change for AddRun {
    type Output = ();

    async fn apply(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let run = &self.run;
        sqlx::query(
            r#"INSERT INTO runs (job, "trigger", outcome, started_at, duration_ms, summary, trace_id)
               VALUES (?, ?, ?, ?, ?, ?, ?)"#,
        )
        .bind(run.job.as_str())
        .bind(&run.trigger)
        .bind(&run.outcome)
        .bind(run.started_at.timestamp_millis())
        .bind(run.duration.as_millis() as i64)
        .bind(&run.summary)
        .bind(&run.trace_id)
        .execute(&mut *connection)
        .await?;
        for (succeeded, kept) in [(true, self.history.runs), (false, self.history.failed_runs)] {
            sqlx::query(
                "DELETE FROM runs WHERE id IN (
                     SELECT id FROM runs WHERE job = ? AND (outcome = 'success') = ?
                     ORDER BY id DESC LIMIT -1 OFFSET ?)",
            )
            .bind(run.job.as_str())
            .bind(succeeded)
            .bind(kept)
            .execute(&mut *connection)
            .await?;
        }
        Ok(())
    }
}

pub(super) struct SetFiring {
    pub job: Name,
    pub at: Timestamp,
}

#[async_trait]
impl Change for SetFiring {
    type Output = ();

    async fn apply(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        sqlx::query(
            "INSERT INTO firings (job, at) VALUES (?, ?)
             ON CONFLICT (job) DO UPDATE SET at = excluded.at",
        )
        .bind(self.job.as_str())
        .bind(self.at.timestamp_millis())
        .execute(connection)
        .await?;
        Ok(())
    }
}

pub(super) struct Probe;

#[async_trait]
impl Change for Probe {
    type Output = ();

    async fn apply(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        sqlx::query("UPDATE store SET probes = probes + 1")
            .execute(connection)
            .await?;
        Ok(())
    }
}
