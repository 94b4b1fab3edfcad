-- Tokens in a table with row ids: in one without, whatever of a row is longer than a quarter
-- of a page is on a page of its own, which every claim of a lease would write again.
CREATE TABLE rows (
    id           INTEGER PRIMARY KEY,
    name         TEXT NOT NULL UNIQUE,
    version      INTEGER NOT NULL DEFAULT 0,
    key_id       TEXT,
    sealed       BLOB,
    details      TEXT,
    fingerprint  BLOB,
    standing     TEXT NOT NULL DEFAULT '{}',
    intent       BLOB,
    intent_at    INTEGER,
    lease_owner  TEXT,
    lease_until  INTEGER
) STRICT;
INSERT INTO rows (name, version, key_id, sealed, details, fingerprint, standing, intent,
                  intent_at, lease_owner, lease_until)
SELECT name, version, key_id, sealed, details, fingerprint, standing, intent, intent_at,
       lease_owner, lease_until FROM credentials;
DROP TABLE credentials;
ALTER TABLE rows RENAME TO credentials;
DROP TABLE IF EXISTS _sqlx_migrations;
