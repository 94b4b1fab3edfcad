-- "PNNL": tells this file from every other SQLite database.
PRAGMA application_id = 1347309132;

-- Which key the tokens are sealed with, and nothing else that is not a row's own.
CREATE TABLE store (
    id      INTEGER PRIMARY KEY CHECK (id = 1),
    key_id  TEXT NOT NULL,
    probes  INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE credentials (
    name         TEXT PRIMARY KEY,
    version      INTEGER NOT NULL DEFAULT 0,
    -- The token set: secrets sealed, the rest as JSON. NULL before the first.
    key_id       TEXT,
    sealed       BLOB,
    details      TEXT,
    -- Recognises the refresh token inside `sealed`.
    fingerprint  BLOB,
    standing     TEXT NOT NULL DEFAULT '{}',
    -- The intent to spend the refresh token with this fingerprint, since when.
    intent       BLOB,
    intent_at    INTEGER,
    lease_owner  TEXT,
    lease_until  INTEGER
) STRICT, WITHOUT ROWID;

-- Refresh tokens that their server declared dead: recognised, and never sent again.
CREATE TABLE buried (
    name         TEXT NOT NULL,
    fingerprint  BLOB NOT NULL,
    PRIMARY KEY (name, fingerprint)
) STRICT, WITHOUT ROWID;

CREATE TABLE firings (
    job  TEXT PRIMARY KEY,
    at   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE runs (
    id           INTEGER PRIMARY KEY,
    job          TEXT NOT NULL,
    "trigger"    TEXT NOT NULL,
    outcome      TEXT NOT NULL,
    started_at   INTEGER NOT NULL,
    duration_ms  INTEGER NOT NULL,
    summary      TEXT NOT NULL,
    trace_id     TEXT
) STRICT;
CREATE INDEX runs_of_job ON runs (job, outcome = 'success', id DESC);
