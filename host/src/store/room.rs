//! The write-ahead log's room on the disk.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, TransactionBehavior};

use super::checkpoint::{STEP, TOO_LONG};

/// Bytes that the log has from the start: what it comes to when the writer never rests, which is to write a step more while a checkpoint
/// is made. Where that takes longer, the log grows once, and keeps what it has grown by.
const ROOM: u64 = (TOO_LONG as u64 + STEP as u64) * FRAME;

/// Bytes of a page in the log: 4 KiB, SQLite's own number, and what stands before it (sqlite.org/fileformat2.html#the_write_ahead_log).
const FRAME: u64 = 4096 + 24;

/// Gives the log of this database its room. A commit into a file that grows has to write the file's new length and where its blocks
/// lie as well, which on ext4 takes about half as long again as what is committed.
///
/// What lies behind the last commit is to SQLite what is left of an earlier, longer log: it looks at none of it but for frames with
/// the present log's salt and checksums, and zeros have neither (sqlite.org/fileformat2.html#the_write_ahead_log). The log loses its
/// room with the last connection, which deletes it.
///
/// # Errors
/// SQLite's, when nothing can be written; a disk that is too full for the room is none.
pub(super) fn reserve(connection: &mut Connection, path: &Path) -> rusqlite::Result<()> {
    // Nobody else writes to the log meanwhile, and it is there.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let log = log_of(&path.canonicalize().unwrap_or_else(|_| path.to_owned()));
    if let Err(error) = OpenOptions::new().append(true).open(&log).and_then(|mut file| lengthen(&mut file, ROOM)) {
        tracing::warn!(%error, log = %log.display(), "the database's log has no room in advance: commits take longer");
    }
    transaction.commit()
}

/// SQLite's name for the log of a database.
fn log_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

/// Writes zeros at the end of a file until it has `room` bytes. One that cannot have them, or would leave less than as much again on
/// its disk to others, stays as it is.
fn lengthen(file: &mut File, room: u64) -> io::Result<()> {
    let had = file.metadata()?.len();
    let lacks = room.saturating_sub(had);
    let disk = nix::sys::statvfs::fstatvfs(&*file)?;
    if disk.blocks_available().saturating_mul(disk.fragment_size()) < 2 * lacks {
        return Err(io::Error::from(io::ErrorKind::StorageFull));
    }
    let written = io::copy(&mut io::Read::take(io::repeat(0), lacks), file).and_then(|_| file.sync_all());
    written.inspect_err(|_| {
        // What little it has got is no harm where this fails too.
        let _ = file.set_len(had);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::schema;

    #[test]
    fn a_log_with_room_does_not_grow_and_is_read_after_a_crash_up_to_its_last_commit() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("taxiway.db");
        let mut writer = Connection::open(&path).expect("opens");
        schema::configure(&writer).expect("configured");
        writer.execute_batch("CREATE TABLE t (number INTEGER)").expect("a table");
        let length = |path: &Path| std::fs::metadata(log_of(path)).expect("a log").len();
        assert!(length(&path) < ROOM);
        reserve(&mut writer, &path).expect("reserved");
        assert_eq!(length(&path), ROOM);
        for number in 0..50 {
            writer.execute("INSERT INTO t VALUES (?1)", [number]).expect("a row");
        }
        reserve(&mut writer, &path).expect("it has its room");
        assert_eq!(length(&path), ROOM);
        // What a crash leaves.
        let left = directory.path().join("left.db");
        std::fs::copy(&path, &left).expect("a copy");
        std::fs::copy(log_of(&path), log_of(&left)).expect("a copy");
        let after = Connection::open(&left).expect("opens");
        let found: (i64, i64) = after
            .query_row("SELECT count(*), max(number) FROM t", [], |row| Ok((row.get(0)?, row.get(1)?)))
            .expect("rows");
        assert_eq!(found, (50, 49));
        let verdict: String = after.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("a verdict");
        assert_eq!(verdict, "ok");
    }

    #[test]
    fn a_file_that_cannot_have_room_stays_as_it_is() {
        let mut full = OpenOptions::new().append(true).open("/dev/full").expect("Linux has it");
        let error = lengthen(&mut full, ROOM).expect_err("full");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn sqlite_is_built_as_the_workspace_says() {
        // Cargo reads the workspace's settings only where it is called within the workspace.
        if option_env!("LIBSQLITE3_FLAGS").is_none_or(|flags| !flags.contains("HAVE_FDATASYNC")) {
            eprintln!("NOT TESTED: this was built without what .cargo/config.toml says of SQLite");
            return;
        }
        let connection = Connection::open_in_memory().expect("opens");
        // Set together with HAVE_FDATASYNC, which SQLite does not tell of.
        let sql = "SELECT sqlite_compileoption_used('DEFAULT_MEMSTATUS=0')";
        assert!(connection.query_row(sql, [], |row| row.get::<_, bool>(0)).expect("an answer"));
    }
}
