//! `GET /api/v1/events`: every change, as server-sent events (WHATWG HTML, 9.2), resumable with `Last-Event-ID`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::RawQuery;
use axum::http::HeaderMap;
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response, sse};
use futures_util::stream;
use serde::Deserialize;
use taxiway_job::JobId;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::super::answer::Refused;
use super::super::{State, submission, wire};
use super::jobs;
use crate::store::{Event, Store};

/// Events that are read from the store at a time.
const PAGE: usize = 500;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Parameters {
    job_id: Option<String>,
}

pub(super) async fn events(api: State, RawQuery(query): RawQuery, headers: HeaderMap) -> Result<Response, Refused> {
    let parameters: Parameters = submission::parameters(query.as_deref())?;
    let job = parameters.job_id.as_deref().map(jobs::parse_id).transpose()?;
    let heard = last_event_id(&headers)?;
    let subscription = Subscription::new(&api.service.store, heard, job, api.stop.clone()).await?;
    let events = stream::unfold(subscription, |mut subscription| async {
        let event = subscription.next().await?;
        Some((Ok::<_, Infallible>(as_sse(&event)), subscription))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}

fn as_sse(event: &Event) -> sse::Event {
    let data = serde_json::to_string(&wire::Event(event)).unwrap_or_else(|error| {
        // Its keys are texts and its values JSON already, so this does not happen.
        tracing::error!(%error, id = event.id, "an event could not be written");
        String::from("{}")
    });
    sse::Event::default().id(event.id.to_string()).event(&event.kind).data(data)
}

/// The number in `Last-Event-ID`.
pub(super) fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, Refused> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    number.map(Some).ok_or_else(|| Refused::invalid_request("Last-Event-ID is not the id of an event of ours"))
}

/// One reader's way through the events: none twice, none left out, however slowly it reads.
struct Subscription {
    store: Store,
    live: Receiver<Arc<Event>>,
    /// Read from the store or received, not yet given out.
    waiting: VecDeque<Arc<Event>>,
    /// The last event that was put into `waiting`.
    last: u64,
    /// Whether the store has to be asked for what came after `last` before live events are in order again.
    behind: bool,
    /// Only events of this job.
    job: Option<JobId>,
    stop: CancellationToken,
}

impl Subscription {
    async fn new(
        store: &Store,
        heard: Option<u64>,
        job: Option<JobId>,
        stop: CancellationToken,
    ) -> Result<Self, Refused> {
        // First the subscription, then the position: what is committed in between is seen twice here, and `last` tells.
        let live = store.events();
        let newest = store.last_event_id().await?;
        // An id that is yet to come is from another database.
        let last = heard.filter(|heard| *heard <= newest).unwrap_or(newest);
        let behind = last < newest;
        Ok(Self { store: store.clone(), live, waiting: VecDeque::new(), last, behind, job, stop })
    }

    async fn next(&mut self) -> Option<Arc<Event>> {
        loop {
            while let Some(event) = self.waiting.pop_front() {
                if self.job.is_none() || event.job == self.job {
                    return Some(event);
                }
            }
            if self.behind {
                self.catch_up().await?;
            } else {
                tokio::select! {
                    () = self.stop.cancelled() => return None,
                    received = self.live.recv() => match received {
                        Ok(event) if event.id > self.last => self.take(event),
                        Ok(_) => {}
                        Err(RecvError::Lagged(_)) => self.behind = true,
                        Err(RecvError::Closed) => return None,
                    },
                }
            }
        }
    }

    fn take(&mut self, event: Arc<Event>) {
        self.last = event.id;
        self.waiting.push_back(event);
    }

    async fn catch_up(&mut self) -> Option<()> {
        match self.store.events_after(self.last, PAGE).await {
            Ok(events) => {
                self.behind = events.len() == PAGE;
                events.into_iter().for_each(|event| self.take(Arc::new(event)));
                Some(())
            }
            Err(error) => {
                // The stream ends, and its reader comes back with the last id it has.
                tracing::error!(%error, "events could not be read");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use taxiway_job::Time;

    use super::*;
    use crate::queue::Mode;
    use crate::store::Change;

    async fn store() -> (tempfile::TempDir, Store) {
        let place = tempfile::tempdir().expect("a directory");
        let store = Store::open(&place.path().join("taxiway.db")).expect("a store");
        (place, store)
    }

    /// Commits `count` events.
    async fn happen(store: &Store, count: usize) {
        for _ in 0..count {
            let change = Change::Mode { mode: Mode::Paused, at: Time::now(), by: "test".into() };
            store.commit(vec![change]).await.expect("committed");
        }
    }

    async fn ids(subscription: &mut Subscription, count: usize) -> Vec<u64> {
        let mut ids = Vec::new();
        for _ in 0..count {
            ids.push(subscription.next().await.expect("an event").id);
        }
        ids
    }

    #[tokio::test]
    async fn a_reader_that_resumes_gets_what_it_missed_and_then_what_happens_each_once() {
        let (_place, store) = store().await;
        happen(&store, 5).await;
        let mut first = Subscription::new(&store, Some(0), None, CancellationToken::new()).await.expect("subscribed");
        happen(&store, 3).await;
        let all = ids(&mut first, 8).await;
        assert!(all.is_sorted_by(|a, b| a < b), "{all:?}");
        let mut again =
            Subscription::new(&store, Some(all[2]), None, CancellationToken::new()).await.expect("subscribed");
        assert_eq!(ids(&mut again, 5).await, all[3..]);
    }

    #[tokio::test]
    async fn a_reader_that_lags_behind_the_channel_misses_nothing() {
        let (_place, store) = store().await;
        let mut slow = Subscription::new(&store, None, None, CancellationToken::new()).await.expect("subscribed");
        // One unit of many changes: the channel holds 4,096 events.
        let change = Change::Mode { mode: Mode::Paused, at: Time::now(), by: "test".into() };
        store.commit(vec![change; 5000]).await.expect("committed");
        let all = ids(&mut slow, 5000).await;
        assert!(all.is_sorted_by(|a, b| a < b));
        assert_eq!(all[4999] - all[0], 4999);
    }

    #[tokio::test]
    async fn streams_end_when_the_service_stops() {
        let (_place, store) = store().await;
        let stop = CancellationToken::new();
        let mut reader = Subscription::new(&store, None, None, stop.clone()).await.expect("subscribed");
        stop.cancel();
        assert!(reader.next().await.is_none());
    }
}
