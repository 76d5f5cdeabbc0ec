//! HTTP as any client of the service speaks it.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::{Job, patiently};

/// Where a service listens, and who asks it.
#[derive(Debug, Clone)]
pub struct Client {
    address: Address,
    token: Option<String>,
}

#[derive(Debug, Clone)]
enum Address {
    Tcp(String),
    Unix(PathBuf),
}

impl Client {
    /// Over TCP.
    #[must_use]
    pub fn tcp(address: &str, token: Option<String>) -> Self {
        Self { address: Address::Tcp(address.to_owned()), token }
    }

    /// Over the unix socket, without a token.
    #[must_use]
    pub fn unix(path: &Path) -> Self {
        Self { address: Address::Unix(path.to_owned()), token: None }
    }

    /// The same with another token, or none.
    #[must_use]
    pub fn with_token(&self, token: Option<&str>) -> Self {
        Self { address: self.address.clone(), token: token.map(str::to_owned) }
    }

    /// A request for a whole path, to be added to.
    #[must_use]
    pub fn request(&self, method: Method, path: &str) -> Request<'_> {
        let mut headers = HeaderMap::new();
        let host = match &self.address {
            Address::Tcp(address) => address,
            Address::Unix(_) => "localhost",
        };
        headers.insert(http::header::HOST, host.parse().expect("a host"));
        if let Some(token) = &self.token {
            headers.insert(http::header::AUTHORIZATION, format!("Bearer {token}").parse().expect("a token"));
        }
        Request { client: self, method, path: path.to_owned(), headers, body: Bytes::new() }
    }

    /// GET of a path below `/api/v1`.
    pub async fn get(&self, path: &str) -> Answer {
        self.request(Method::GET, &format!("/api/v1{path}")).send().await
    }

    /// POST of JSON to a path below `/api/v1`.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.request(Method::POST, &format!("/api/v1{path}")).json(body).send().await
    }

    /// PATCH of JSON to a path below `/api/v1`.
    pub async fn patch(&self, path: &str, body: &Value) -> Answer {
        self.request(Method::PATCH, &format!("/api/v1{path}")).json(body).send().await
    }

    /// POST without a body to a path below `/api/v1`.
    pub async fn post_nothing(&self, path: &str) -> Answer {
        self.request(Method::POST, &format!("/api/v1{path}")).send().await
    }

    /// A connection for many requests.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn connect(&self) -> std::io::Result<Connection> {
        match &self.address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                over(stream).await
            }
            Address::Unix(path) => {
                // By way of its directory: a socket's path may be longer than an address has room for (unix(7)).
                let directory = std::fs::File::open(path.parent().expect("a socket is in a directory"))?;
                let name = path.file_name().expect("a socket has a name").to_string_lossy();
                over(UnixStream::connect(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd())).await?).await
            }
        }
    }
}

async fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> std::io::Result<Connection> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
    // It ends when its sender does, or with an error that the sender hears of.
    tokio::spawn(connection);
    Ok(Connection { sender })
}

/// A connection that is used again and again.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn send(&mut self, request: Request<'_>) -> Result<Answer, hyper::Error> {
        self.stream(request).await?.whole().await
    }

    async fn stream(&mut self, request: Request<'_>) -> Result<Streaming, hyper::Error> {
        self.sender.ready().await?;
        let mut built = http::Request::new(Full::new(request.body));
        *built.method_mut() = request.method;
        *built.uri_mut() = request.path.parse().expect("a path");
        *built.headers_mut() = request.headers;
        let (parts, body) = self.sender.send_request(built).await?.into_parts();
        Ok(Streaming { status: parts.status, headers: parts.headers, body })
    }
}

/// A request that is being put together.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    client: &'a Client,
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Request<'_> {
    /// Sets a header, in place of what was there.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.insert(name, value.parse().expect("a header's value"));
        self
    }

    /// A body of JSON.
    #[must_use]
    pub fn json(self, body: &Value) -> Self {
        self.body("application/json", body.to_string())
    }

    /// A body of this type.
    #[must_use]
    pub fn body(mut self, kind: &str, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self.header("content-type", kind)
    }

    /// Sends it over a connection of its own and reads the whole answer.
    ///
    /// # Panics
    /// When nobody answers.
    pub async fn send(self) -> Answer {
        let shown = format!("an answer to {} {}", self.method, self.path);
        patiently(&shown, async { self.stream().await.whole().await }).await.expect("the answer arrives whole")
    }

    /// The same when the service may be gone.
    ///
    /// # Errors
    /// When it is.
    pub async fn try_send(self) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let mut connection = self.client.connect().await?;
        Ok(connection.send(self).await?)
    }

    /// Sends it and returns as soon as the answer begins.
    ///
    /// # Panics
    /// When nobody answers.
    pub async fn stream(self) -> Streaming {
        let mut connection = self.client.connect().await.expect("the service listens");
        patiently("the beginning of an answer", connection.stream(self)).await.expect("the service answers")
    }
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// The answer, which has to have this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        self
    }

    /// A header's value, empty when there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Its body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Its body as JSON.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// Its body as a job.
    #[must_use]
    #[track_caller]
    pub fn job(&self) -> Job {
        Job { json: self.json() }
    }

    /// The problem document of a refusal, whose content type, status and type have to be right.
    #[must_use]
    #[track_caller]
    pub fn problem(&self) -> Value {
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.text());
        let document = self.json();
        assert_eq!(document["status"], self.status.as_u16(), "{document}");
        let code = document["code"].as_str().expect("a code");
        assert_eq!(document["type"], format!("urn:taxiway:problem:{code}"));
        assert!(document["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{document}");
        document
    }
}

/// An answer whose body is yet to come.
#[derive(Debug)]
pub struct Streaming {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    body: Incoming,
}

impl Streaming {
    /// The next piece of the body; none at its end.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, hyper::Error> {
        while let Some(frame) = patiently("more of a stream", self.body.frame()).await {
            if let Ok(data) = frame?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// All of it.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn whole(self) -> Result<Answer, hyper::Error> {
        let body = self.body.collect().await?.to_bytes();
        Ok(Answer { status: self.status, headers: self.headers, body })
    }
}
