//! Whose component is compiled next: one at a time, and first those that submissions wait for.

use std::sync::Arc;
use tokio::sync::{Mutex, MutexGuard, watch};

/// The turns of the one compiler.
pub struct Turns {
    compiling: Mutex<()>,
    /// How many loads go first, from before it is known whether they need the compiler until they have, or do not need, their code.
    first: watch::Sender<usize>,
}

/// The right to compile. There is one.
pub struct Turn<'a>(#[expect(dead_code, reason = "held, not read")] MutexGuard<'a, ()>);

/// While it lives, components of loads without one wait. A load that has one goes first.
pub struct First(Arc<Turns>);

impl Turns {
    pub fn new() -> Arc<Turns> {
        Arc::new(Turns { compiling: Mutex::new(()), first: watch::Sender::new(0) })
    }

    /// Lets one load go before those that have no such right.
    pub fn first(self: &Arc<Turns>) -> First {
        self.first.send_modify(|count| *count += 1);
        First(self.clone())
    }

    /// Waits for a turn.
    ///
    /// Cancel-safe: dropping the future gives up the place in the line.
    pub async fn take(&self, first: Option<&First>) -> Turn<'_> {
        if first.is_some() {
            return Turn(self.compiling.lock().await);
        }
        let mut going_first = self.first.subscribe();
        loop {
            // An error means that the sender is gone, which `self` keeps.
            let _ = going_first.wait_for(|count| *count == 0).await;
            let turn = self.compiling.lock().await;
            // One may have come while this waited for the compiler.
            if *going_first.borrow_and_update() == 0 {
                return Turn(turn);
            }
        }
    }
}

impl Drop for First {
    fn drop(&mut self) {
        self.0.first.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::pin::pin;

    #[tokio::test]
    async fn who_goes_first_passes_those_that_wait_already() {
        let turns = Turns::new();
        let under_way = turns.take(None).await;
        let mut waits = pin!(turns.take(None));
        assert!(waits.as_mut().now_or_never().is_none());
        let first = turns.first();
        let mut guard = Box::pin(turns.take(Some(&first)));
        assert!(guard.as_mut().now_or_never().is_none(), "nothing that is under way is ended");
        drop(under_way);
        assert!(waits.as_mut().now_or_never().is_none());
        drop(guard.as_mut().await);
        drop(guard);
        assert!(waits.as_mut().now_or_never().is_none(), "the guard has not loaded yet");
        drop(first);
        waits.await;
    }

    #[tokio::test]
    async fn nobody_compiles_before_it_is_known_whether_a_guard_needs_the_compiler() {
        let turns = Turns::new();
        let (first, second) = (turns.first(), turns.first());
        let mut waits = pin!(turns.take(None));
        assert!(waits.as_mut().now_or_never().is_none());
        drop(first);
        assert!(waits.as_mut().now_or_never().is_none());
        drop(second);
        waits.await;
    }
}
