//! Where busy guests go. A call starts on the caller's thread, because almost every call is over within microseconds;
//! one that is still computing after a few ticks of the clock moves to threads of its own, with a lower priority, so that it never
//! stands in the way of the runtime that answers requests.

use futures_util::future::BoxFuture;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinError, JoinHandle};

/// How much less of a contended core the lane gets than the service (`nice`, setpriority(2)): about a tenth.
const NICENESS: libc::c_int = 10;

/// Threads for busy guests.
pub struct Lane {
    /// None only while dropping.
    runtime: Option<Runtime>,
}

impl Lane {
    /// Starts the threads: one for every two cores.
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

    /// Runs a call here as long as it is quick or asleep, on the lane as soon as `busy` is set. Dropping the returned
    /// future ends the call.
    ///
    /// # Errors
    /// When the call panicked on the lane. A panic here unwinds.
    pub async fn run<T: Send + 'static>(
        &self,
        mut call: BoxFuture<'static, T>,
        busy: &AtomicBool,
    ) -> Result<T, JoinError> {
        let early = poll_fn(|cx| match call.as_mut().poll(cx) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending if busy.load(Ordering::Relaxed) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await;
        match (early, &self.runtime) {
            (Some(answer), _) => Ok(answer),
            (None, Some(runtime)) => {
                let mut moved = Moved(runtime.spawn(call));
                (&mut moved.0).await
            }
            (None, None) => Ok(call.await),
        }
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
