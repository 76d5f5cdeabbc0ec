//! Places for calls: how many may be under way at a time, of one plugin and of all.
//!
//! The first call of each plugin has a place that no other plugin can take; the rest share what there is. So however many
//! places others hold with guests that never end, a plugin that answers goes on answering. Waiting for a place is not the
//! plugin's doing: it counts neither as its time nor as its failure.
//!
//! Where it is not known to be quick, one call of a plugin after the other makes its instances. That is one step which nothing can
//! interrupt, and done at the service's own priority: so a plugin keeps one core at most busy with it, however many of its calls begin
//! at once.

use crate::limits::Limits;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places that all plugins share.
#[derive(Clone)]
pub struct Shared(Arc<Semaphore>);

impl Shared {
    pub fn new(limits: &Limits) -> Shared {
        Shared(places(limits.parallel_total))
    }
}

/// The places of one plugin, over all its versions.
#[derive(Clone)]
pub struct Places {
    /// Calls of this plugin at a time.
    own: Arc<Semaphore>,
    /// The one that nobody else can take.
    first: Arc<Semaphore>,
    shared: Shared,
    /// The turn to make instances.
    making: Arc<Semaphore>,
}

/// A call's turn to make instances, which it has from the beginning and whenever no code of its guest runs.
pub struct Making {
    of_plugin: Arc<Semaphore>,
    turn: Option<OwnedSemaphorePermit>,
}

/// A place, until it is dropped.
pub struct Place {
    _own: OwnedSemaphorePermit,
    _place: OwnedSemaphorePermit,
}

impl Places {
    pub fn new(limits: &Limits, shared: &Shared) -> Places {
        Places { own: places(limits.parallel), first: places(1), shared: shared.clone(), making: places(1) }
    }

    /// One place, apart from all others.
    pub fn one() -> Places {
        Places { own: places(1), first: places(1), shared: Shared(places(1)), making: places(1) }
    }

    /// Waits for a place: among the plugin's own calls first, so that one with many calls waits for itself.
    ///
    /// Cancel-safe: dropping the future gives back what it had.
    pub async fn take(&self) -> Place {
        let own = permit(&self.own).await;
        let place = match self.first.clone().try_acquire_owned().or_else(|_| self.shared.0.clone().try_acquire_owned())
        {
            Ok(place) => place,
            Err(_) => tokio::select! {
                place = permit(&self.first) => place,
                place = permit(&self.shared.0) => place,
            },
        };
        Place { _own: own, _place: place }
    }

    /// Waits for a turn to make instances. Only for who has a place: nobody waits for a place with a turn in hand, so whoever has one
    /// comes to its end.
    ///
    /// Cancel-safe: dropping the future leaves the line.
    pub async fn turn_to_make_instances(&self) -> Making {
        Making { of_plugin: self.making.clone(), turn: Some(permit(&self.making).await) }
    }
}

impl Making {
    /// It is the guest's turn, which takes as long as that likes: meanwhile others make theirs.
    pub fn pause(&mut self) {
        self.turn = None;
    }

    /// More instances may come: waits for another turn.
    pub async fn go_on(&mut self) {
        self.turn = Some(permit(&self.of_plugin).await);
    }
}

fn places(count: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(count.clamp(1, Semaphore::MAX_PERMITS)))
}

async fn permit(places: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    match places.clone().acquire_owned().await {
        Ok(permit) => permit,
        // Only a closed semaphore has none, and nothing here closes one.
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn limits(parallel: usize, parallel_total: usize) -> Limits {
        Limits { parallel, parallel_total, ..Limits::default() }
    }

    #[test]
    fn a_plugin_has_a_place_whatever_the_others_hold() {
        let limits = limits(8, 32);
        let shared = Shared::new(&limits);
        let busy: Vec<Places> = (0..6).map(|_| Places::new(&limits, &shared)).collect();
        let held: Vec<Place> =
            busy.iter().flat_map(|places| (0..8).filter_map(|_| places.take().now_or_never())).collect();
        assert_eq!(held.len(), 6 + 32, "one of each, and all that are shared");
        let quiet = Places::new(&limits, &shared);
        for _ in 0..3 {
            let place = quiet.take().now_or_never();
            assert!(place.is_some());
            assert!(quiet.take().now_or_never().is_none(), "there is one only");
        }
    }

    #[tokio::test]
    async fn who_waits_has_the_first_place_that_gets_free() {
        let limits = limits(8, 1);
        let shared = Shared::new(&limits);
        let (one, other) = (Places::new(&limits, &shared), Places::new(&limits, &shared));
        let (first, second) = (one.take().await, one.take().await);
        let others = other.take().await;
        let mut waits = std::pin::pin!(one.take());
        assert!(waits.as_mut().now_or_never().is_none());
        drop(others);
        assert!(waits.as_mut().now_or_never().is_none(), "the other plugin's own place is of no use");
        drop(second);
        let third = waits.await;
        let mut waits = std::pin::pin!(one.take());
        assert!(waits.as_mut().now_or_never().is_none());
        drop(first);
        waits.await;
        drop(third);
    }

    #[test]
    fn absurd_numbers_of_places_do_no_harm() {
        for count in [0, usize::MAX] {
            let limits = limits(count, count);
            let places = Places::new(&limits, &Shared::new(&limits));
            assert!(places.take().now_or_never().is_some());
        }
    }
}
