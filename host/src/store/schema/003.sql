-- Jobs that were removed and whose files are yet to go. Their rows in `attempts`, which name the directories of their starts, stay
-- until then.
CREATE TABLE removed_jobs (
    job BLOB PRIMARY KEY
) WITHOUT ROWID;
