//! The one thread that reads NVML.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use tokio::sync::oneshot;

use super::nvml::{ReadError, Readings};

/// How long an answer may take. A healthy driver needs a millisecond, one that initialises a GPU (without persistence mode)
/// up to two seconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Questions that may wait. More wait only when the driver hangs; then they are answered so at once.
const WAITING_QUESTIONS: usize = 32;

type Question = Box<dyn FnOnce(&dyn Readings) + Send>;

/// Hands questions to the thread. The thread ends when this is dropped.
pub(super) struct Reader {
    questions: SyncSender<Question>,
    patience: Duration,
}

impl Reader {
    pub(super) fn spawn(readings: Box<dyn Readings>, patience: Duration) -> std::io::Result<Self> {
        let (questions, waiting): (_, Receiver<Question>) = sync_channel(WAITING_QUESTIONS);
        std::thread::Builder::new().name("gpu-reader".into()).spawn(move || {
            for question in waiting {
                question(readings.as_ref());
            }
        })?;
        Ok(Self { questions, patience })
    }

    /// Has the thread answer a question.
    pub(super) async fn ask<T, E>(
        &self,
        question: impl FnOnce(&dyn Readings) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<ReadError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let question: Question = Box::new(move |readings| {
            // Whoever asked may have given up; then NVML need not be asked, and nobody takes the answer.
            if !reply.is_closed() {
                drop(reply.send(question(readings)));
            }
        });
        self.questions.try_send(question).map_err(|refused| match refused {
            std::sync::mpsc::TrySendError::Full(_) => ReadError::NoAnswer,
            std::sync::mpsc::TrySendError::Disconnected(_) => ReadError::Stopped,
        })?;
        match tokio::time::timeout(self.patience, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(ReadError::Stopped.into()),
            Err(_) => Err(ReadError::NoAnswer.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::super::nvml::{ComputeProcess, Gpu, Memory};
    use super::*;

    /// A driver that says when it is asked and answers when it is let go.
    struct Hanging {
        asked: Sender<()>,
        release: Receiver<()>,
    }

    impl Readings for Hanging {
        fn gpus(&self) -> Result<Vec<Gpu>, ReadError> {
            Ok(Vec::new())
        }

        fn memory(&self, _: &str) -> Result<Memory, ReadError> {
            Err(ReadError::Gone)
        }

        fn compute_processes(&self, _: &str) -> Result<Vec<ComputeProcess>, ReadError> {
            self.asked.send(()).expect("the test listens");
            // An error means: no longer hanging.
            let _ = self.release.recv();
            Ok(Vec::new())
        }
    }

    #[tokio::test]
    async fn a_driver_that_hangs_makes_its_caller_give_up_and_is_not_asked_in_vain() {
        let (asked, asks) = channel();
        let (release, wait) = channel();
        let patience = Duration::from_millis(20);
        let mut reader = Reader::spawn(Box::new(Hanging { asked, release: wait }), patience).expect("a thread");
        let ask = |readings: &dyn Readings| readings.compute_processes("GPU-0");
        assert_eq!(reader.ask(ask).await, Err(ReadError::NoAnswer));
        asks.recv().expect("the first question has reached it");
        for _ in 0..WAITING_QUESTIONS + 3 {
            assert_eq!(reader.ask(ask).await, Err(ReadError::NoAnswer));
        }
        drop(release);
        reader.patience = Duration::from_secs(60);
        // The line of given-up questions may still be full at this instant.
        while reader.ask(ask).await.is_err() {
            tokio::task::yield_now().await;
        }
        asks.recv().expect("the last question has reached it");
        assert!(asks.try_recv().is_err(), "those that were given up have not");
    }
}
