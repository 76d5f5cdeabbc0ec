-- Ids are 16 bytes; times are milliseconds since the Unix epoch; columns named after a type of the model hold it as JSON.

CREATE TABLE jobs (
    seq              INTEGER PRIMARY KEY,
    id               BLOB    NOT NULL UNIQUE,
    state            TEXT    NOT NULL,
    priority         INTEGER NOT NULL,
    rank             INTEGER NOT NULL,
    gpus             INTEGER NOT NULL,
    attempt          INTEGER NOT NULL,
    name             TEXT    NOT NULL,
    profile          TEXT,
    external_id      TEXT,
    body             BLOB    NOT NULL,
    spec             TEXT    NOT NULL,
    config           TEXT    NOT NULL,
    submitted_config TEXT,
    rewrites         TEXT,
    verdicts         TEXT,
    warnings         TEXT,
    reason           TEXT,
    stop_target      TEXT,
    submitted_at     INTEGER NOT NULL,
    queued_at        INTEGER NOT NULL,
    started_at       INTEGER,
    finished_at      INTEGER,
    submitted_by     TEXT    NOT NULL,
    exit_code        INTEGER,
    exit_signal      INTEGER,
    failure          TEXT,
    gpu_uuids        TEXT,
    usage            TEXT,
    handover         TEXT,
    progress         TEXT
);
CREATE UNIQUE INDEX jobs_external_id ON jobs (external_id) WHERE external_id IS NOT NULL;
-- The few that have not ended: what a restart reads.
CREATE INDEX jobs_live ON jobs (state) WHERE state NOT IN ('completed', 'failed', 'cancelled');

-- One row for each start of a job. A row in a phase other than `ended` is the durable intent of DESIGN §5.
CREATE TABLE attempts (
    launch      BLOB    PRIMARY KEY,
    job         BLOB    NOT NULL,
    attempt     INTEGER NOT NULL,
    phase       TEXT    NOT NULL CHECK (phase IN ('armed', 'pending', 'running', 'ended')),
    boot_id     TEXT    NOT NULL,
    gpu_uuids   TEXT,
    pid         INTEGER,
    start_time  INTEGER,
    started_at  INTEGER,
    finished_at INTEGER,
    end_state   TEXT,
    exit_code   INTEGER,
    exit_signal INTEGER,
    failure     TEXT,
    usage       TEXT,
    handover    TEXT
) WITHOUT ROWID;
CREATE INDEX attempts_job ON attempts (job, attempt);
CREATE INDEX attempts_unsettled ON attempts (phase) WHERE phase != 'ended';

CREATE TABLE deliveries (
    id          BLOB    PRIMARY KEY,
    plugin      TEXT    NOT NULL,
    job         BLOB    NOT NULL,
    attempt     INTEGER NOT NULL,
    end_state   TEXT    NOT NULL,
    will_retry  INTEGER NOT NULL,
    status      TEXT    NOT NULL CHECK (status IN ('waiting', 'delivered', 'dead')),
    tries       INTEGER NOT NULL,
    next_at     INTEGER NOT NULL,
    last_error  TEXT,
    created_at  INTEGER NOT NULL,
    finished_at INTEGER
) WITHOUT ROWID;
CREATE INDEX deliveries_due ON deliveries (next_at) WHERE status = 'waiting';
CREATE INDEX deliveries_job ON deliveries (job);

-- AUTOINCREMENT: an id is never used again, so that a subscriber can go on from the last one it saw.
CREATE TABLE events (
    id   INTEGER PRIMARY KEY AUTOINCREMENT,
    at   INTEGER NOT NULL,
    kind TEXT    NOT NULL,
    job  BLOB,
    data TEXT
);

CREATE TABLE audit (
    id     INTEGER PRIMARY KEY,
    at     INTEGER NOT NULL,
    actor  TEXT    NOT NULL,
    action TEXT    NOT NULL,
    job    BLOB
);

CREATE TABLE tokens (
    sha256     BLOB    PRIMARY KEY,
    name       TEXT    NOT NULL UNIQUE,
    scope      TEXT    NOT NULL,
    created_at INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE settings (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;
