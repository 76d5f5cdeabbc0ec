//! Where busy guests go. A call starts on the caller's thread, because almost every call is over within microseconds; one that
//! is still computing after a few ticks of the clock, or that asks for much memory, goes on on a thread of its own with a lower
//! priority, where it stands in the way of nobody: not of the runtime that answers requests, and not of other busy guests.
//!
//! A step that nothing can interrupt, such as filling all of a guest's memory, so keeps no thread but its own. That of making its
//! instances comes before anything else and asks nobody: so the calls of a plugin begin apart until one of them has
//! shown that they [are short](Steps). There are never more of these threads than places for calls.
//!
//! Making instances takes and returns memory all the time. A thread that has to wait for a core while it does so would keep
//! others from that meanwhile (mmap_lock). So only the guest's own code runs at the lower priority: the call [tells](guest_goes_on) when that
//! is its turn, and where more instances are to be made after it (a module's start function comes between them) they are made on
//! [another thread](needs_another_thread), since a priority that was lowered cannot be raised. Of a plugin whose calls begin apart
//! one call at a time makes [its own](crate::places::Making).
//!
//! Such a thread waits in [a runtime of its own kind](Waiting), since whatever threads it makes stand as it does.

mod waiting;

pub use waiting::Waiting;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nix::time::{ClockId, clock_gettime};
use std::cell::Cell;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::thread;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tracing::{Instrument, Span};

/// How far behind the service a busy guest stands on a contended core (`nice`, setpriority(2)): it gets about a tenth.
const BUSY: libc::c_int = 10;

/// How far behind everything one stands that goes on computing: a seventieth, so that forty guests that never end leave a job's
/// processes most of the machine.
const BUSIEST: libc::c_int = 19;

/// Processor time after which a guest is one that goes on computing: Python's interpreter starts within it.
const LONG: Duration = Duration::from_millis(250);

/// The longest step, in processor time, that a caller's thread is lent for: as long as the turns of a guest that computes there.
const SHORT: Duration = Duration::from_millis(4);

/// Why a call that went apart has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// It panicked; standard error says how.
    #[error("it panicked")]
    Panicked,
    /// The system has no thread to give.
    #[error("there is no thread for it: {0}; raise the limit of processes")]
    NoThread(#[from] std::io::Error),
}

/// Whether a plugin's calls may begin on the caller's thread: not before one of them has come to a good end within [`SHORT`], and
/// not after one has held such a thread for longer than that. One that failed shows nothing, since it may not have come to what takes
/// long; and the whole of it counts, since a guest may pause between steps that are one at another time.
#[derive(Debug, Default)]
pub struct Steps {
    short: AtomicBool,
}

impl Steps {
    pub fn are_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    fn took_here(&self, step: Duration) {
        if step >= SHORT {
            self.short.store(false, Ordering::Relaxed);
        }
    }

    fn ended_well_after(&self, all: Duration) {
        if all < SHORT {
            self.short.store(true, Ordering::Relaxed);
        }
    }
}

/// A call: its answer, and what it held.
type Call<T, E, H> = BoxFuture<'static, (Result<T, E>, H)>;

/// Runs a call here as long as it is quick or asleep, and on a thread of its own as soon as `busy` is set; from its beginning there
/// when the plugin's `steps` are not known to be short. Beside its answer it hands over what it held, which is dropped
/// before the answer is passed on, or after that if the call went apart. Dropping the returned future ends the call.
///
/// # Errors
/// When the call panicked on its own thread, or there is none. A panic here unwinds.
pub async fn run<T, E, H>(
    mut call: Call<T, E, H>,
    busy: &AtomicBool,
    steps: &Steps,
    waiting: &Arc<Waiting>,
) -> Result<Result<T, E>, Lost>
where
    T: Send + 'static,
    E: Send + 'static,
    H: Send + 'static,
{
    if !steps.are_short() {
        let (answer, spent) = go_on(call, waiting).await?;
        if answer.is_ok() {
            steps.ended_well_after(spent);
        }
        return Ok(answer);
    }
    let early = poll_fn(|cx| {
        let begun = processor_time();
        let polled = call.as_mut().poll(cx);
        steps.took_here(processor_time().saturating_sub(begun));
        match polled {
            Poll::Ready((answer, _held)) => Poll::Ready(Some(answer)),
            Poll::Pending if busy.load(Ordering::Relaxed) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    match early {
        Some(answer) => Ok(answer),
        None => go_on(call, waiting).await.map(|(answer, _)| answer),
    }
}

/// What a thread of a call's own has to say in the end, with the processor time that the call has had apart.
enum Said<T: Send + 'static, E: Send + 'static, H: Send + 'static> {
    Ended(Result<T, E>, GivenBack<H>, Duration),
    /// It goes on on another thread, at the usual priority.
    Leaves(GivenBack<Call<T, E, H>>, Duration),
}

/// Runs a call on a thread of its own, and on others after that. Tells its processor time, too.
async fn go_on<T, E, H>(call: Call<T, E, H>, waiting: &Arc<Waiting>) -> Result<(Result<T, E>, Duration), Lost>
where
    T: Send + 'static,
    E: Send + 'static,
    H: Send + 'static,
{
    let mut call = GivenBack::new(call.instrument(Span::current()).boxed(), Handle::current());
    let mut spent = Duration::ZERO;
    loop {
        let (caller, said) = oneshot::channel();
        let waiting = waiting.clone();
        thread::Builder::new().name("plugin-call".into()).spawn(move || {
            waiting.block_on(go_on_here(call, spent, caller));
        })?;
        // Dropped without a word only when the thread unwinds.
        match said.await.map_err(|_| Lost::Panicked)? {
            Said::Ended(answer, _held, spent) => return Ok((answer, spent)),
            Said::Leaves(left, so_far) => (call, spent) = (left, so_far),
        }
    }
}

/// The call, on a thread that is nobody else's and never used again, and begins at the usual priority.
async fn go_on_here<T, E, H>(
    call: GivenBack<Call<T, E, H>>,
    before: Duration,
    mut caller: oneshot::Sender<Said<T, E, H>>,
) where
    T: Send + 'static,
    E: Send + 'static,
    H: Send + 'static,
{
    STANDS.set(Stands::Usual);
    let service = call.service.clone();
    let mut call = call.taken();
    let mut goes_on = false;
    let ended = poll_fn(|cx| {
        if caller.poll_closed(cx).is_ready() {
            return Poll::Ready(None);
        }
        let polled = call.as_mut().poll(cx);
        if polled.is_ready() || STANDS.get() == Stands::Leaves {
            return Poll::Ready(Some(polled));
        }
        if !goes_on && STANDS.get() == Stands::Behind && before + processor_time() > LONG {
            goes_on = true;
            stand_behind(BUSIEST);
        }
        Poll::Pending
    })
    .await;
    let spent = before + processor_time();
    let said = match ended {
        Some(Poll::Ready((answer, held))) => Said::Ended(answer, GivenBack::new(held, service), spent),
        Some(Poll::Pending) => Said::Leaves(GivenBack::new(call, service), spent),
        None => return drop(GivenBack::new(call, service)),
    };
    // An error means that nobody waits for it any more.
    drop(caller.send(said));
}

/// Something that may hold a guest's memory. It is dropped where that keeps nobody: up to some 20 ms of work, and on a thread
/// that had to wait for a core it would keep others from having or giving back memory meanwhile (mmap_lock).
struct GivenBack<V: Send + 'static> {
    value: Option<V>,
    /// Where nobody's priority is low.
    service: Handle,
}

impl<V: Send + 'static> GivenBack<V> {
    fn new(value: V, service: Handle) -> GivenBack<V> {
        GivenBack { value: Some(value), service }
    }

    fn taken(mut self) -> V {
        // Nothing else takes it but the drop, and either is the end of this.
        self.value.take().expect("it is there until it is taken")
    }
}

impl<V: Send + 'static> Drop for GivenBack<V> {
    fn drop(&mut self) {
        let Some(value) = self.value.take() else { return };
        // By way of the runtime's own threads: one that this thread made would inherit its priority.
        self.service.spawn(async move { drop(tokio::task::spawn_blocking(move || give_back(value))) });
    }
}

/// Drops what a call held, all of its memory above all. One after the other, so that however many calls end at once, one core at
/// most is busy with what they held.
fn give_back(held: impl Send) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    // Nothing is half done when a holder panics: it guards no data.
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    drop(held);
}

/// How a thread stands among the others.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stands {
    /// It is the caller's: nothing is changed of it.
    Callers,
    /// A call's own, at the usual priority.
    Usual,
    /// A call's own, behind others.
    Behind,
    /// The same, and what its call does next is not for such a thread.
    Leaves,
}

thread_local! {
    static STANDS: Cell<Stands> = const { Cell::new(Stands::Callers) };
}

/// The call that is polled goes on with its guest's code.
pub fn guest_goes_on() {
    if STANDS.get() == Stands::Usual {
        stand_behind(BUSY);
        STANDS.set(Stands::Behind);
    }
}

/// The call that is polled comes to what must not be done on a thread that stands behind others. Whether it has to pause for that: it
/// goes on elsewhere.
pub fn needs_another_thread() -> bool {
    let stands_behind = STANDS.get() == Stands::Behind;
    if stands_behind {
        STANDS.set(Stands::Leaves);
    }
    stands_behind
}

fn stand_behind(niceness: libc::c_int) {
    // SAFETY: setpriority takes plain numbers and changes nothing but the calling thread's niceness (Linux: who = 0 is the
    // calling thread).
    let changed = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, niceness) };
    if changed != 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "a busy plugin's thread keeps its priority");
    }
}

/// The processor time of this thread. Zero where the system does not tell.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
pub mod tests;
