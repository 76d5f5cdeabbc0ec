//! The clock that interrupts busy guests. It runs only while a call is live: an idle service wakes for nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;
use wasmtime::Engine;

/// The time a guest may run before it hands its thread back. Short enough that a dozen busy guests delay others by less
/// than 25 ms; long enough that switching (some microseconds) costs less than one part in a hundred.
pub const TICK: Duration = Duration::from_millis(1);

/// The epoch clock of one engine. A thread of its own, because the runtime's threads may all be busy with guests.
pub struct Ticker {
    shared: Arc<Shared>,
    thread: Thread,
}

struct Shared {
    ticks: AtomicU64,
    live: AtomicUsize,
    parked: AtomicBool,
    ended: AtomicBool,
}

/// Reads the clock.
#[derive(Clone)]
pub struct Ticks(Arc<Shared>);

impl Ticks {
    /// Ticks so far.
    pub fn now(&self) -> u64 {
        self.0.ticks.load(Ordering::Relaxed)
    }
}

/// Keeps the clock running while it lives.
pub struct Ticking(Arc<Shared>);

impl Ticker {
    /// Starts the clock's thread, parked.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(engine: Engine) -> std::io::Result<Ticker> {
        let shared = Arc::new(Shared {
            ticks: AtomicU64::new(0),
            live: AtomicUsize::new(0),
            parked: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let seen = shared.clone();
        let thread = thread::Builder::new().name("plugin-ticker".into()).spawn(move || tick(&engine, &seen))?;
        Ok(Ticker { thread: thread.thread().clone(), shared })
    }

    /// A reader of the clock.
    pub fn ticks(&self) -> Ticks {
        Ticks(self.shared.clone())
    }

    /// Counts a call as live until the guard is dropped.
    pub fn live(&self) -> Ticking {
        self.shared.live.fetch_add(1, Ordering::SeqCst);
        if self.shared.parked.load(Ordering::SeqCst) {
            self.thread.unpark();
        }
        Ticking(self.shared.clone())
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::SeqCst);
    }
}

fn tick(engine: &Engine, shared: &Shared) {
    while !shared.ended.load(Ordering::SeqCst) {
        if shared.live.load(Ordering::SeqCst) == 0 {
            // Announced before looking again: a call that comes in between sees the flag and unparks.
            shared.parked.store(true, Ordering::SeqCst);
            if shared.live.load(Ordering::SeqCst) == 0 && !shared.ended.load(Ordering::SeqCst) {
                thread::park();
            }
            shared.parked.store(false, Ordering::SeqCst);
            continue;
        }
        thread::park_timeout(TICK);
        // Before the epoch: a guest that the epoch sends to the host finds its turn over.
        shared.ticks.fetch_add(1, Ordering::Relaxed);
        engine.increment_epoch();
    }
}
