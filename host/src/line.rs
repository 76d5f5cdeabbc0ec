//! A runtime with one thread that the queue and the launcher have for themselves.
//!
//! What lies between two jobs takes a fraction of a millisecond, and writing out a thousand jobs for whoever asks for them takes
//! several. On one runtime the one would wait behind the other whenever all threads are busy answering.

use std::future::Future;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinError;

/// Turns of tasks between two looks for what shims have to say. A look costs a microsecond; tokio's own number is 61, and a turn of the
/// owner may take in 64 submissions.
const LOOK_EVERY: u32 = 8;

/// How long what is being done may take when it is to end. A call of a file system that hangs never does.
const LAST_TURN: Duration = Duration::from_secs(5);

/// The runtime. One that is dropped and was not [ended](Line::end) is left alone: its work stops anywhere, as when the process is
/// killed.
pub(crate) struct Line {
    handle: Handle,
    /// There until the drop takes it.
    runtime: Option<Runtime>,
}

impl Line {
    /// Starts its thread, which is called `queue`, as are those on which it waits for the disk.
    ///
    /// # Errors
    /// When the system gives no thread or no descriptors.
    pub(crate) fn start() -> std::io::Result<Self> {
        let mut builder = Builder::new_multi_thread();
        // While submissions keep the thread busy, it looks every so many turns whether a shim has something to say.
        builder.worker_threads(1).thread_name("queue").enable_all().event_interval(LOOK_EVERY);
        let runtime = builder.build()?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    /// Has this run there, with everything that it spawns.
    ///
    /// # Errors
    /// When it panics.
    pub(crate) async fn run<T>(&self, work: impl Future<Output = T> + Send + 'static) -> Result<T, JoinError>
    where
        T: Send + 'static,
    {
        self.handle.spawn(work).await
    }

    /// Ends what runs there, each at its next wait. What does not come to one within [`LAST_TURN`] is left alone.
    pub(crate) async fn end(mut self) {
        if let Some(runtime) = self.runtime.take() {
            // An error means that the other runtime ends, too.
            let _ = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(LAST_TURN)).await;
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Not waited for: it is dropped on another runtime, whose threads must not block.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A broken line fails its test and does not hang it.
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn the_line_goes_on_while_every_other_thread_is_busy() {
        let line = Line::start().expect("a runtime");
        let (say, said) = std::sync::mpsc::channel();
        let spawned = line.run(async move {
            tokio::spawn(async move {
                tokio::task::yield_now().await;
                say.send(std::thread::current().name().map(str::to_owned))
            });
        });
        spawned.await.expect("no panic");
        // This test's runtime has one thread, which waits here without giving way.
        assert_eq!(said.recv_timeout(LONG).expect("it is said").as_deref(), Some("queue"));
    }

    #[tokio::test]
    async fn what_runs_there_ends_with_it() {
        for in_order in [true, false] {
            let line = Line::start().expect("a runtime");
            let (lives, gone) = tokio::sync::oneshot::channel::<()>();
            let forever = async move {
                let _lives = lives;
                std::future::pending::<()>().await;
            };
            line.run(async move { drop(tokio::spawn(forever)) }).await.expect("no panic");
            match in_order {
                true => line.end().await,
                false => drop(line),
            }
            let gone = tokio::time::timeout(LONG, gone).await.expect("it ends");
            assert!(gone.is_err(), "nothing was said");
        }
    }

    #[tokio::test]
    async fn a_turn_is_finished_before_the_line_ends() {
        let line = Line::start().expect("a runtime");
        let (begin, begun) = tokio::sync::oneshot::channel();
        let (wait, waited) = std::sync::mpsc::channel::<()>();
        let (finish, finished) = std::sync::mpsc::channel();
        let turn = async move {
            let _ = begin.send(());
            // Whoever ends the line lets go of the other end.
            let _ = waited.recv_timeout(LONG);
            let _ = finish.send(());
        };
        line.run(async move { drop(tokio::spawn(turn)) }).await.expect("no panic");
        begun.await.expect("it begins");
        tokio::join!(line.end(), async move { drop(wait) });
        assert!(finished.try_recv().is_ok(), "it was cut off");
    }
}
