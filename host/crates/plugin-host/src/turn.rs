//! When a guest hands its thread back, so that others have their turn and its deadline is looked at: after each tick of the
//! clock, on its next return from the host.
//!
//! A guest that loops or calls its own functions comes to the host by itself: the epoch sends it there. One that only calls the
//! host, one call after the other, is there anyway. So this one place sees them all; and it tells whoever has the call
//! [apart] when the guest's code runs and when its instances are made.

use crate::apart;
use crate::places::Making;
use crate::state::State;
use crate::ticker::Ticks;
use async_trait::async_trait;
use wasmtime::{CallHook, CallHookHandler, StoreContextMut};

/// Turns of one tick that a call may have on the caller's thread before it belongs [apart]. One tick can fall into
/// any call, and a move costs a plugin of a few milliseconds more than it spares; eight hostile guests at once hold two threads for
/// 16 ms.
const TURNS_HERE: u32 = 4;

/// How a call stands with the clock, and with its guest.
pub struct Turn {
    ticks: Ticks,
    /// The tick in which it began.
    begun: u64,
    /// Turns so far.
    count: u32,
    /// How often the guest has been entered and not left: a host call may enter it again, to have memory for an answer.
    depth: u32,
    instances_made: bool,
    /// None when instances are all made, or known to be made quickly.
    making: Option<Making>,
}

impl Turn {
    pub fn first(ticks: Ticks) -> Turn {
        Turn { begun: ticks.now(), ticks, count: 0, depth: 0, instances_made: false, making: None }
    }

    /// The call makes its instances in turn with others.
    pub fn makes_instances_by(&mut self, making: Making) {
        self.making = Some(making);
    }

    /// From here on the call is up to its guest, or over.
    pub fn instances_are_made(&mut self) {
        self.instances_made = true;
        self.making = None;
    }

    fn enter(&mut self) {
        self.depth += 1;
        if let Some(making) = &mut self.making {
            making.pause();
        }
    }

    /// Whether more instances may be made after the guest was left.
    fn leave(&mut self) -> bool {
        self.depth -= 1;
        self.depth == 0 && !self.instances_made
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
        let state = store.data_mut();
        match hook {
            CallHook::CallingWasm => {
                state.turn.enter();
                if state.turn.instances_made || state.trace.is_busy() {
                    apart::guest_goes_on();
                }
            }
            CallHook::CallingHost => {}
            CallHook::ReturningFromHost => {
                let over = state.turn.is_over();
                if over && state.turn.is_one_of_many() {
                    state.trace.set_busy();
                }
                // A start function that is over within its turn is not worth a thread. In one step it can do no more, as long as it
                // has little memory.
                let goes_on = over || state.trace.is_busy();
                // It may leave the caller's thread here, for one that stands as usual.
                if over {
                    tokio::task::yield_now().await;
                }
                if goes_on {
                    apart::guest_goes_on();
                }
            }
            CallHook::ReturningFromWasm => {
                if state.turn.leave() {
                    if apart::needs_another_thread() {
                        tokio::task::yield_now().await;
                    }
                    // wasmtime comes here after a trap, too, and does not say so: a call that has failed waits as if more were to come.
                    if let Some(making) = &mut state.turn.making {
                        making.go_on().await;
                    }
                }
            }
        }
        Ok(())
    }
}
