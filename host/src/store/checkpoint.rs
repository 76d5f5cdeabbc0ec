//! Checkpoints: what was committed moves from the write-ahead log into the database, on a thread and a connection of their own.
//!
//! The writer never does it: SQLite's own checkpoints, which the commit that makes the log too long has to carry out, are off. It
//! only says how long the log is, and lets the thread have its [`Turn`] for the little that is left of a checkpoint where it would write
//! on without a pause. In between, the thread sleeps.

use std::fs::File;
use std::mem::ManuallyDrop;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::Connection;

use super::schema;

/// Pages that the log grows by from one checkpoint to the next (4 MiB; SQLite's own number).
pub(super) const STEP: i32 = 1000;

/// Pages after which the writer is made to wait for the rest of a checkpoint: while it writes without a pause, the log cannot begin
/// again from the front by itself, and would outgrow its room ([`super::room`]), in which commits take less time.
pub(super) const TOO_LONG: i64 = 3 * STEP as i64 / 2;

/// Pages at which such a checkpoint is tried at every step (64 MiB), whoever reads.
const MUCH_TOO_LONG: i64 = 16 * STEP as i64;

/// How long such a checkpoint waits for readers that are about to be done, for which the writer waits too: a page of a list takes a few
/// milliseconds.
const PATIENCE: Duration = Duration::from_millis(50);

/// Whose turn it is, the writer's or a checkpoint's that makes it wait. SQLite alone has whoever wants to write try again and again, and a
/// writer that hardly rests would leave no gap to be met.
#[derive(Debug, Default)]
pub(super) struct Turn {
    taken: Mutex<()>,
    wanted: AtomicBool,
    given_back: Condvar,
}

impl Turn {
    /// The writer's, for one transaction: after a checkpoint that waits for it.
    pub(super) fn of_the_writer(&self) -> MutexGuard<'_, ()> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let goes_first = |_: &mut ()| self.wanted.load(Ordering::SeqCst);
        self.given_back.wait_while(taken, goes_first).unwrap_or_else(PoisonError::into_inner)
    }

    /// A checkpoint's: once the transaction that is open is over.
    fn of_a_checkpoint<T>(&self, work: impl FnOnce() -> T) -> T {
        self.wanted.store(true, Ordering::SeqCst);
        let _taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let _given_back = GiveBack(self);
        work()
    }
}

/// Gives a checkpoint's turn back, also when the work panics: the writer would wait for ever. Dropped while the turn is still taken, so
/// that the writer either finds it given back or is already waiting to be told.
struct GiveBack<'a>(&'a Turn);

impl Drop for GiveBack<'_> {
    fn drop(&mut self) {
        self.0.wanted.store(false, Ordering::SeqCst);
        self.0.given_back.notify_all();
    }
}

/// Turns SQLite's own checkpoints of `writer` off and starts the thread that makes them. It ends with the connection. The writer has to
/// take its turn for each transaction.
///
/// # Errors
/// When the thread cannot be started or the database not be opened.
pub(super) fn start(writer: &mut Connection, path: &Path) -> Result<Arc<Turn>, super::OpenError> {
    // One place: a checkpoint that is due is due, however often it is said.
    let (due, waiting) = sync_channel(1);
    let turn = Arc::new(Turn::default());
    let mut checkpoints = Checkpoints::open(path, turn.clone())?;
    std::thread::Builder::new()
        .name("store-checkpoint".into())
        .spawn(move || checkpoints.run(&waiting))
        .map_err(super::OpenError::Thread)?;
    watch(writer, due)?;
    Ok(turn)
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

/// A checkpoint that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    /// Of what could be moved without anybody's waiting.
    Passive,
    /// After which the log begins again from the front.
    Restart,
    /// The same in vain: somebody has read from the log for too long.
    InVain,
}

struct Checkpoints {
    connection: Connection,
    /// To have on the disk what was moved before the writer is made to wait. Never closed, so that there is one for each database
    /// that was opened: to close it would drop SQLite's locks on the file (fcntl_locking(2)).
    database: ManuallyDrop<File>,
    turn: Arc<Turn>,
    /// Pages after which the log is too long for now.
    too_long: i64,
}

impl Checkpoints {
    fn open(path: &Path, turn: Arc<Turn>) -> Result<Self, super::OpenError> {
        let connection = Connection::open(path)?;
        schema::configure(&connection)?;
        connection.busy_timeout(PATIENCE)?;
        let database = File::open(path).map_err(|source| super::OpenError::Create { path: path.to_owned(), source })?;
        Ok(Self { connection, database: ManuallyDrop::new(database), turn, too_long: TOO_LONG })
    }

    fn run(&mut self, due: &Receiver<()>) {
        while due.recv().is_ok() {
            if let Err(error) = self.checkpoint() {
                // Nothing is lost: the log is part of the database, and the next step tries again.
                tracing::warn!(%error, "a checkpoint of the database failed");
            }
        }
    }

    fn checkpoint(&mut self) -> rusqlite::Result<Made> {
        let (_, log, moved) = self.pages("PASSIVE")?;
        if log <= TOO_LONG {
            self.too_long = TOO_LONG;
        }
        // What is left is what somebody does not see who has been reading for long, as a backup does: the log cannot begin again before
        // that is over, and the writer would wait in vain.
        let is_read_for_long = log - moved >= i64::from(STEP);
        if log <= self.too_long || is_read_for_long {
            return Ok(Made::Passive);
        }
        // SQLite syncs the database only with the last page of the log, which is while the writer waits. Where this fails, that does.
        if let Err(error) = self.database.sync_data() {
            tracing::warn!(%error, "the database cannot be synced");
        }
        let (in_vain, log, _) = self.turn.of_a_checkpoint(|| self.pages("RESTART"))?;
        // Whoever reads for so long may do it again: the writer waits for that more seldom.
        self.too_long = if in_vain { (2 * log).clamp(TOO_LONG, MUCH_TOO_LONG) } else { TOO_LONG };
        Ok(if in_vain { Made::InVain } else { Made::Restart })
    }

    /// Makes a checkpoint of this kind. Tells whether somebody was in its way, how many pages the log has, and how many of them are
    /// in the database by now (sqlite.org/pragma.html#pragma_wal_checkpoint).
    fn pages(&self, kind: &str) -> rusqlite::Result<(bool, i64, i64)> {
        self.connection.query_row(&format!("PRAGMA wal_checkpoint({kind})"), [], |row| {
            Ok((row.get("busy")?, row.get("log")?, row.get("checkpointed")?))
        })
    }
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
        Checkpoints::open(&path, Arc::default()).expect("opens").run(&waiting);
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
        let (mut writer, reader) = (open(), open());
        let mut checkpoints = Checkpoints::open(&path, Arc::default()).expect("opens");
        writer.execute_batch("CREATE TABLE t (data BLOB)").expect("a table");
        // Who watches for growth also turns SQLite's own checkpoints off.
        let (due, _waiting) = sync_channel(1);
        watch(&mut writer, due).expect("a hook");
        reader.execute_batch("BEGIN; SELECT count(*) FROM t").expect("a backup begins");
        let transaction = writer.transaction().expect("begins");
        for _ in 0..TOO_LONG + 1 {
            transaction.execute("INSERT INTO t VALUES (zeroblob(4000))", []).expect("a row");
        }
        transaction.commit().expect("commits");
        assert_eq!(checkpoints.checkpoint().expect("is made"), Made::Passive);
        reader.execute_batch("COMMIT").expect("the backup is done");
        // One that begins now sees all of the log, and keeps it from beginning again.
        reader.execute_batch("BEGIN; SELECT count(*) FROM t").expect("a long list begins");
        assert_eq!(checkpoints.checkpoint().expect("is made"), Made::InVain);
        assert_eq!(checkpoints.checkpoint().expect("is made"), Made::Passive, "the writer is left alone for a while");
        let transaction = writer.transaction().expect("begins");
        for _ in 0..checkpoints.too_long {
            transaction.execute("INSERT INTO t VALUES (zeroblob(4000))", []).expect("a row");
        }
        transaction.commit().expect("commits");
        reader.execute_batch("COMMIT").expect("the list is done");
        assert_eq!(checkpoints.checkpoint().expect("is made"), Made::Restart);
        assert_eq!(checkpoints.too_long, TOO_LONG);
        writer.execute("INSERT INTO t VALUES (zeroblob(4000))", []).expect("a row");
        let (_, log, _) = checkpoints.pages("PASSIVE").expect("an answer");
        assert!(log < i64::from(STEP), "the log has begun again from the front");
    }

    #[test]
    fn a_checkpoint_that_panics_gives_its_turn_back() {
        let turn = Turn::default();
        let work = std::panic::AssertUnwindSafe(|| turn.of_a_checkpoint(|| panic!("as a bug would")));
        assert!(std::panic::catch_unwind(work).is_err());
        // Would wait for ever.
        drop(turn.of_the_writer());
    }

    #[test]
    fn a_writer_that_never_rests_lets_a_checkpoint_have_its_turn() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("taxiway.db");
        let mut writer = Connection::open(&path).expect("opens");
        schema::configure(&writer).expect("configured");
        writer.execute_batch("PRAGMA synchronous = OFF; CREATE TABLE t (data BLOB)").expect("a table");
        let (due, _waiting) = sync_channel(1);
        watch(&mut writer, due).expect("a hook");
        let turn = Arc::new(Turn::default());
        let mut checkpoints = Checkpoints::open(&path, turn.clone()).expect("opens");
        let (told, long) = sync_channel(1);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                let mut pages = 0;
                while !is_over.load(Ordering::SeqCst) {
                    let _turn = turn.of_the_writer();
                    let transaction = writer.transaction().expect("begins");
                    for _ in 0..100 {
                        transaction.execute("INSERT INTO t VALUES (zeroblob(4000))", []).expect("a row");
                    }
                    transaction.commit().expect("commits");
                    pages += 100;
                    if pages > TOO_LONG {
                        // Full: it has been told.
                        let _ = told.try_send(());
                    }
                }
            });
            long.recv().expect("the log is too long");
            let made: Vec<_> = (0..20).map(|_| checkpoints.checkpoint()).collect();
            is_over.store(true, Ordering::SeqCst);
            let made: Vec<Made> = made.into_iter().map(|made| made.expect("is made")).collect();
            assert!(made.contains(&Made::Restart) && !made.contains(&Made::InVain), "{made:?}");
        });
    }
}
