-- What a job asks of the queue beside its slots, as the queue needs it at a start (`Terms`); NULL for nothing.
ALTER TABLE jobs ADD COLUMN terms TEXT;
-- Grows with every edit.
ALTER TABLE jobs ADD COLUMN revision INTEGER NOT NULL DEFAULT 1;
-- Automatic retries since somebody last asked for the job to run, and when the next attempt may start.
ALTER TABLE jobs ADD COLUMN retries_done INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN retry_at INTEGER;
-- Labels and variables as submitted (`Beside`); NULL when no rewriter changed them.
ALTER TABLE jobs ADD COLUMN submitted_beside TEXT;
ALTER TABLE jobs ADD COLUMN launch_verdicts TEXT;

-- Requests that were accepted under an Idempotency-Key: who sent them, SHA-256 of the whole request, and what they came to.
CREATE TABLE idempotency_keys (
    owner   TEXT    NOT NULL,
    key     TEXT    NOT NULL,
    request BLOB    NOT NULL,
    answer  TEXT    NOT NULL,
    at      INTEGER NOT NULL,
    PRIMARY KEY (owner, key)
) WITHOUT ROWID;
CREATE INDEX idempotency_keys_at ON idempotency_keys (at);

-- A page of jobs in one state, whichever it is: the rows of an index are in the order of `seq` within a state.
DROP INDEX jobs_live;
CREATE INDEX jobs_state ON jobs (state);
-- The latest ends, by which a forecast goes, and the first, which are the first to be forgotten.
CREATE INDEX jobs_ended ON jobs (finished_at) WHERE finished_at IS NOT NULL;
-- How far each attempt said it was, over time: a sample is a JSON object of numbers. They become rarer as the attempt goes on
-- (queue/samples.rs), so that their number is bounded.
CREATE TABLE samples (
    job     BLOB    NOT NULL,
    attempt INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    data    TEXT    NOT NULL,
    PRIMARY KEY (job, attempt, at)
) WITHOUT ROWID;

-- The starts of a job lie together, and jobs in the order of their submission: what is written of one job after the other lies on
-- few pages.
CREATE TABLE attempts_by_job (
    job         BLOB    NOT NULL,
    launch      BLOB    NOT NULL,
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
    handover    TEXT,
    PRIMARY KEY (job, launch)
) WITHOUT ROWID;
INSERT INTO attempts_by_job
    SELECT job, launch, attempt, phase, boot_id, gpu_uuids, pid, start_time, started_at, finished_at, end_state, exit_code,
        exit_signal, failure, usage, handover
    FROM attempts;
DROP TABLE attempts;
ALTER TABLE attempts_by_job RENAME TO attempts;
CREATE INDEX attempts_unsettled ON attempts (phase) WHERE phase != 'ended';

-- Without AUTOINCREMENT, which has another table written with each event. No id is used again all the same: SQLite gives the one
-- after the last, and the last event is never forgotten.
CREATE TABLE events_kept (
    id   INTEGER PRIMARY KEY,
    at   INTEGER NOT NULL,
    kind TEXT    NOT NULL,
    job  BLOB,
    data TEXT
);
INSERT INTO events_kept SELECT id, at, kind, job, data FROM events;
DROP TABLE events;
ALTER TABLE events_kept RENAME TO events;

-- The last hand-overs, and the last deliveries.
CREATE INDEX attempts_handover ON attempts (started_at) WHERE handover IS NOT NULL;
CREATE INDEX deliveries_made ON deliveries (created_at, id);

-- GPUs that are kept from jobs: what is wrong with each (`Trouble`), and the boot of the machine in which it was found.
CREATE TABLE gpu_quarantine (
    uuid    TEXT    PRIMARY KEY,
    trouble TEXT    NOT NULL,
    boot_id TEXT    NOT NULL,
    at      INTEGER NOT NULL
) WITHOUT ROWID;

-- Jobs that were submitted together as an array.
ALTER TABLE jobs ADD COLUMN array_id BLOB;
CREATE INDEX jobs_array ON jobs (array_id) WHERE array_id IS NOT NULL;
