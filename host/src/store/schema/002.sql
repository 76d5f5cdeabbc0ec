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
