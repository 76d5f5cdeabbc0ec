//! When a guest hands its thread back, so that others have their turn and its deadline is looked at: after each tick of the
//! clock, on its next return from the host.
//!
//! A guest that loops or calls its own functions comes to the host by itself: the epoch sends it there. One that only calls the
//! host, one call after the other, is there anyway. So this one place sees them all.

use crate::state::State;
use crate::ticker::Ticks;
use async_trait::async_trait;
use wasmtime::{CallHook, CallHookHandler, StoreContextMut};

/// Turns of one tick that a call may have on the caller's thread before it belongs [apart](crate::apart). One tick can fall into
/// any call, and a move costs a plugin of a few milliseconds more than it spares; eight hostile guests at once hold two threads for
/// 16 ms.
const TURNS_HERE: u32 = 4;

/// How a call stands with the clock.
pub struct Turn {
    ticks: Ticks,
    /// The tick in which it began.
    begun: u64,
    /// Turns so far.
    count: u32,
}

impl Turn {
    pub fn first(ticks: Ticks) -> Turn {
        Turn { begun: ticks.now(), ticks, count: 0 }
    }

    /// Whether it is over. Then the next one begins.
    fn is_over(&mut self) -> bool {
        let now = self.ticks.now();
        if now == self.begun {
            return false;
        }
        self.begun = now;
        self.count = self.count.saturating_add(1);
        true
    }

    /// Whether the call computes for longer than a moment.
    fn is_one_of_many(&self) -> bool {
        self.count >= TURNS_HERE
    }
}

/// Ends the turns of one store's guest.
pub struct Turns;

#[async_trait]
impl CallHookHandler<State> for Turns {
    async fn handle_call_event(&self, mut store: StoreContextMut<'_, State>, hook: CallHook) -> wasmtime::Result<()> {
        if matches!(hook, CallHook::ReturningFromHost) {
            let state = store.data_mut();
            if state.turn.is_over() {
                if state.turn.is_one_of_many() {
                    state.trace.set_busy();
                }
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }
}
