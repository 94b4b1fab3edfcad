-- Tokens in a table with row ids: in one without, whatever of a row is longer than a quarter
-- of a page is on a page of its own. And what is under way in a table of its own, which has few
-- rows and so few pages: a claim does not write the tokens again.
CREATE TABLE rows (
    id           INTEGER PRIMARY KEY,
    name         TEXT NOT NULL UNIQUE,
    version      INTEGER NOT NULL DEFAULT 0,
    key_id       TEXT,
    sealed       BLOB,
    details      TEXT,
    fingerprint  BLOB,
    standing     TEXT NOT NULL DEFAULT '{}'
) STRICT;
INSERT INTO rows (name, version, key_id, sealed, details, fingerprint, standing)
SELECT name, version, key_id, sealed, details, fingerprint, standing FROM credentials;

-- A refresh under way, or one that ended without an answer.
CREATE TABLE claims (
    name       TEXT PRIMARY KEY,
    -- Who holds the lease, and until when; NULL when nobody does.
    owner      TEXT,
    until      INTEGER,
    -- The intent to spend the refresh token with this fingerprint. NULL where there is nothing
    -- to spend.
    intent     BLOB
) STRICT, WITHOUT ROWID;
INSERT INTO claims (name, owner, until, intent)
SELECT name, lease_owner, lease_until, intent FROM credentials
WHERE lease_owner IS NOT NULL OR intent IS NOT NULL;

DROP TABLE credentials;
ALTER TABLE rows RENAME TO credentials;
DROP TABLE IF EXISTS _sqlx_migrations;
