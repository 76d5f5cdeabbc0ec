//! A copy of the database, taken while the service runs.

use std::path::Path;
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};

/// Copies the database at `from` into a new file `to` (sqlite.org/backup.html). The copy is the database at one moment, whoever
/// writes to it meanwhile; nobody waits for it.
///
/// # Errors
/// When `from` cannot be read, or `to` is there already or cannot be written.
pub fn backup(from: &Path, to: &Path) -> Result<(), BackupError> {
    let failed = |source| BackupError::Copy { from: from.to_owned(), to: to.to_owned(), source };
    let source = Connection::open_with_flags(from, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed)?;
    source.busy_timeout(Duration::from_secs(30)).map_err(failed)?;
    super::private_new(to).map_err(|error| BackupError::Create { to: to.to_owned(), source: error })?;
    let copied = (|| {
        let mut target = Connection::open(to)?;
        {
            let backup = Backup::new(&source, &mut target)?;
            // In one step: a copy in several begins again whenever somebody else has written in between.
            match backup.step(-1)? {
                StepResult::Done => {}
                _ => {
                    return Err(rusqlite::Error::SqliteFailure(
                        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY),
                        None,
                    ));
                }
            }
        }
        // One file that needs no other beside it.
        target.pragma_update(None, "journal_mode", "DELETE")?;
        let verdict: String = target.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        if verdict == "ok" { Ok(()) } else { Err(corrupt(verdict)) }
    })();
    copied.map_err(|error| {
        // What is there of it is of no use; that it could not be removed either is the smaller trouble.
        let _ = std::fs::remove_file(to);
        failed(error)
    })
}

fn corrupt(verdict: String) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT), Some(verdict))
}

/// There is no copy.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file cannot be made.
    #[error("cannot create {}: {source}", to.display())]
    Create {
        /// Which.
        to: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// SQLite says why.
    #[error("cannot copy the database {} to {}: {source}", from.display(), to.display())]
    Copy {
        /// The database.
        from: std::path::PathBuf,
        /// The copy.
        to: std::path::PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
}
