//! The thread that writes: what it commits together, and what it does where the disk refuses.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction};
use taxiway_job::Time;
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};

use super::apply::{Told, apply, apply_all};
use super::checkpoint::Turn;
use super::counters::Counters;
use super::{Change, Event, StoreError};

/// With how many changes a transaction takes no more units: bounds how long the first of them waits for its answer. It is what
/// the largest batch has, so that one of several such batches is answered while the next is being written.
const GROUP: usize = 1000;

/// How long the writer waits before it tries again to write facts that the disk refused: a compromise between noticing free
/// space soon and leaving a broken disk alone.
const RETRY: Duration = Duration::from_millis(250);

/// How long a unit that can wait is kept for others, so that they share a commit: longer than a short job and the hand-over to the
/// next, whose end is written then; too short for anybody to notice.
const PATIENCE: Duration = Duration::from_millis(2);

/// Changes that become durable together.
pub(super) struct Unit {
    /// What changes.
    pub(super) changes: Vec<Change>,
    /// It has happened already: the disk's refusal only delays it.
    pub(super) fact: bool,
    /// Nobody waits for it: it may be written with what comes next.
    pub(super) can_wait: bool,
    /// Where the answer goes.
    pub(super) reply: oneshot::Sender<Result<(), StoreError>>,
}

impl Unit {
    /// How much of a group it is.
    fn weight(&self) -> usize {
        self.changes.len().max(1)
    }
}

pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) turn: Arc<Turn>,
    pub(super) events: broadcast::Sender<Arc<Event>>,
    pub(super) deliveries_added: Arc<Notify>,
    pub(super) job_ended: Arc<Notify>,
    pub(super) counters: Arc<Counters>,
    pub(super) health: watch::Sender<bool>,
}

impl Writer {
    /// Writes until every sender is gone and everything sent is written.
    pub(super) fn run(mut self, mut units: mpsc::Receiver<Unit>) {
        let mut group: VecDeque<Unit> = VecDeque::new();
        loop {
            let new = group.is_empty();
            if new {
                match units.blocking_recv() {
                    Some(unit) => group.push_back(unit),
                    None => return,
                }
            }
            let mut changes: usize = group.iter().map(Unit::weight).sum();
            // With facts that the disk has refused, however many, requests that have come meanwhile hear at once how it stands.
            let room = if new { GROUP } else { usize::MAX };
            let patient_until = Instant::now() + PATIENCE;
            loop {
                while changes < room
                    && let Ok(unit) = units.try_recv()
                {
                    changes += unit.weight();
                    group.push_back(unit);
                }
                if changes >= GROUP || group.iter().any(|unit| !unit.can_wait) {
                    break;
                }
                match receive_until(&mut units, patient_until) {
                    Some(unit) => {
                        changes += unit.weight();
                        group.push_back(unit);
                    }
                    None => break,
                }
            }
            let began = Instant::now();
            match self.commit(&group) {
                Ok((results, told)) => {
                    self.counters.committed(group.len(), began.elapsed());
                    self.health.send_if_modified(|healthy| !std::mem::replace(healthy, true));
                    self.tell(told);
                    for (unit, result) in group.drain(..).zip(results) {
                        answer(unit, result);
                    }
                }
                Err(error) => {
                    tracing::error!(%error, units = group.len(), "could not commit");
                    self.counters.commit_failed();
                    self.health.send_if_modified(|healthy| std::mem::replace(healthy, false));
                    // Requests hear of it at once; facts stay, in order.
                    let (facts, requests): (VecDeque<Unit>, VecDeque<Unit>) =
                        group.drain(..).partition(|unit| unit.fact);
                    for unit in requests {
                        answer(unit, Err(error.clone()));
                    }
                    group = facts;
                    if group.is_empty() && error.is_the_disk_s() {
                        // Nothing is owed to the disk. Something small is, from now on, so that whoever asks is told the truth
                        // until the disk takes it.
                        group.push_back(probe());
                    }
                    if group.is_empty() {
                        self.health.send_if_modified(|healthy| !std::mem::replace(healthy, true));
                    } else {
                        // No event tells that a disk takes writes again, so this is a wait on time.
                        std::thread::sleep(RETRY);
                    }
                }
            }
        }
    }

    /// One transaction for the whole group. A unit that is refused leaves nothing behind and does not disturb the others.
    fn commit(&mut self, group: &VecDeque<Unit>) -> Result<(Vec<Result<(), StoreError>>, Told), StoreError> {
        let turn = self.turn.clone();
        let _turn = turn.of_the_writer();
        match self.commit_at_once(group) {
            Ok(told) => {
                for change in group.iter().flat_map(|unit| &unit.changes) {
                    self.counters.changed(change);
                }
                Ok((vec![Ok(()); group.len()], told))
            }
            Err(error) if error.is_the_disk_s() => Err(error),
            // One of them does not fit: which, and what is left of the rest, needs a look at each.
            Err(_) => self.commit_each(group),
        }
    }

    /// The same when every unit is right, as nearly always: without a savepoint for each, for which SQLite would copy every
    /// page that a unit touches.
    fn commit_at_once(&mut self, group: &VecDeque<Unit>) -> Result<Told, StoreError> {
        let transaction = Begun::new(&self.connection)?;
        let mut told = Told::default();
        apply_all(&self.connection, group.iter().flat_map(|unit| &unit.changes), &mut told)?;
        transaction.commit()?;
        Ok(told)
    }

    fn commit_each(&mut self, group: &VecDeque<Unit>) -> Result<(Vec<Result<(), StoreError>>, Told), StoreError> {
        let mut transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let mut told = Told::default();
        let mut results = Vec::with_capacity(group.len());
        let mut applied: Vec<&Change> = Vec::new();
        for unit in group {
            // A request stands or falls as a whole. Facts have happened: one that does not fit takes no other with it.
            let parts = if unit.fact { 1 } else { unit.changes.len().max(1) };
            let mut result = Ok(());
            for part in unit.changes.chunks(parts) {
                let events_before = told.events.len();
                let savepoint = transaction.savepoint()?;
                match part.iter().try_for_each(|change| apply(&savepoint, change, &mut told)) {
                    Ok(()) => {
                        savepoint.commit()?;
                        applied.extend(part);
                    }
                    // The disk's refusal concerns the whole group.
                    Err(error) if error.is_the_disk_s() => return Err(error),
                    Err(error) => {
                        drop(savepoint);
                        told.events.truncate(events_before);
                        result = Err(error);
                    }
                }
            }
            results.push(result);
        }
        Transaction::commit(transaction)?;
        for change in applied {
            self.counters.changed(change);
        }
        Ok((results, told))
    }

    fn tell(&self, told: Told) {
        // Checked after the commit: who subscribes from now on finds these events in the store.
        if self.events.receiver_count() > 0 {
            for event in told.events {
                // An error means that the last subscriber has just left.
                let _ = self.events.send(Arc::new(event));
            }
        }
        if told.deliveries {
            self.deliveries_added.notify_one();
        }
        if told.ended {
            self.job_ended.notify_one();
        }
    }
}

/// A transaction that is rolled back unless it is committed. Its own statements are read by SQLite once, those of
/// [`rusqlite::Transaction`] every time.
struct Begun<'a>(&'a Connection);

impl<'a> Begun<'a> {
    fn new(connection: &'a Connection) -> rusqlite::Result<Self> {
        connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        Ok(Self(connection))
    }

    fn commit(self) -> rusqlite::Result<()> {
        self.0.prepare_cached("COMMIT")?.execute([]).map(drop)
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        // SQLite rolls back by itself after some errors, and a commit leaves nothing to be.
        if !self.0.is_autocommit()
            && let Err(error) = self.0.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "a transaction could not be rolled back");
        }
    }
}

/// The next unit; none when none has come until then, or none will come any more.
fn receive_until(units: &mut mpsc::Receiver<Unit>, deadline: Instant) -> Option<Unit> {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        if let Poll::Ready(unit) = units.poll_recv(&mut Context::from_waker(&waker)) {
            return unit;
        }
        let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        std::thread::park_timeout(left);
    }
}

/// Wakes a thread that has parked.
struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// A fact that finds out whether the disk takes writes again. As long as it does not, nothing starts and the service is not
/// ready.
fn probe() -> Unit {
    let value = Time::now().as_millis().to_string();
    // Nobody waits for the answer.
    let changes = vec![Change::Setting { key: "disk_failed_at", value }];
    Unit { changes, fact: true, can_wait: false, reply: oneshot::channel().0 }
}

fn answer(unit: Unit, result: Result<(), StoreError>) {
    if unit.fact
        && let Err(error) = &result
    {
        tracing::error!(%error, changes = ?unit.changes, "a fact does not fit what is stored and was left out");
    }
    // An error means that the asker has gone away; what it asked for is done all the same.
    let _ = unit.reply.send(result);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::schema;

    #[tokio::test]
    async fn a_request_hears_of_a_full_disk_however_much_is_owed_to_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut connection = Connection::open(directory.path().join("taxiway.db")).expect("opens");
        schema::configure(&connection).expect("is configured");
        schema::migrate(&mut connection).expect("is migrated");
        let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0)).expect("a number");
        connection.query_row(&format!("PRAGMA max_page_count = {}", pages + 2), [], |_| Ok(())).expect("is set");
        let (units, waiting) = mpsc::channel(8);
        let writer = Writer {
            connection,
            turn: Arc::default(),
            events: broadcast::channel(1).0,
            deliveries_added: Arc::default(),
            job_ended: Arc::default(),
            counters: Arc::default(),
            health: watch::channel(true).0,
        };
        // What is owed is never written: it goes on trying until the process ends.
        std::thread::spawn(move || writer.run(waiting));
        let unit = |changes: usize, fact: bool| {
            let (reply, answer) = oneshot::channel();
            let setting = |_| Change::Setting { key: "key", value: "x".repeat(20_000) };
            (Unit { changes: (0..changes).map(setting).collect(), fact, can_wait: false, reply }, answer)
        };
        let (owed, _answer) = unit(GROUP + 1, true);
        assert!(units.send(owed).await.is_ok(), "it lives");
        for _ in 0..2 {
            let (request, answer) = unit(1, false);
            assert!(units.send(request).await.is_ok(), "it lives");
            let answer = tokio::time::timeout(Duration::from_secs(60), answer).await.expect("it is answered");
            assert!(matches!(answer, Ok(Err(StoreError::Full))), "{answer:?}");
        }
    }
}
