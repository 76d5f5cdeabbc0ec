//! Everything that must survive: jobs, attempts, deliveries, events, in one SQLite file.
//!
//! One thread owns the connection that writes. It takes every unit that waits, applies all of them in one transaction and
//! answers them after its fsync (group commit), so that 32 clients pay for one fsync together. Units are applied in the order
//! in which they were sent. A few more connections read, each seeing what was committed when its query began.
//!
//! A unit that nobody waits for is kept for at most two milliseconds, until another comes that cannot wait.
//!
//! There are two kinds of units. A *request* ([`Store::commit`]) may be refused: its sender hears of it and nothing has
//! happened. A *fact* ([`Store::record`]) has happened already (a process ended): it is kept and tried again until the disk
//! takes it, and [`Store::is_committing`] reads false meanwhile, so that nobody starts anything new.

mod apply;
mod attempts;
mod backup;
mod change;
mod checkpoint;
mod counters;
mod history;
mod keys;
mod list;
mod reader;
mod room;
mod row;
mod schema;
mod submit;
mod texts;
mod writer;

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, ErrorCode};
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};

pub use attempts::{AttemptRecord, Phase, UnsettledAttempt};
pub use backup::{BackupError, backup};
pub use change::{
    BodyHash, Change, Delivery, DeliveryId, DeliveryStatus, End, Event, NewDelivery, NewJob, NewToken, NextAttempt,
    Scope,
};
pub use counters::{BOUNDS, Counted, Histogram};
pub use history::{AuditRecord, DeliveryFilter, EndedJob, HandoverRecord, Oldest, RemovedJob};
pub use keys::{KnownKey, NewKey};
pub use list::{Cursor, JobFilter, Page};
pub use reader::{Course, Kind, QueuedJob, Token};
pub use texts::JobTexts;

/// Units that may wait for the writer. A sender past it waits in turn, which holds submissions back when the disk is slow.
const WAITING_UNITS: usize = 4096;

/// Events a subscriber may be behind before it has to read them from the store.
const EVENTS_BEHIND: usize = 4096;

/// The database. Clones share it.
#[derive(Clone)]
pub struct Store {
    units: mpsc::Sender<writer::Unit>,
    readers: Arc<reader::Readers>,
    /// One connection for the queue alone.
    starting: Arc<reader::Readers>,
    events: broadcast::Sender<Arc<Event>>,
    deliveries_added: Arc<Notify>,
    committing: watch::Receiver<bool>,
    job_ended: Arc<Notify>,
    counters: Arc<counters::Counters>,
}

impl Store {
    /// Opens the database at `path`, creating or migrating it, and starts its writer.
    ///
    /// # Errors
    /// When the file cannot be opened, is damaged, or was written by a newer Taxiway.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let at = |source| OpenError::Sqlite { path: path.to_owned(), source };
        private(path).map_err(|source| OpenError::Create { path: path.to_owned(), source })?;
        let mut connection = Connection::open(path).map_err(at)?;
        schema::configure(&connection).map_err(at)?;
        schema::migrate(&mut connection)?;
        connection.execute_batch(history::REMEMBERED).map_err(at)?;
        room::reserve(&mut connection, path).map_err(at)?;
        let turn = checkpoint::start(&mut connection, path)?;
        let (units, waiting) = mpsc::channel(WAITING_UNITS);
        let (events, _) = broadcast::channel(EVENTS_BEHIND);
        let (deliveries_added, job_ended) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let counters = Arc::new(counters::Counters::default());
        let (health, committing) = watch::channel(true);
        let writer = writer::Writer {
            connection,
            turn,
            events: events.clone(),
            deliveries_added: deliveries_added.clone(),
            job_ended: job_ended.clone(),
            counters: counters.clone(),
            health,
        };
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || crate::vital::thread("the thread that writes the database", || writer.run(waiting)))
            .map_err(OpenError::Thread)?;
        let readers = Arc::new(reader::Readers::open(path, reader::READERS).map_err(at)?);
        let starting = Arc::new(reader::Readers::open(path, 1).map_err(at)?);
        Ok(Self { units, readers, starting, events, deliveries_added, committing, job_ended, counters })
    }

    /// Makes these changes durable, all or none, and returns after their fsync.
    ///
    /// # Errors
    /// When they are refused or the disk does not take them; then none of them has happened.
    pub async fn commit(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        self.send(changes, false, false).await?.durable().await
    }

    /// The same for what nobody waits for: it may take two milliseconds more, in which other units join it in its commit.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub async fn commit_soon(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        self.send(changes, false, true).await?.durable().await
    }

    /// Records what has happened already, in one transaction: it is tried again until the disk takes it. Returns as soon as it
    /// is on its way, in the order of the calls; the answer comes when it is durable. A change that does not fit what is stored
    /// is left out, which the answer tells.
    ///
    /// # Errors
    /// Only when the writer has stopped.
    pub async fn record(&self, changes: Vec<Change>) -> Result<Answer, StoreError> {
        self.send(changes, true, false).await
    }

    /// The same for what nobody waits for: it may take two milliseconds more, in which other units join it in its commit.
    ///
    /// # Errors
    /// As [`Store::record`].
    pub async fn record_soon(&self, changes: Vec<Change>) -> Result<Answer, StoreError> {
        self.send(changes, true, true).await
    }

    async fn send(&self, changes: Vec<Change>, fact: bool, can_wait: bool) -> Result<Answer, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.units.send(writer::Unit { changes, fact, can_wait, reply }).await.map_err(|_| StoreError::Stopped)?;
        Ok(Answer(answer))
    }

    /// Whether the last commit succeeded. While it reads false, facts wait to be written and nothing new may start.
    #[must_use]
    pub fn is_committing(&self) -> bool {
        *self.committing.borrow()
    }

    /// The same as an event.
    #[must_use]
    pub fn committing(&self) -> watch::Receiver<bool> {
        self.committing.clone()
    }

    /// Events from now on, in the order of their commits, each after its fsync. To miss nothing, subscribe first and then
    /// read what came before with [`Store::events_after`].
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Arc<Event>> {
        self.events.subscribe()
    }

    /// Notified after a commit with which a job ended.
    #[must_use]
    pub fn job_ended(&self) -> &Notify {
        &self.job_ended
    }

    /// What was written since the start.
    #[must_use]
    pub fn counted(&self) -> Counted {
        self.counters.read()
    }

    /// Notified after a commit that added deliveries.
    #[must_use]
    pub fn deliveries_added(&self) -> &Notify {
        &self.deliveries_added
    }
}

/// Makes the file its owner's alone before anything is in it: secrets of jobs will be. SQLite gives its other files the same
/// mode (sqlite.org/walformat.html). Called before the first connection: to close the file later would drop SQLite's locks on it
/// (fcntl_locking(2)).
fn private(path: &Path) -> std::io::Result<()> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let mode = file.metadata()?.permissions().mode();
    if mode & 0o077 == 0 { Ok(()) } else { file.set_permissions(Permissions::from_mode(mode & 0o700)) }
}

/// A new file that is its owner's alone.
fn private_new(path: &Path) -> std::io::Result<()> {
    OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?.sync_all()
}

/// The writer's answer to come.
pub struct Answer(oneshot::Receiver<Result<(), StoreError>>);

impl Answer {
    /// Waits until the changes are durable.
    ///
    /// # Errors
    /// When they were refused.
    pub async fn durable(self) -> Result<(), StoreError> {
        self.0.await.map_err(|_| StoreError::Stopped)?
    }
}

/// The database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// SQLite says why.
    #[error("could not open the database {}: {source}; check that the file and its directory belong to this user and that the disk is not full", path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// The file cannot be made, or made its owner's alone.
    #[error("could not create the database {}: {source}; check that its directory belongs to this user and that the disk is not full", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A migration failed; the file is as it was.
    #[error("could not bring the database to this version's schema: {0}; the file is unchanged")]
    Migration(#[from] rusqlite::Error),
    /// A newer Taxiway has written the file.
    #[error(
        "the database has schema version {found}, and this Taxiway knows versions up to {known}; start the newer Taxiway, or restore a backup made before the upgrade"
    )]
    Newer {
        /// The file's version.
        found: usize,
        /// The newest version known.
        known: usize,
    },
    /// The writer's thread could not be started.
    #[error("could not start the database's thread: {0}")]
    Thread(std::io::Error),
}

/// A change or a query failed; nothing has happened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Another job has this external id.
    #[error("another job has this external id")]
    DuplicateExternalId,
    /// A request was accepted under this Idempotency-Key already.
    #[error("a request with this Idempotency-Key was accepted before")]
    KeyTaken,
    /// The disk is full.
    #[error("the disk that holds the database is full")]
    Full,
    /// The disk or file refused; it may work again later.
    #[error("the database cannot be written or read just now: {0}")]
    Unavailable(String),
    /// The change does not fit what is stored. Taxiway's own mistake.
    #[error("the change does not fit what is stored: {0}")]
    Conflict(String),
    /// What one row holds makes no sense. The others are as they were.
    #[error("what the database holds of it cannot be read: {0}")]
    Unreadable(String),
    /// The writer has stopped.
    #[error("the service is stopping")]
    Stopped,
}

impl StoreError {
    /// Whether the disk or the file is at fault, and not the change.
    pub(crate) fn is_the_disk_s(&self) -> bool {
        matches!(self, Self::Full | Self::Unavailable(_))
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        if let rusqlite::Error::SqliteFailure(failure, message) = &error {
            let text = message.as_deref().unwrap_or_default();
            return match failure.code {
                ErrorCode::DiskFull => Self::Full,
                ErrorCode::ConstraintViolation if text.contains("external_id") => Self::DuplicateExternalId,
                ErrorCode::ConstraintViolation if text.contains("idempotency_keys") => Self::KeyTaken,
                // The change itself is at fault: trying it again would fail for ever.
                ErrorCode::ConstraintViolation
                | ErrorCode::TooBig
                | ErrorCode::TypeMismatch
                | ErrorCode::ParameterOutOfRange
                | ErrorCode::ApiMisuse => Self::Conflict(error.to_string()),
                _ => Self::Unavailable(error.to_string()),
            };
        }
        if let rusqlite::Error::FromSqlConversionFailure(_, _, error) = error {
            return Self::Unreadable(error.to_string());
        }
        // Everything else is between rusqlite and its caller: a row that is not there, say.
        Self::Conflict(error.to_string())
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::{job_at as test_job, new_job as test_new_job};
