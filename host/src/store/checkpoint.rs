//! Checkpoints: what was committed moves from the write-ahead log into the database, on a thread and a connection of their own.
//!
//! The writer never does it, so that no submission waits for it: SQLite's own checkpoints, which the commit that makes the log too
//! long has to carry out, are off. The writer only says how long the log is, and sleeping costs nothing in between.

use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use rusqlite::Connection;

use super::schema;

/// Pages that the log grows by from one checkpoint to the next (4 MiB; SQLite's own number).
pub(super) const STEP: i32 = 1000;

/// Pages after which the writer is made to wait for the rest of a checkpoint: while it writes without a pause, the log cannot begin
/// again from the front by itself, and would outgrow its room ([`super::room`]), in which commits take less time.
pub(super) const TOO_LONG: i64 = 3 * STEP as i64 / 2;

/// How long such a checkpoint waits for its turn between two commits, and then for readers that are about to be done, for which the
/// writer waits too: a page of a list takes a few milliseconds, and what takes longer is not waited for, but tried again a step later.
const PATIENCE: Duration = Duration::from_millis(100);

/// Turns SQLite's own checkpoints of `writer` off and starts the thread that makes them. It ends with the connection.
///
/// # Errors
/// When the thread cannot be started or the database not be opened.
pub(super) fn start(writer: &mut Connection, path: &Path) -> Result<(), super::OpenError> {
    // One place: a checkpoint that is due is due, however often it is said.
    let (due, waiting) = sync_channel(1);
    let connection = Connection::open(path)?;
    schema::configure(&connection)?;
    connection.busy_timeout(PATIENCE)?;
    std::thread::Builder::new()
        .name("store-checkpoint".into())
        .spawn(move || run(&connection, &waiting))
        .map_err(super::OpenError::Thread)?;
    watch(writer, due)?;
    Ok(())
}

/// Has the thread told whenever the log has grown by a step. The hook takes the place of SQLite's own checkpoints
/// (sqlite.org/c3ref/wal_hook.html).
fn watch(writer: &mut Connection, due: SyncSender<()>) -> rusqlite::Result<()> {
    let mut next = STEP;
    writer.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, pages: std::ffi::c_int| {
        if pages < next - STEP {
            // The log has begun again from the front.
            next = STEP;
        }
        if pages >= next {
            next = pages + STEP;
            // Full: the thread has been told already, and its next look sees these pages too.
            let _ = due.try_send(());
        }
        Ok(())
    }))
}

fn run(connection: &Connection, due: &Receiver<()>) {
    while due.recv().is_ok() {
        if let Err(error) = checkpoint(connection) {
            // Nothing is lost: the log is part of the database, and the next step tries again.
            tracing::warn!(%error, "a checkpoint of the database failed");
        }
    }
}

/// A checkpoint that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    /// Of what could be moved without anybody's waiting.
    Passive,
    /// After which the log begins again from the front, unless somebody read from it for too long.
    Restart,
}

fn checkpoint(connection: &Connection) -> rusqlite::Result<Made> {
    // Pages in the log, and how many of them are in the database by now (sqlite.org/pragma.html#pragma_wal_checkpoint).
    let pages = |mode: &str| {
        connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
            Ok((row.get::<_, i64>("log")?, row.get::<_, i64>("checkpointed")?))
        })
    };
    let (log, moved) = pages("PASSIVE")?;
    // What is left is what somebody does not see who has been reading for long, as a backup does: the log cannot begin again before
    // that is over, and the writer would wait in vain.
    let is_read_for_long = log - moved >= i64::from(STEP);
    if log <= TOO_LONG || is_read_for_long {
        return Ok(Made::Passive);
    }
    pages("RESTART").map(|_| Made::Restart)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_grows_step_by_step_is_moved_into_the_database_by_the_thread() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("taxiway.db");
        let mut writer = Connection::open(&path).expect("opens");
        schema::configure(&writer).expect("configured");
        writer.execute_batch("CREATE TABLE t (data BLOB)").expect("a table");
        let (due, waiting) = sync_channel(1);
        watch(&mut writer, due).expect("a hook");
        let mut told = 0;
        for _ in 0..3 * STEP {
            writer.execute("INSERT INTO t VALUES (randomblob(4000))", []).expect("a row");
            told += waiting.try_iter().count();
        }
        // Each row takes a page of its own, and two or three that know of it.
        assert!((3..=12).contains(&told), "{told}");
        let before = std::fs::metadata(&path).expect("a file").len();
        let (due, waiting) = sync_channel(1);
        due.send(()).expect("a place");
        drop(due);
        run(&writer, &waiting);
        assert!(std::fs::metadata(&path).expect("a file").len() > before + 2 * STEP as u64 * 4000);
    }

    #[test]
    fn the_writer_is_made_to_wait_for_a_log_that_is_too_long_and_never_for_somebody_who_reads_for_long() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("taxiway.db");
        let open = || {
            let connection = Connection::open(&path).expect("opens");
            schema::configure(&connection).expect("configured");
            connection
        };
        let (mut writer, reader, thread_s) = (open(), open(), open());
        writer.execute_batch("CREATE TABLE t (data BLOB)").expect("a table");
        // Who watches for growth also turns SQLite's own checkpoints off.
        let (due, _waiting) = sync_channel(1);
        watch(&mut writer, due).expect("a hook");
        let pages_in_log = || {
            let passive = "PRAGMA wal_checkpoint(PASSIVE)";
            thread_s.query_row(passive, [], |row| row.get::<_, i64>("log")).expect("an answer")
        };
        reader.execute_batch("BEGIN; SELECT count(*) FROM t").expect("a backup begins");
        let transaction = writer.transaction().expect("begins");
        for _ in 0..TOO_LONG + 1 {
            transaction.execute("INSERT INTO t VALUES (zeroblob(4000))", []).expect("a row");
        }
        transaction.commit().expect("commits");
        assert!(pages_in_log() > TOO_LONG);
        assert_eq!(checkpoint(&thread_s).expect("is made"), Made::Passive);
        reader.execute_batch("COMMIT").expect("the backup is done");
        assert_eq!(checkpoint(&thread_s).expect("is made"), Made::Restart);
        writer.execute("INSERT INTO t VALUES (zeroblob(4000))", []).expect("a row");
        assert!(pages_in_log() < i64::from(STEP), "the log has begun again from the front");
    }
}
