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
-- The latest ends: what a forecast goes by.
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
