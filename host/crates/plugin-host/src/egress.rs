//! `wasi:http` for guests: the one way out, through two gates.
//!
//! The first gate compares the URL with the granted hosts. The second looks at every address that the host's name has
//! right now, and the connection goes to an address that passed, never through a second look-up. No proxy, no redirects:
//! a guest that follows one asks again and meets both gates again.

use crate::grant::address::{self, Network};
use crate::grant::host::{self, AllowedHost, Scheme};
use crate::limits::Limits;
use crate::secret::Secrets;
use crate::state::Trace;
use crate::text;
use crate::tls::Tls;
use bytes::Bytes;
use http::{Method, Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use std::error::Error as _;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, timeout_at};
use wasmtime_wasi_http::io::TokioIo;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

type Done = Box<dyn Future<Output = Result<(), Error>> + Send>;

/// What one plugin may ask for, and through whom. Shared by all its calls.
pub struct Policy {
    pub plugin: String,
    pub hosts: Vec<AllowedHost>,
    pub allow_private: Vec<Network>,
    pub limits: Arc<Limits>,
    pub secrets: Arc<Secrets>,
    pub tls: Arc<Tls>,
}

/// The way out of one call.
pub struct Egress {
    policy: Arc<Policy>,
    dry_run: bool,
    requests_left: u32,
    trace: Arc<Trace>,
}

impl Egress {
    pub fn new(policy: Arc<Policy>, dry_run: bool, trace: Arc<Trace>) -> Egress {
        let requests_left = policy.limits.http_requests;
        Egress { policy, dry_run, requests_left, trace }
    }

    /// The first gate, and the count of requests.
    fn admit(&mut self, method: &Method, uri: &Uri) -> Result<Target, Denied> {
        let Some(left) = self.requests_left.checked_sub(1) else {
            return Err(Denied(format!("more than {} requests in one call", self.policy.limits.http_requests)));
        };
        self.requests_left = left;
        if *method == Method::CONNECT {
            return Err(Denied("CONNECT is not for plugins".to_owned()));
        }
        if self.dry_run && *method != Method::GET && *method != Method::HEAD {
            return Err(Denied(format!("{method} in a dry run, where only GET and HEAD leave")));
        }
        let target = Target::of(uri).ok_or_else(|| Denied("not an http or https URL with a plain host".to_owned()))?;
        if self.policy.hosts.iter().any(|granted| granted.allows(target.scheme, &target.host, target.port)) {
            Ok(target)
        } else {
            Err(Denied("its host is not granted; the manifest can: http = [\"https://HOST\"]".to_owned()))
        }
    }
}

/// Why a request is refused, for people.
struct Denied(String);

/// Where a request goes.
struct Target {
    scheme: Scheme,
    /// As [`host::normal_host`] writes it.
    host: String,
    port: u16,
}

impl Target {
    fn of(uri: &Uri) -> Option<Target> {
        let scheme = match uri.scheme_str()? {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        let authority = uri.authority()?;
        if authority.as_str().contains('@') {
            return None;
        }
        let port = match authority.port() {
            Some(port) => port.as_u16(),
            // `http` reads `host:` and `host:99999` as an authority without a port.
            None if authority.as_str() != authority.host() => return None,
            None => scheme.default_port(),
        };
        Some(Target { scheme, host: host::normal_host(authority.host())?, port })
    }
}

impl WasiHttpHooks for Egress {
    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        // What one write may keep of a guest's memory in the host's; larger writes come in turns.
        64 << 10
    }

    fn p2_error_from_hyper(
        &mut self,
        error: &hyper::Error,
    ) -> wasmtime_wasi_http::p2::bindings::http::types::ErrorCode {
        tracing::debug!(plugin = self.policy.plugin, %error, "an answer broke off");
        wasmtime_wasi_http::p2::bindings::http::types::ErrorCode::HttpProtocolError
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _request_done: Done,
    ) -> Box<dyn Future<Output = Result<(Response<WasiBody>, Done), Error>> + Send> {
        self.trace.requests.fetch_add(1, Ordering::Relaxed);
        let shown = shown_url(request.uri(), &self.policy.secrets);
        let refuse = Refusals {
            plugin: self.policy.plugin.clone(),
            method: request.method().clone(),
            url: shown,
            trace: self.trace.clone(),
        };
        let target = match self.admit(request.method(), request.uri()) {
            Ok(target) => target,
            Err(denied) => {
                let error = refuse.denied(&denied.0);
                return Box::new(async move { Err(error) });
            }
        };
        let policy = self.policy.clone();
        Box::new(async move { send(&policy, &refuse, target, request, options.unwrap_or_default()).await })
    }
}

/// Tells of refused requests, in the log and to the call that they belong to.
struct Refusals {
    plugin: String,
    method: Method,
    url: String,
    trace: Arc<Trace>,
}

impl Refusals {
    fn denied(&self, why: &str) -> Error {
        tracing::warn!(plugin = self.plugin, method = %self.method, url = self.url, why, "refused a plugin's request");
        self.trace.deny(format!("{} {}: {why}", self.method, self.url));
        Error::HttpRequestDenied
    }
}

/// The URL without its query, which often carries keys, and without secrets.
fn shown_url(uri: &Uri, secrets: &Secrets) -> String {
    let plain =
        format!("{}://{}{}", uri.scheme_str().unwrap_or(""), uri.authority().map_or("", |a| a.as_str()), uri.path());
    secrets.safe(&plain, 500)
}

async fn send(
    policy: &Policy,
    refuse: &Refusals,
    target: Target,
    request: Request<WasiBody>,
    options: RequestOptions,
) -> Result<(Response<WasiBody>, Done), Error> {
    let limits = &policy.limits;
    let end = Instant::now() + limits.http_timeout;
    let connected_by = Instant::now() + shorter(options.connect_timeout, limits.http_connect_timeout);

    let addresses = timeout_at(connected_by, permitted_addresses(policy, refuse, &target))
        .await
        .map_err(|_| Error::DnsTimeout)??;
    let stream = timeout_at(connected_by, connect(&addresses)).await.map_err(|_| Error::ConnectionTimeout)??;
    let stream: Pin<Box<dyn Duplex>> = match target.scheme {
        Scheme::Http => Box::pin(stream),
        Scheme::Https => {
            let connected = policy.tls.connect(&target.host, stream);
            Box::pin(timeout_at(connected_by, connected).await.map_err(|_| Error::ConnectionTimeout)??)
        }
    };
    let mut builder = hyper::client::conn::http1::Builder::new();
    // hyper reads a head into one buffer of at least 8 KiB.
    builder.max_buf_size(usize::try_from(limits.http_headers).unwrap_or(usize::MAX).max(8192));
    let (mut sender, connection) = timeout_at(connected_by, builder.handshake(TokioIo::new(stream)))
        .await
        .map_err(|_| Error::ConnectionTimeout)??;

    let request = for_the_wire(request, limits)?;
    let first_byte_by = end.min(Instant::now() + shorter(options.first_byte_timeout, limits.http_timeout));
    let mut connection = Box::pin(connection);
    let mut ended = false;
    let answer = async {
        let mut sent = Box::pin(sender.send_request(request));
        tokio::select! {
            answer = &mut sent => answer,
            broken = &mut connection => {
                ended = true;
                broken?;
                sent.await
            }
        }
    };
    let answer = timeout_at(first_byte_by, answer)
        .await
        .map_err(|_| Error::ConnectionReadTimeout)?
        .map_err(|error| own_error(error, limits))?;
    let between = shorter(options.between_bytes_timeout, limits.http_timeout);
    let answer = answer.map(|body| Answer::new(body, limits.http_response_body, end, between).boxed_unsync());
    let done = async move { if ended { Ok(()) } else { connection.await.map_err(Error::from) } };
    Ok((answer, Box::new(done)))
}

trait Duplex: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send> Duplex for T {}

fn shorter(asked: Option<Duration>, limit: Duration) -> Duration {
    asked.map_or(limit, |asked| asked.min(limit))
}

/// The addresses that the target's name has right now and that may be reached. Literal addresses come this way too.
async fn permitted_addresses(policy: &Policy, refuse: &Refusals, target: &Target) -> Result<Vec<SocketAddr>, Error> {
    let found = addresses_of(target.host.clone(), target.port)
        .await
        .map_err(|error| Error::DnsError { rcode: Some(text::clean(&error.to_string(), 200)), info_code: None })?;
    permitted(&policy.allow_private, found.into_iter()).map_err(|kept_back| match kept_back {
        Some(why) => refuse.denied(&why),
        None => Error::DestinationNotFound,
    })
}

/// Looks a name up, on a thread that the runtime's own threads have made: one that a busy guest's makes inherits its priority, and
/// works for other guests after that.
async fn addresses_of(host: String, port: u16) -> std::io::Result<Vec<SocketAddr>> {
    let looked_up = tokio::spawn(async move { Ok(tokio::net::lookup_host((host.as_str(), port)).await?.collect()) });
    looked_up.await.unwrap_or_else(|stopped| Err(stopped.into()))
}

/// The second gate: of the addresses that were found, those that may be reached. When there are none, why the last one
/// may not.
fn permitted(
    allow_private: &[Network],
    found: impl Iterator<Item = SocketAddr>,
) -> Result<Vec<SocketAddr>, Option<String>> {
    let mut permitted = Vec::new();
    let mut refused = None;
    for found in found {
        match address::not_public(found.ip()) {
            Some(kind) if !allow_private.iter().any(|network| network.contains(found.ip())) => {
                refused = Some((found.ip().to_canonical(), kind));
            }
            _ => permitted.push(found),
        }
    }
    if !permitted.is_empty() {
        return Ok(permitted);
    }
    Err(refused
        .map(|(ip, kind)| format!("its address {ip} is {kind}; the manifest can allow it: allow_private = [\"{ip}\"]")))
}

async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, Error> {
    let mut last = Error::DestinationNotFound;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = Error::Connect(error),
        }
    }
    Err(last)
}

/// The request as it goes out: path only, its body capped.
fn for_the_wire(request: Request<WasiBody>, limits: &Limits) -> Result<Request<WasiBody>, Error> {
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = path.parse().map_err(|_| Error::HttpRequestUriInvalid)?;
    let limit = limits.http_request_body;
    let body = Limited::new(body, usize::try_from(limit).unwrap_or(usize::MAX))
        .map_err(move |error| error.downcast::<Error>().map_or(Error::HttpRequestBodySize(Some(limit)), |own| *own));
    Ok(Request::from_parts(parts, body.boxed_unsync()))
}

/// What the guest is told of a failed exchange: an own limit is named.
fn own_error(error: hyper::Error, limits: &Limits) -> Error {
    if error.is_parse_too_large() {
        return Error::HttpResponseHeaderSectionSize(u32::try_from(limits.http_headers).ok());
    }
    let body_too_large = error.source().and_then(|cause| cause.downcast_ref::<Error>());
    match body_too_large {
        Some(Error::HttpRequestBodySize(size)) => Error::HttpRequestBodySize(*size),
        _ => Error::Hyper(error),
    }
}

/// An answer's body with its size and time bounded.
struct Answer {
    incoming: Incoming,
    left: u64,
    limit: u64,
    end: Pin<Box<Sleep>>,
    quiet: Pin<Box<Sleep>>,
    between: Duration,
}

impl Answer {
    fn new(incoming: Incoming, limit: u64, end: Instant, between: Duration) -> Answer {
        Answer {
            incoming,
            left: limit,
            limit,
            end: Box::pin(tokio::time::sleep_until(end)),
            quiet: Box::pin(tokio::time::sleep(between)),
            between,
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.end.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(Error::HttpResponseTimeout)));
        }
        match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let size = frame.data_ref().map_or(0, |data| data.len() as u64);
                let Some(left) = self.left.checked_sub(size) else {
                    return Poll::Ready(Some(Err(Error::HttpResponseBodySize(Some(self.limit)))));
                };
                self.left = left;
                let next = Instant::now() + self.between;
                self.quiet.as_mut().reset(next);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(Error::Hyper(error)))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => match self.quiet.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Some(Err(Error::ConnectionReadTimeout))),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

#[cfg(test)]
mod tests;
