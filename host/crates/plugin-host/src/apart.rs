//! Where busy guests go. A call starts on the caller's thread, because almost every call is over within microseconds; one that
//! is still computing after a few ticks of the clock, or that asks for much memory, goes on on a thread of its own with a lower
//! priority, where it stands in the way of nobody: not of the runtime that answers requests, and not of other busy guests.
//!
//! A step that nothing can interrupt, such as filling all of a guest's memory, so keeps no thread but its own. That of making its
//! instances comes before anything else and asks nobody: so the calls of a plugin begin apart until one of them has
//! shown that its [steps are short](Steps). There are never more of these threads than places for calls.

use futures_util::future::BoxFuture;
use nix::time::{ClockId, clock_gettime};
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

/// Whether a plugin's calls may begin on the caller's thread: not before one of them has come to its end without a long step.
#[derive(Debug, Default)]
pub struct Steps {
    short: AtomicBool,
}

impl Steps {
    fn are_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    fn took(&self, longest: Duration) {
        if longest < SHORT {
            self.short.store(true, Ordering::Relaxed);
        }
    }
}

/// Runs a call here as long as it is quick or asleep, and on a thread of its own as soon as `busy` is set; from its beginning there
/// when the plugin's `steps` are not known to be short. Beside its answer it hands over what it held, which is dropped
/// before the answer is passed on, or after that if the call went apart. Dropping the returned future ends the call.
///
/// # Errors
/// When the call panicked on its own thread, or there is none. A panic here unwinds.
pub async fn run<T: Send + 'static, H: Send + 'static>(
    mut call: BoxFuture<'static, (T, H)>,
    busy: &AtomicBool,
    steps: &Arc<Steps>,
) -> Result<T, Lost> {
    if !steps.are_short() {
        return go_on(call, Some(steps.clone())).await;
    }
    let early = poll_fn(|cx| match call.as_mut().poll(cx) {
        Poll::Ready((answer, _held)) => Poll::Ready(Some(answer)),
        Poll::Pending if busy.load(Ordering::Relaxed) => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await;
    match early {
        Some(answer) => Ok(answer),
        None => go_on(call, None).await,
    }
}

/// Runs a call on a thread of its own. `steps` learns how long its steps were.
async fn go_on<T: Send + 'static, H: Send + 'static>(
    call: BoxFuture<'static, (T, H)>,
    steps: Option<Arc<Steps>>,
) -> Result<T, Lost> {
    let (mut caller, answer) = oneshot::channel();
    let runtime = Handle::current();
    let span = Span::current();
    thread::Builder::new().name("plugin-call".into()).spawn(move || {
        let mut call = Box::pin(behind_others(call, steps).instrument(span));
        let ended = runtime.block_on(async {
            tokio::select! {
                biased;
                () = caller.closed() => None,
                ended = &mut call => Some(ended),
            }
        });
        // What it held is dropped on a thread of the usual priority: one that has to wait for a core would keep others from having or
        // giving back memory meanwhile (mmap_lock).
        match ended {
            Some((answer, held)) => {
                // An error means that nobody waits for it any more.
                drop(caller.send(answer));
                drop(runtime.spawn_blocking(move || give_back(held)));
            }
            None => drop(runtime.spawn_blocking(move || give_back(call))),
        }
    })?;
    // The sender is dropped without an answer only when the thread unwinds.
    answer.await.map_err(|_| Lost::Panicked)
}

/// Drops what a call held, all of its memory above all: up to some 20 ms of work. One after the other, so that however many calls
/// end at once, one core at most is busy with what they held.
fn give_back(held: impl Send) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    // Nothing is half done when a holder panics: it guards no data.
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    drop(held);
}

/// The call, on a thread that is nobody else's and never used again: a priority that was lowered cannot be raised.
async fn behind_others<T>(mut call: BoxFuture<'static, T>, steps: Option<Arc<Steps>>) -> T {
    // Making instances takes and returns memory all the time. A thread that has to wait for a core while it does so would keep others
    // from that meanwhile (mmap_lock), so it stands behind nobody in its first step, which is that one for nearly every plugin.
    let mut makes_instances = steps.is_some();
    if !makes_instances {
        stand_behind(BUSY);
    }
    let (mut goes_on, mut longest, mut before) = (false, Duration::ZERO, processor_time());
    poll_fn(move |cx| {
        let polled = call.as_mut().poll(cx);
        if std::mem::take(&mut makes_instances) {
            stand_behind(BUSY);
        }
        let now = processor_time();
        longest = longest.max(now.saturating_sub(before));
        before = now;
        if !goes_on && now > LONG {
            goes_on = true;
            stand_behind(BUSIEST);
        }
        if polled.is_ready() {
            steps.iter().for_each(|steps| steps.took(longest));
        }
        polled
    })
    .await
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
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use futures_util::future::{join_all, pending};
    use std::sync::Barrier;
    use std::thread::ThreadId;

    fn known_to_be_short() -> Arc<Steps> {
        Arc::new(Steps { short: AtomicBool::new(true) })
    }

    /// The thread that a call begins on, which computes there for so long without a pause.
    async fn begins_on(steps: &Arc<Steps>, computing: Duration) -> ThreadId {
        let call = async move {
            let until = processor_time() + computing;
            while processor_time() < until {
                std::hint::spin_loop();
            }
            (thread::current().id(), ())
        };
        run(call.boxed(), &AtomicBool::new(false), steps).await.unwrap()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn calls_begin_apart_until_one_has_shown_that_its_steps_are_short() {
        let here = thread::current().id();
        let steps = Arc::default();
        for _ in 0..3 {
            assert_ne!(begins_on(&steps, SHORT * 2).await, here);
        }
        assert_ne!(begins_on(&steps, Duration::ZERO).await, here, "nobody knew yet");
        assert_eq!(begins_on(&steps, Duration::ZERO).await, here);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_call_apart_is_in_the_span_of_its_caller() {
        // For all threads; another test of the same process may have done it.
        let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry());
        let call = async { (Span::current().id(), ()) };
        let span = tracing::info_span!("caller");
        let seen = run(call.boxed(), &AtomicBool::new(false), &Arc::default()).instrument(span.clone()).await.unwrap();
        assert!(seen.is_some() && seen == span.id());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_a_call_apart_held_is_given_back_after_its_answer() {
        struct Held(Arc<Barrier>);
        impl Drop for Held {
            fn drop(&mut self) {
                self.0.wait();
            }
        }
        let both = Arc::new(Barrier::new(2));
        let held = Held(both.clone());
        let answer = run(async { (7, held) }.boxed(), &AtomicBool::new(false), &Arc::default()).await;
        assert_eq!(answer.unwrap(), 7);
        // Giving back does not end before this.
        both.wait();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_call_stays_here_until_it_is_busy_and_pauses() {
        let here = thread::current().id();
        let busy = Arc::new(AtomicBool::new(false));
        let seen = busy.clone();
        let call = async move {
            let mut threads: Vec<ThreadId> = vec![thread::current().id()];
            tokio::task::yield_now().await;
            threads.push(thread::current().id());
            seen.store(true, Ordering::Relaxed);
            tokio::task::yield_now().await;
            threads.push(thread::current().id());
            (threads, ())
        };
        let threads = run(call.boxed(), &busy, &known_to_be_short()).await.unwrap();
        assert_eq!(threads[..2], [here, here]);
        assert_ne!(threads[2], here);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn busy_calls_do_not_wait_for_each_other() {
        let (busy, steps) = (AtomicBool::new(true), known_to_be_short());
        // None of them ends before all have got there, and each keeps its thread while it waits.
        let all_there = Arc::new(Barrier::new(20));
        let calls = (0..20).map(|_| {
            let all_there = all_there.clone();
            let call = async move {
                tokio::task::yield_now().await;
                (all_there.wait().is_leader(), ())
            };
            run(call.boxed(), &busy, &steps)
        });
        let ended = join_all(calls).await;
        assert_eq!(ended.into_iter().filter(|leads| *leads.as_ref().unwrap()).count(), 1);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_call_apart_ends_when_nobody_waits_for_it() {
        let (busy, steps) = (AtomicBool::new(true), known_to_be_short());
        let (ended, mut end) = tokio::sync::mpsc::channel::<()>(1);
        let call = async move {
            tokio::task::yield_now().await;
            ended.send(()).await.unwrap();
            pending::<((), ())>().await
        };
        let mut waiting = run(call.boxed(), &busy, &steps).boxed_local();
        tokio::select! {
            _ = &mut waiting => unreachable!("it never ends by itself"),
            begun = end.recv() => assert_eq!(begun, Some(())),
        }
        drop(waiting);
        assert_eq!(end.recv().await, None, "what it held is dropped");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_panic_apart_is_the_end_of_that_call_alone() {
        let (busy, steps) = (AtomicBool::new(true), known_to_be_short());
        let call = async {
            tokio::task::yield_now().await;
            panic!("a bug of the host's")
        };
        let lost: Result<(), Lost> = run::<(), ()>(call.boxed(), &busy, &steps).await;
        assert!(matches!(lost, Err(Lost::Panicked)));
    }
}
