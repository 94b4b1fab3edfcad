//! Every change that the writer makes, one function each. A change may be made twice, if a
//! group that it was in had to be rolled back because of another.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::History;
use crate::{
    clock::Timestamp,
    name::Name,
    secret::Fingerprint,
    store::{Lease, RunRecord},
};

/// A row of `credentials` as it is kept, still sealed.
pub(super) struct SealedRow {
    pub name: String,
    pub version: u64,
    pub sealed: Option<Vec<u8>>,
    pub details: Option<String>,
    /// `None` when it is not even text.
    pub standing: Option<String>,
    pub intended: bool,
}

impl SealedRow {
    /// What a row is read from.
    pub const COLUMNS: &str = "name, version, sealed, details, standing,
         EXISTS (SELECT 1 FROM claims
                 WHERE claims.name = credentials.name AND intent IS NOT NULL)";

    pub fn read(row: &Row) -> rusqlite::Result<Self> {
        Ok(Self {
            // What is no UTF-8 is no name and no JSON either; the others need not know.
            name: String::from_utf8_lossy(row.get_ref(0)?.as_bytes()?).into_owned(),
            version: row.get::<_, i64>(1)? as u64,
            sealed: row.get(2)?,
            details: row.get(3).unwrap_or_default(),
            standing: row.get(4).ok(),
            intended: row.get(5)?,
        })
    }
}

pub(super) fn find(db: &Connection, name: &Name) -> rusqlite::Result<Option<SealedRow>> {
    let columns = SealedRow::COLUMNS;
    let sql = format!("SELECT {columns} FROM credentials WHERE name = ?");
    db.prepare_cached(&sql)?
        .query_row([name.as_str()], SealedRow::read)
        .optional()
}

pub(super) enum CheckedOut {
    Granted {
        buried: bool,
    },
    Newer(SealedRow),
    /// Until when, in milliseconds.
    Busy(i64),
}

pub(super) fn checkout(
    db: &Connection,
    name: &Name,
    version: u64,
    lease: &Lease,
) -> rusqlite::Result<CheckedOut> {
    let look = || {
        // Not a LEFT JOIN: SQLite prepares one again for each name that is bound to it.
        db.prepare_cached(
            "SELECT version, (SELECT owner FROM claims WHERE claims.name = credentials.name),
                    (SELECT until FROM claims WHERE claims.name = credentials.name),
                    EXISTS (SELECT 1 FROM buried WHERE buried.name = credentials.name
                            AND buried.fingerprint = credentials.fingerprint)
             FROM credentials WHERE name = ?",
        )?
        .query_row([name.as_str()], |row| {
            let found: (i64, Option<String>, Option<i64>, bool) =
                (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
            Ok(found)
        })
        .optional()
    };
    let found = match look()? {
        Some(found) => found,
        None => {
            create(db, name)?;
            look()?.ok_or(rusqlite::Error::QueryReturnedNoRows)?
        }
    };
    let now = lease.taken_at.timestamp_millis();
    let (found_version, owner, until, buried) = found;
    if let (Some(owner), Some(until)) = (owner, until)
        && owner != lease.owner
        && until > now
    {
        return Ok(CheckedOut::Busy(until));
    }
    if found_version as u64 > version {
        let newer = find(db, name)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
        return Ok(CheckedOut::Newer(newer));
    }
    // A buried token is not going to be sent, so there is nothing to intend.
    db.prepare_cached(
        "INSERT INTO claims (name, owner, until, intent)
         SELECT name, ?2, ?3, CASE WHEN ?4 THEN NULL ELSE fingerprint END
         FROM credentials WHERE name = ?1
         ON CONFLICT (name) DO UPDATE SET owner = ?2, until = ?3,
             intent = CASE WHEN ?4 THEN intent ELSE excluded.intent END",
    )?
    .execute(params![
        name.as_str(),
        lease.owner,
        now + lease.lasts.as_millis() as i64,
        buried
    ])?;
    Ok(CheckedOut::Granted { buried })
}

/// A row for a credential that has none yet.
fn create(db: &Connection, name: &Name) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT INTO credentials (name) VALUES (?) ON CONFLICT DO NOTHING")?
        .execute([name.as_str()])?;
    Ok(())
}

/// What a save writes into a row.
pub(super) struct NewTokens {
    pub key_id: String,
    pub sealed: Vec<u8>,
    pub details: String,
    pub fingerprint: Option<Fingerprint>,
}

/// Says whether the version was the expected one.
pub(super) fn save(
    db: &Connection,
    name: &Name,
    expected: u64,
    tokens: &NewTokens,
) -> rusqlite::Result<bool> {
    // The row exists but for an import into an empty store.
    if expected == 0 {
        create(db, name)?;
    }
    let changed = db
        .prepare_cached(
            "UPDATE credentials SET version = version + 1, key_id = ?, sealed = ?, details = ?,
                 fingerprint = ?, standing = '{}'
             WHERE name = ? AND version = ?",
        )?
        .execute(params![
            tokens.key_id,
            tokens.sealed,
            tokens.details,
            tokens.fingerprint.map(|fingerprint| fingerprint.0),
            name.as_str(),
            expected as i64
        ])?;
    if changed == 0 {
        return Ok(false);
    }
    db.prepare_cached("DELETE FROM claims WHERE name = ?")?
        .execute([name.as_str()])?;
    Ok(true)
}

/// How a checkout ended without new tokens.
pub(super) struct Settlement {
    pub owner: String,
    pub standing: String,
    pub doubtful: bool,
    pub bury: Option<Fingerprint>,
}

pub(super) fn settle(
    db: &Connection,
    name: &Name,
    settlement: &Settlement,
) -> rusqlite::Result<()> {
    // Only the holder of the lease speaks: one that overslept it says nothing.
    if let Some(fingerprint) = settlement.bury {
        db.prepare_cached(
            "INSERT INTO buried (name, fingerprint)
             SELECT name, ?1 FROM claims WHERE name = ?2 AND owner = ?3
             ON CONFLICT DO NOTHING",
        )?
        .execute(params![fingerprint.0, name.as_str(), settlement.owner])?;
    }
    db.prepare_cached(
        "UPDATE credentials SET standing = ?1 WHERE name = ?2
             AND EXISTS (SELECT 1 FROM claims WHERE claims.name = ?2 AND owner = ?3)",
    )?
    .execute(params![
        settlement.standing,
        name.as_str(),
        settlement.owner
    ])?;
    let end = match settlement.doubtful {
        true => "UPDATE claims SET owner = NULL, until = NULL WHERE name = ? AND owner = ?",
        false => "DELETE FROM claims WHERE name = ? AND owner = ?",
    };
    db.prepare_cached(end)?
        .execute(params![name.as_str(), settlement.owner])?;
    Ok(())
}

pub(super) fn add_run(db: &Connection, run: &RunRecord, history: History) -> rusqlite::Result<()> {
    db.prepare_cached(
        r#"INSERT INTO runs (job, "trigger", outcome, started_at, duration_ms, summary, trace_id)
           VALUES (?, ?, ?, ?, ?, ?, ?)"#,
    )?
    .execute(params![
        run.job.as_str(),
        run.trigger,
        run.outcome,
        run.started_at.timestamp_millis(),
        run.duration.as_millis() as i64,
        run.summary,
        run.trace_id
    ])?;
    for (succeeded, kept) in [(true, history.runs), (false, history.failed_runs)] {
        db.prepare_cached(
            "DELETE FROM runs WHERE id IN (
                 SELECT id FROM runs WHERE job = ? AND (outcome = 'success') = ?
                 ORDER BY id DESC LIMIT -1 OFFSET ?)",
        )?
        .execute(params![run.job.as_str(), succeeded, kept])?;
    }
    Ok(())
}

pub(super) fn set_firing(db: &Connection, job: &Name, at: Timestamp) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO firings (job, at) VALUES (?, ?)
         ON CONFLICT (job) DO UPDATE SET at = excluded.at",
    )?
    .execute(params![job.as_str(), at.timestamp_millis()])?;
    Ok(())
}

pub(super) fn probe(db: &Connection) -> rusqlite::Result<()> {
    let changed = db
        .prepare_cached("UPDATE store SET probes = probes + 1")?
        .execute([])?;
    match changed {
        0 => Err(rusqlite::Error::QueryReturnedNoRows),
        _ => Ok(()),
    }
}
