//! The database's tables, and how an older file becomes a present one.

use rusqlite::Connection;

use super::OpenError;

/// Every schema version in turn: the script at index `n` takes a file from version `n` to `n + 1`. A released script never
/// changes; a new version is a new script.
const MIGRATIONS: &[&str] =
    &[include_str!("schema/001.sql"), include_str!("schema/002.sql"), include_str!("schema/003.sql")];

/// Settings of every connection. FULL makes each commit an fsync of the write-ahead log (sqlite.org/pragma.html#synchronous):
/// an answer that was given survives a loss of power.
const PRAGMAS: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    PRAGMA foreign_keys = OFF;
    PRAGMA temp_store = MEMORY;
    PRAGMA cache_size = -8000;
";

/// Prepares a connection.
pub(super) fn configure(connection: &Connection) -> rusqlite::Result<()> {
    // Who makes a checkpoint takes turns with the writer; whoever else has opened the file is waited for.
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.execute_batch(PRAGMAS)?;
    // Statements are few and fixed: all of them stay prepared.
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// Brings the file to the present version, each step in a transaction of its own.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), OpenError> {
    let found: usize =
        connection.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))?.try_into().unwrap_or(usize::MAX);
    if found > MIGRATIONS.len() {
        return Err(OpenError::Newer { found, known: MIGRATIONS.len() });
    }
    for (index, script) in MIGRATIONS.iter().enumerate().skip(found) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(script)?;
        transaction.pragma_update(None, "user_version", (index + 1) as i64)?;
        transaction.commit()?;
    }
    Ok(())
}
