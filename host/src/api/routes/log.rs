//! `GET /api/v1/jobs/{id}/log`: the whole log, a range of it (RFC 9110, 14), or all that is yet to come.

use std::convert::Infallible;
use std::io::{self, SeekFrom};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, RawQuery};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response, sse};
use bytes::Bytes;
use futures_util::future::Either;
use futures_util::{Stream, StreamExt, stream};
use serde::Deserialize;
use taxiway_job::{Job, JobId, LaunchId};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::io::ReaderStream;

use super::super::answer::Refused;
use super::super::{Api, State, submission};
use super::{events, jobs};
use crate::store::Event;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Parameters {
    follow: bool,
    attempt: Option<u32>,
}

pub(super) async fn log(
    api: State,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let parameters: Parameters = submission::parameters(query.as_deref())?;
    let id = jobs::parse_id(&id)?;
    let events = api.service.store.events();
    let (job, _) = jobs::find(&api, id).await?;
    let as_events = accepts_events(&headers);
    let grows = parameters.follow || as_events;
    let launch = match parameters.attempt {
        Some(number) => {
            let record = api.service.store.end_of(id, number).await?;
            if record.is_none() && !(grows && may_come(&job, number)) {
                return Err(Refused::not_found(format!("job {id} has no attempt {number}")));
            }
            record.filter(|record| record.armed).map(|record| record.launch)
        }
        None => api.service.store.latest_launch(id).await?,
    };
    // An armed start is none yet: as long as the job waits, its log is that of the start before.
    if !grows {
        return match launch {
            Some(launch) => file(&api, id, launch, &headers).await,
            None => Ok(text(StatusCode::OK, Body::empty())),
        };
    }
    let from = match events::last_event_id(&headers)?.filter(|_| as_events) {
        Some(offset) => Start::At(offset),
        None => Start::of(&headers)?,
    };
    let waits = parameters.attempt.is_none() && !job.state.is_live() && !job.state.has_ended();
    let which = Which { job: id, attempt: parameters.attempt, launch: launch.filter(|_| !waits) };
    let growing = follow(api.0.clone(), which, from, events).take_until(api.stop.clone().cancelled_owned());
    if as_events {
        let stop = api.stop.clone();
        Ok(Sse::new(lines(growing, move || stop.is_cancelled())).keep_alive(KeepAlive::default()).into_response())
    } else {
        Ok(text(StatusCode::OK, Body::from_stream(growing.map(|chunk| chunk.map(|(_, bytes)| bytes)))))
    }
}

fn text(status: StatusCode, body: Body) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8")),
        (header::ACCEPT_RANGES, HeaderValue::from_static("bytes")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // A log may hold anything; no browser shall take it for a page.
        (HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff")),
    ];
    (status, headers, body).into_response()
}

fn accepts_events(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|kind| kind.trim().starts_with("text/event-stream"))
}

/// The log as far as it has come.
async fn file(api: &Api, id: JobId, launch: LaunchId, headers: &HeaderMap) -> Result<Response, Refused> {
    let unreadable = |error: io::Error| {
        tracing::error!(%error, job = %id, "a log could not be read");
        Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "log-unreadable", format!("the log cannot be read: {error}"))
    };
    let path = path(api, id, launch);
    let opened = tokio::task::spawn_blocking(move || taxiway_launcher::log::open(&path)).await;
    let mut file = match opened.map_err(io::Error::other).flatten() {
        Ok(file) => File::from_std(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(text(StatusCode::OK, Body::empty())),
        Err(error) => return Err(unreadable(error)),
    };
    let size = file.metadata().await.map_err(unreadable)?.len();
    let asked = headers.get(header::RANGE).and_then(|value| value.to_str().ok()).and_then(|value| range(value, size));
    let (status, part) = match asked {
        None => (StatusCode::OK, 0..size),
        Some(Some(part)) => (StatusCode::PARTIAL_CONTENT, part),
        Some(None) => {
            let mut response = Refused::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "range-not-satisfiable",
                format!("the log has {size} bytes"),
            )
            .into_response();
            insert(&mut response, header::CONTENT_RANGE, format!("bytes */{size}"));
            return Ok(response);
        }
    };
    file.seek(SeekFrom::Start(part.start)).await.map_err(unreadable)?;
    let length = part.end - part.start;
    let mut response = text(status, Body::from_stream(ReaderStream::new(file.take(length))));
    insert(&mut response, header::CONTENT_LENGTH, length.to_string());
    if status == StatusCode::PARTIAL_CONTENT {
        insert(&mut response, header::CONTENT_RANGE, format!("bytes {}-{}/{size}", part.start, part.end - 1));
    }
    Ok(response)
}

fn insert(response: &mut Response, name: HeaderName, value: String) {
    // Digits, spaces and signs only.
    if let Ok(value) = HeaderValue::try_from(value) {
        response.headers_mut().insert(name, value);
    }
}

fn path(api: &Api, id: JobId, launch: LaunchId) -> PathBuf {
    taxiway_launcher::log::path(&api.service.settings.jobs_dir(), id, launch)
}

/// The one range of `header` in a file of this size: none when it is not understood or there are several (then the whole is
/// answered, as RFC 9110 allows), and `Some(None)` when nothing of it is there.
fn range(header: &str, size: u64) -> Option<Option<Range<u64>>> {
    let (first, last) = header.strip_prefix("bytes=")?.split_once('-')?;
    let (first, last) = (first.trim(), last.trim());
    if first.is_empty() {
        let suffix: u64 = last.parse().ok()?;
        return Some((suffix > 0 && size > 0).then(|| size.saturating_sub(suffix)..size));
    }
    let first: u64 = first.parse().ok()?;
    let end = if last.is_empty() {
        size
    } else {
        last.parse::<u64>().ok().filter(|last| *last >= first)?.saturating_add(1).min(size)
    };
    Some((first < size).then_some(first..end))
}

/// Where a stream begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// So many bytes from the beginning.
    At(u64),
    /// So many bytes before the present end.
    Tail(u64),
}

impl Start {
    /// What `Range` says of where to begin; a stream has no end to ask for.
    fn of(headers: &HeaderMap) -> Result<Self, Refused> {
        let Some(value) = headers.get(header::RANGE) else { return Ok(Self::At(0)) };
        let parsed = value.to_str().ok().and_then(|text| text.strip_prefix("bytes=")).and_then(|text| {
            match text.strip_prefix('-') {
                Some(suffix) => suffix.parse().ok().map(Self::Tail),
                None => text.strip_suffix('-')?.parse().ok().map(Self::At),
            }
        });
        parsed.ok_or_else(|| Refused::invalid_request("with follow, Range is `bytes=FIRST-` or `bytes=-LAST`"))
    }
}

/// Whether a job may have an attempt with this number, which it has not begun yet.
fn may_come(job: &Job, attempt: u32) -> bool {
    attempt >= job.attempt && !job.state.has_ended()
}

/// Which start of a job is followed.
struct Which {
    job: JobId,
    /// Its number, if it is that one; else it is the present or the next one.
    attempt: Option<u32>,
    /// None before it has begun.
    launch: Option<LaunchId>,
}

/// The log from `start` on, each piece with the offset after it, until its start of the job is over. Before there is a start,
/// it waits for one.
fn follow(
    api: Arc<Api>,
    which: Which,
    start: Start,
    mut events: Receiver<Arc<Event>>,
) -> impl Stream<Item = io::Result<(u64, Bytes)>> + Send + 'static {
    let begin = async move {
        let id = which.job;
        let launch = match which.launch {
            Some(launch) => Some(launch),
            None => started(&api, id, which.attempt, &mut events).await,
        };
        let Some(launch) = launch else { return Either::Left(stream::empty()) };
        let path = path(&api, id, launch);
        let mut offset = match start {
            Start::At(offset) => offset,
            Start::Tail(last) => {
                tokio::fs::metadata(&path).await.map_or(0, |metadata| metadata.len().saturating_sub(last))
            }
        };
        let over = async move { over(&api, id, launch, &mut events).await };
        let pieces = taxiway_launcher::log::follow(path, offset, over);
        Either::Right(pieces.map(move |piece| {
            piece.map(|bytes| {
                offset += bytes.len() as u64;
                (offset, bytes)
            })
        }))
    };
    stream::once(begin).flatten()
}

/// Waits until the job has been started, or its attempt with this number has begun. None when that will not be.
async fn started(api: &Api, id: JobId, attempt: Option<u32>, events: &mut Receiver<Arc<Event>>) -> Option<LaunchId> {
    let store = &api.service.store;
    loop {
        // First the job: an attempt that begins after it was read is an event.
        let job = store.job(id).await.ok()??;
        match attempt {
            Some(number) => {
                if let Some(begun) = store.end_of(id, number).await.ok()? {
                    return begun.armed.then_some(begun.launch);
                }
                if !may_come(&job, number) {
                    return None;
                }
            }
            // Of a job that was cancelled while it waited, the start before is what there is.
            None if job.state.is_live() || job.state.has_ended() => return store.latest_launch(id).await.ok()?,
            None => {}
        }
        changed(id, events).await?;
    }
}

/// Waits until this start of the job is over and nothing is written any more.
async fn over(api: &Api, id: JobId, launch: LaunchId, events: &mut Receiver<Arc<Event>>) {
    loop {
        let job = api.service.store.job(id).await;
        let latest = api.service.store.latest_launch(id).await;
        match (job, latest) {
            (Ok(Some(job)), Ok(latest)) if job.state.is_live() && latest == Some(launch) => {}
            // It cannot be told just now; what happens next is looked at again.
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(job = %id, %error, "cannot see whether a log is at its end")
            }
            _ => return,
        }
        if changed(id, events).await.is_none() {
            return;
        }
    }
}

/// Waits until something may have happened to the job. None when nothing will any more.
async fn changed(id: JobId, events: &mut Receiver<Arc<Event>>) -> Option<()> {
    loop {
        match events.recv().await {
            // Progress is the frequent one, and changes nothing here.
            Ok(event) if event.job == Some(id) && event.kind != "job.progress" => return Some(()),
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => return Some(()),
            Err(RecvError::Closed) => return None,
        }
    }
}

/// The log as server-sent events: `{"text": "…"}`, the id being the byte after it, so that a reader can resume there; at the
/// end an event `end`. JSON, because a carriage return means something in a log and nothing in an event.
///
/// When the service stops (`is_cut_off`) the stream is at no end: its reader comes again, from the last id on.
fn lines(
    pieces: impl Stream<Item = io::Result<(u64, Bytes)>> + Send + 'static,
    is_cut_off: impl Fn() -> bool + Send + 'static,
) -> impl Stream<Item = Result<sse::Event, Infallible>> + Send {
    let (mut rest, mut offset): (Vec<u8>, u64) = (Vec::new(), 0);
    let pieces = pieces.map(Some).chain(stream::once(std::future::ready(None)));
    let events = pieces.map(move |piece| match piece {
        Some(Ok((after, bytes))) => {
            rest.extend_from_slice(&bytes);
            let whole = rest.len() - incomplete_tail(&rest);
            offset = after;
            let id = after - (rest.len() - whole) as u64;
            vec![text_event(rest.drain(..whole), id)]
        }
        Some(Err(error)) => {
            let data = serde_json::json!({"message": error.to_string()});
            vec![Some(sse::Event::default().event("error").data(data.to_string()))]
        }
        None if is_cut_off() => Vec::new(),
        // The rest of its last character never came.
        None => vec![text_event(rest.drain(..), offset), Some(sse::Event::default().event("end").data("{}"))],
    });
    events.flat_map(|events| stream::iter(events.into_iter().flatten())).map(Ok)
}

/// These bytes as text, up to the byte `id`; none without any.
fn text_event(bytes: impl Iterator<Item = u8>, id: u64) -> Option<sse::Event> {
    let bytes: Vec<u8> = bytes.collect();
    let text = String::from_utf8_lossy(&bytes);
    let data = serde_json::json!({"text": text}).to_string();
    (!bytes.is_empty()).then(|| sse::Event::default().id(id.to_string()).data(data))
}

/// Bytes at the end that begin a character whose rest is yet to come (UTF-8, RFC 3629).
fn incomplete_tail(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let byte = bytes[bytes.len() - back];
        let needed = match byte {
            0xC0..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF7 => 4,
            0x80..=0xBF => continue,
            _ => return 0,
        };
        return if needed > back { back } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_rfc_says() {
        assert_eq!(range("bytes=0-4", 10), Some(Some(0..5)));
        assert_eq!(range("bytes=5-", 10), Some(Some(5..10)));
        assert_eq!(range("bytes=-3", 10), Some(Some(7..10)));
        assert_eq!(range("bytes=-30", 10), Some(Some(0..10)));
        assert_eq!(range("bytes=5-100", 10), Some(Some(5..10)));
        assert_eq!(range("bytes=10-", 10), Some(None), "nothing of it is there");
        assert_eq!(range("bytes=-0", 10), Some(None));
        assert_eq!(range("bytes=0-", 0), Some(None));
        for ignored in ["lines=1-2", "bytes=5-4", "bytes=0-1,4-5", "bytes=a-b", "bytes"] {
            assert_eq!(range(ignored, 10), None, "{ignored}");
        }
    }

    #[test]
    fn a_stream_begins_where_its_range_says() {
        let start = |value: &'static str| {
            Start::of(&HeaderMap::from_iter([(header::RANGE, HeaderValue::from_static(value))])).ok()
        };
        assert_eq!(start("bytes=7-"), Some(Start::At(7)));
        assert_eq!(start("bytes=-100"), Some(Start::Tail(100)));
        assert_eq!(start("bytes=1-2"), None);
    }

    #[test]
    fn a_character_is_never_cut_in_two() {
        assert_eq!(incomplete_tail("grün".as_bytes()), 0);
        assert_eq!(incomplete_tail(&"grü".as_bytes()[..3]), 1);
        assert_eq!(incomplete_tail(&"█".as_bytes()[..2]), 2);
        assert_eq!(incomplete_tail(&"🚕".as_bytes()[..3]), 3);
        assert_eq!(incomplete_tail(&[0xFF]), 0, "no character begins like this");
        assert_eq!(incomplete_tail(b""), 0);
    }

    /// What a stream of these pieces sends, each with the offset after it.
    async fn sent(pieces: &[(u64, &[u8])], is_cut_off: bool) -> Vec<String> {
        let pieces: Vec<_> =
            pieces.iter().map(|(offset, bytes)| Ok((*offset, Bytes::copy_from_slice(bytes)))).collect();
        let events = lines(stream::iter(pieces), move || is_cut_off);
        events.map(|event| format!("{:?}", event.expect("an event"))).collect().await
    }

    #[tokio::test]
    async fn ids_of_events_are_the_bytes_after_what_was_sent_in_whole_characters() {
        let bytes = "a\r█b".as_bytes();
        let events = sent(&[(3, &bytes[..3]), (6, &bytes[3..])], false).await;
        assert_eq!(events.len(), 3);
        assert!(events[0].contains("id: 2"), "{events:?}");
        assert!(events[1].contains("id: 6"), "{events:?}");
        assert!(events[2].contains("event: end"), "{events:?}");
    }

    #[tokio::test]
    async fn a_log_that_ends_within_a_character_is_sent_to_its_last_byte() {
        let bytes = &"ab█".as_bytes()[..4];
        let events = sent(&[(14, bytes)], false).await;
        assert_eq!(events.len(), 3, "{events:?}");
        assert!(events[0].contains("id: 12"), "{events:?}");
        // As bytes are shown: the sign for what is no character.
        assert!(events[1].contains("id: 14") && events[1].contains("\\xef\\xbf\\xbd"), "{events:?}");
        assert!(events[2].contains("event: end"), "{events:?}");
    }

    #[tokio::test]
    async fn a_stream_that_the_service_cuts_off_says_no_end_and_resumes_within_the_character() {
        let bytes = &"ab█".as_bytes()[..4];
        let events = sent(&[(14, bytes)], true).await;
        assert_eq!(events.len(), 1, "{events:?}");
        assert!(events[0].contains("id: 12"), "{events:?}");
    }
}
