//! The one thread that reads NVML.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use tokio::sync::oneshot;

use super::nvml::{ReadError, Readings, Source};

/// How long an answer may take. A healthy driver needs a millisecond, one that initialises a GPU (without persistence mode)
/// up to two seconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Questions that may wait. More wait only when the driver hangs; then they are answered so at once.
const WAITING_QUESTIONS: usize = 32;

/// What is asked a session that works before it ends.
type LastQuestion = Box<dyn FnOnce(&dyn Readings) + Send>;
type Question = Box<dyn FnOnce(Result<&dyn Readings, ReadError>) + Send>;

enum Order {
    Answer(Question),
    /// Ask this, end the session and begin another one.
    BeginAnew(LastQuestion),
}

/// Hands questions to the thread. The thread ends when this is dropped.
pub(super) struct Reader {
    orders: SyncSender<Order>,
    patience: Duration,
}

impl Reader {
    pub(super) fn spawn(mut source: impl Source + 'static, patience: Duration) -> std::io::Result<Self> {
        let (orders, waiting): (_, Receiver<Order>) = sync_channel(WAITING_QUESTIONS);
        std::thread::Builder::new().name("gpu-reader".into()).spawn(move || {
            let mut more = true;
            while more {
                more = false;
                source.session(&mut |readings| {
                    for order in &waiting {
                        match order {
                            Order::Answer(question) => question(readings.clone()),
                            Order::BeginAnew(last) => {
                                if let Ok(readings) = &readings {
                                    last(*readings);
                                }
                                more = true;
                                return;
                            }
                        }
                    }
                });
            }
        })?;
        Ok(Self { orders, patience })
    }

    /// Has the thread end its session with NVML and begin another one before the next question: only then NVML tells of GPUs
    /// that came back. What the old session has not told of is lost with it: `last` is asked of it before. Left out when the thread is
    /// behind: it has no session that works then.
    pub(super) fn begin_anew(&self, last: impl FnOnce(&dyn Readings) + Send + 'static) {
        // An error means that it is behind, or has ended.
        let _ = self.orders.try_send(Order::BeginAnew(Box::new(last)));
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
        self.ask_for(self.patience, question).await
    }

    /// The same with another patience.
    pub(super) async fn ask_for<T, E>(
        &self,
        patience: Duration,
        question: impl FnOnce(&dyn Readings) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<ReadError> + Send + 'static,
    {
        let answer = self.send(question)?;
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(ReadError::Stopped.into()),
            Err(_) => Err(ReadError::NoAnswer.into()),
        }
    }

    fn send<T, E>(
        &self,
        question: impl FnOnce(&dyn Readings) -> Result<T, E> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T, E>>, E>
    where
        T: Send + 'static,
        E: From<ReadError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let question: Question = Box::new(move |readings| {
            // Whoever asked may have given up; then NVML need not be asked, and nobody takes the answer.
            if !reply.is_closed() {
                drop(reply.send(readings.map_err(E::from).and_then(question)));
            }
        });
        self.orders.try_send(Order::Answer(question)).map_err(|refused| match refused {
            TrySendError::Full(_) => ReadError::NoAnswer,
            TrySendError::Disconnected(_) => ReadError::Stopped,
        })?;
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::super::fault::Fault;
    use super::super::nvml::{ComputeProcess, Counters, Found, Memory, Sensors};
    use super::*;

    /// A driver that says when it is asked and answers when it is let go.
    struct Hanging {
        asked: Sender<()>,
        release: Receiver<()>,
    }

    impl Readings for Hanging {
        fn gpus(&self) -> Result<Found, ReadError> {
            Ok(Found::default())
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

        fn counters(&self, _: &str) -> Result<Counters, ReadError> {
            Ok(Counters::default())
        }

        fn sensors(&self, _: &str) -> Result<Sensors, ReadError> {
            Ok(Sensors::default())
        }

        fn faults(&self) -> Vec<Fault> {
            Vec::new()
        }
    }

    impl Source for Hanging {
        fn session(&mut self, serve: &mut dyn FnMut(Result<&dyn Readings, ReadError>)) {
            serve(Ok(self));
        }
    }

    #[tokio::test]
    async fn a_driver_that_hangs_makes_its_caller_give_up_and_is_not_asked_in_vain() {
        let (asked, asks) = channel();
        let (release, wait) = channel();
        let patience = Duration::from_millis(20);
        let mut reader = Reader::spawn(Hanging { asked, release: wait }, patience).expect("a thread");
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

    /// A driver that works in every second session.
    struct Flickering(u32);

    impl Source for Flickering {
        fn session(&mut self, serve: &mut dyn FnMut(Result<&dyn Readings, ReadError>)) {
            self.0 += 1;
            let (asked, _) = channel();
            let (_, release) = channel();
            match self.0 % 2 {
                0 => serve(Ok(&Hanging { asked, release })),
                _ => serve(Err(ReadError::Absent("no driver".into()))),
            }
        }
    }

    #[tokio::test]
    async fn what_a_session_cannot_answer_the_next_one_may() {
        let reader = Reader::spawn(Flickering(0), PATIENCE).expect("a thread");
        let ask = |readings: &dyn Readings| readings.gpus();
        assert_eq!(reader.ask(ask).await, Err(ReadError::Absent("no driver".into())));
        reader.begin_anew(|_| {});
        assert_eq!(reader.ask(ask).await, Ok(Found::default()));
        reader.begin_anew(|_| {});
        assert!(reader.ask(ask).await.is_err());
    }
}
