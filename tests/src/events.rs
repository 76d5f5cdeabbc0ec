//! The stream of events, as a client reads it: server-sent events (WHATWG HTML, 9.2).

use http::Method;
use serde_json::Value;

use crate::client::Streaming;
use crate::{Client, Server};

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its number.
    pub id: u64,
    /// `job.running`, `queue.paused` …
    pub kind: String,
    /// The job concerned.
    pub job_id: Option<String>,
    /// All of it.
    pub json: Value,
}

impl Event {
    /// Whether it says that this job came into this state.
    #[must_use]
    pub fn is(&self, job_id: &str, state: &str) -> bool {
        self.job_id.as_deref() == Some(job_id) && self.kind.strip_prefix("job.") == Some(state)
    }

    /// Whether it says that a job ended.
    #[must_use]
    pub fn is_end(&self) -> bool {
        matches!(self.kind.as_str(), "job.completed" | "job.failed" | "job.cancelled")
    }
}

/// Events in their order, and all that were seen before.
#[derive(Debug)]
pub struct Events {
    stream: Streaming,
    unread: Vec<u8>,
    seen: Vec<Event>,
}

impl Events {
    pub(crate) async fn from(client: &Client, last: u64) -> Self {
        Self { stream: open(client, last).await, unread: Vec::new(), seen: Vec::new() }
    }

    /// Goes on where it stopped, with a service that was started again.
    pub async fn resume(&mut self, server: &Server) {
        let last = self.seen.last().map_or(0, |event| event.id);
        self.stream = open(server.client(), last).await;
        self.unread.clear();
    }

    /// The next event; none when the service has gone.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            while let Some(end) = self.unread.windows(2).position(|two| two == b"\n\n") {
                let block: Vec<u8> = self.unread.drain(..end + 2).collect();
                if let Some(event) = parse(&String::from_utf8(block).expect("UTF-8")) {
                    let last = self.seen.last().map_or(0, |event| event.id);
                    assert!(event.id > last, "event {} came after event {last}", event.id);
                    self.seen.push(event.clone());
                    return Some(event);
                }
            }
            // A service that was killed breaks the connection off.
            let piece = self.stream.piece().await.ok()??;
            self.unread.extend_from_slice(&piece);
        }
    }

    /// The first event, seen already or yet to come, that is what is waited for.
    ///
    /// # Panics
    /// When the stream ends before.
    pub async fn wait_for(&mut self, what: impl Fn(&Event) -> bool) -> Event {
        if let Some(event) = self.seen.iter().find(|event| what(event)) {
            return event.clone();
        }
        loop {
            let event = self.next().await.expect("the event comes before the service goes");
            if what(&event) {
                return event;
            }
        }
    }

    /// Waits until a job has come into this state.
    pub async fn job(&mut self, id: &str, state: &str) -> Event {
        self.wait_for(|event| event.is(id, state)).await
    }

    /// Waits until a job has ended, and answers how: `completed`, `failed` or `cancelled`.
    pub async fn end_of(&mut self, id: &str) -> String {
        let event = self.wait_for(|event| event.job_id.as_deref() == Some(id) && event.is_end()).await;
        event.kind.trim_start_matches("job.").to_owned()
    }

    /// Everything that was seen.
    #[must_use]
    pub fn seen(&self) -> &[Event] {
        &self.seen
    }

    /// The states through which a job went, as far as was seen.
    #[must_use]
    pub fn story(&self, id: &str) -> Vec<&str> {
        let of_job = self.seen.iter().filter(|event| event.job_id.as_deref() == Some(id));
        of_job.filter_map(|event| event.kind.strip_prefix("job.")).filter(|state| *state != "progress").collect()
    }
}

async fn open(client: &Client, last: u64) -> Streaming {
    let request = client.request(Method::GET, "/api/v1/events");
    let stream =
        request.header("last-event-id", &last.to_string()).header("accept", "text/event-stream").stream().await;
    assert_eq!(stream.status, 200);
    stream
}

/// One block of lines; none when it is a comment that keeps the connection alive.
fn parse(block: &str) -> Option<Event> {
    let field =
        |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim_start));
    let json: Value = serde_json::from_str(field("data")?).expect("an event is JSON");
    let id = json["id"].as_u64().expect("an event has a number");
    assert_eq!(field("id"), Some(id.to_string().as_str()), "{block}");
    let kind = json["type"].as_str().expect("an event has a type").to_owned();
    assert_eq!(field("event"), Some(kind.as_str()), "{block}");
    Some(Event { id, kind, job_id: json["job_id"].as_str().map(str::to_owned), json })
}
