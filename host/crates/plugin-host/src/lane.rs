//! Where busy guests go. A call starts on the caller's thread, because almost every call is over within microseconds;
//! one that is still computing after a few ticks of the clock moves to threads of its own, with a lower priority, so that it never
//! stands in the way of the runtime that answers requests.
//!
//! Some instructions and host calls cannot be interrupted: filling or copying a hundred megabytes of memory is one step to
//! the clock. A plugin that was seen to keep a thread that long is [`Unyielding`]: from then on each of its calls has a thread
//! to itself from the start, where it keeps nobody but itself.

use futures_util::future::BoxFuture;
use nix::time::{ClockId, clock_gettime};
use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle};

/// How much less of a contended core the lane gets than the service (`nice`, setpriority(2)): about a tenth.
const NICENESS: libc::c_int = 10;

/// Processor time that a guest may take before it hands its thread back. The clock asks for it every millisecond; ten of them
/// tell what cannot be interrupted from a clock that is late, and delay others by less than 25 ms.
const LONGEST_TURN: Duration = Duration::from_millis(10);

/// Whether a plugin was seen to keep a thread for longer than [`LONGEST_TURN`]. Clones are the same.
#[derive(Clone, Default)]
pub struct Unyielding(Arc<AtomicBool>);

impl Unyielding {
    /// As if it had been seen: for a guest of which nothing is known yet.
    pub fn suspected() -> Unyielding {
        Unyielding(Arc::new(AtomicBool::new(true)))
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// The call, with each of its turns measured.
    fn watch<T: Send + 'static>(&self, mut call: BoxFuture<'static, T>) -> BoxFuture<'static, T> {
        let unyielding = self.clone();
        Box::pin(poll_fn(move |cx| {
            let begun = processor_time();
            let polled = call.as_mut().poll(cx);
            if processor_time().saturating_sub(begun) > LONGEST_TURN {
                unyielding.0.store(true, Ordering::Relaxed);
            }
            polled
        }))
    }
}

/// The processor time of this thread: a thread that waits for a core keeps nobody. Zero where the system does not tell.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Threads for busy guests.
pub struct Lane {
    /// None only while dropping.
    runtime: Option<Runtime>,
}

impl Lane {
    /// Starts the threads: one for every two cores. Those of unyielding plugins come and go.
    ///
    /// # Errors
    /// When the system has no threads to give.
    pub fn start() -> std::io::Result<Lane> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let runtime = Builder::new_multi_thread()
            .worker_threads(cores.div_ceil(2))
            .thread_name("plugin-lane")
            .enable_all()
            // Guests hold a thread for a whole tick: look at timers and sockets after every one of them.
            .event_interval(1)
            .on_thread_start(|| {
                // SAFETY: setpriority takes plain numbers and changes nothing but the calling thread's niceness
                // (Linux: who = 0 is the calling thread).
                let changed = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
                if changed != 0 {
                    tracing::debug!(error = %std::io::Error::last_os_error(), "the plugin lane keeps its priority");
                }
            })
            .build()?;
        Ok(Lane { runtime: Some(runtime) })
    }

    /// Runs a call here as long as it is quick or asleep, on the lane as soon as `busy` is set, and on a thread of its own as soon
    /// as its plugin is known as unyielding. Dropping the returned future ends the call.
    ///
    /// # Errors
    /// When the call panicked on another thread. A panic here unwinds.
    pub async fn run<T: Send + 'static>(
        &self,
        call: BoxFuture<'static, T>,
        busy: &AtomicBool,
        unyielding: &Unyielding,
    ) -> Result<T, JoinError> {
        let Some(runtime) = &self.runtime else { return Ok(call.await) };
        let mut call = unyielding.watch(call);
        if unyielding.is_set() {
            return apart(runtime, call).await;
        }
        let early = poll_fn(|cx| match call.as_mut().poll(cx) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending if busy.load(Ordering::Relaxed) || unyielding.is_set() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await;
        match early {
            Some(answer) => Ok(answer),
            None if unyielding.is_set() => apart(runtime, call).await,
            None => {
                let mut moved = Moved(runtime.spawn(call));
                (&mut moved.0).await
            }
        }
    }
}

/// Runs a call on a thread of its own. There are never more of them than places for calls.
async fn apart<T: Send + 'static>(runtime: &Runtime, call: BoxFuture<'static, T>) -> Result<T, JoinError> {
    let (waiting, left) = oneshot::channel::<()>();
    let handle = runtime.handle().clone();
    let thread = runtime.spawn_blocking(move || {
        handle.block_on(async {
            tokio::select! {
                answer = call => Some(answer),
                _ = left => None,
            }
        })
    });
    let answer = thread.await?;
    drop(waiting);
    match answer {
        Some(answer) => Ok(answer),
        // Only when nobody waits for it.
        None => pending().await,
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // The plain drop would wait, and may run inside another runtime, where waiting panics.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Ends the call when its caller does not wait for it any more.
struct Moved<T>(JoinHandle<T>);

impl<T> Drop for Moved<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::thread::{self, ThreadId};

    /// Says where it ran, after taking this much processor time in one turn.
    fn taking(time: Duration) -> BoxFuture<'static, ThreadId> {
        async move {
            let begun = processor_time();
            while processor_time() - begun < time {
                std::hint::spin_loop();
            }
            thread::current().id()
        }
        .boxed()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_plugin_that_once_kept_a_thread_has_threads_of_its_own_from_then_on() {
        let (lane, here) = (Lane::start().unwrap(), thread::current().id());
        let (guilty, innocent) = (Unyielding::default(), Unyielding::default());
        let busy = AtomicBool::new(false);
        assert_eq!(lane.run(taking(Duration::ZERO), &busy, &guilty).await.unwrap(), here);
        assert_eq!(lane.run(taking(2 * LONGEST_TURN), &busy, &guilty).await.unwrap(), here);
        for _ in 0..3 {
            assert_ne!(lane.run(taking(Duration::ZERO), &busy, &guilty).await.unwrap(), here);
            assert_eq!(lane.run(taking(Duration::ZERO), &busy, &innocent).await.unwrap(), here);
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_call_that_has_kept_its_thread_leaves_it_at_its_first_pause() {
        let (lane, here) = (Lane::start().unwrap(), thread::current().id());
        let busy = AtomicBool::new(false);
        let call = async move {
            let begun = taking(2 * LONGEST_TURN).await;
            tokio::task::yield_now().await;
            (begun, thread::current().id())
        };
        let (begun, ended) = lane.run(call.boxed(), &busy, &Unyielding::default()).await.unwrap();
        assert!(begun == here && ended != here);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn unyielding_calls_do_not_wait_for_each_other() {
        let lane = Lane::start().unwrap();
        let (suspected, busy) = (Unyielding::suspected(), AtomicBool::new(false));
        // More than the lane has threads, and none of them ends before all have begun.
        let all_there = Arc::new(std::sync::Barrier::new(20));
        let calls = (0..20).map(|_| {
            let all_there = all_there.clone();
            let call = async move { all_there.wait().is_leader() }.boxed();
            lane.run(call, &busy, &suspected)
        });
        let ended = futures_util::future::join_all(calls).await;
        assert_eq!(ended.into_iter().filter(|leads| *leads.as_ref().unwrap()).count(), 1);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_call_apart_ends_when_nobody_waits_for_it() {
        let lane = Lane::start().unwrap();
        let (ended, mut end) = tokio::sync::mpsc::unbounded_channel::<()>();
        let (suspected, busy) = (Unyielding::suspected(), AtomicBool::new(false));
        let call = async move {
            ended.send(()).unwrap();
            pending::<()>().await;
        };
        let mut waiting = lane.run(call.boxed(), &busy, &suspected).boxed_local();
        tokio::select! {
            _ = &mut waiting => unreachable!("it never ends by itself"),
            begun = end.recv() => assert_eq!(begun, Some(())),
        }
        drop(waiting);
        assert_eq!(end.recv().await, None, "what it held is dropped");
    }
}
