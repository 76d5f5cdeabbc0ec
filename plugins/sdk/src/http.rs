//! HTTP requests, to the hosts that the plugin's manifest grants (`http = ["https://example.org"]`).
//!
//! ```
//! use std::time::Duration;
//! use taxiway_plugin::{HookError, http, json};
//!
//! fn report(job: &str) -> Result<(), HookError> {
//!     let answer = http::post("https://example.org/jobs")
//!         .json(&json!({"job": job}))
//!         .timeout(Duration::from_secs(5))
//!         .send()?;
//!     if !answer.is_success() {
//!         return Err(HookError::transient("refused", format!("the receiver answered {}", answer.status)));
//!     }
//!     Ok(())
//! }
//! ```
//!
//! Redirects are not followed, and there is no proxy. In a dry run only GET and HEAD leave the machine.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

#[cfg(target_family = "wasm")]
mod wasi;

#[cfg(not(target_family = "wasm"))]
use crate::testing as transport;
#[cfg(target_family = "wasm")]
use wasi as transport;

/// More of an answer is not kept, unless [`Request::response_limit`] says otherwise: a plugin has little memory.
pub const DEFAULT_RESPONSE_LIMIT_BYTES: usize = 1024 * 1024;

/// Begins a GET request.
pub fn get(url: impl Into<String>) -> Request {
    Request::new("GET", url)
}

/// Begins a POST request.
pub fn post(url: impl Into<String>) -> Request {
    Request::new("POST", url)
}

/// A request that is being put together.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a request does nothing until it is sent"]
pub struct Request {
    /// `GET`, `POST` …
    pub method: String,
    /// The whole address.
    pub url: String,
    /// Header lines, in order.
    pub headers: Vec<(String, String)>,
    /// Empty for none.
    pub body: Vec<u8>,
    /// For connecting, for the first byte, and between two bytes; `None` leaves it to the server.
    pub timeout: Option<Duration>,
    /// How much of the answer's body is kept, in bytes.
    pub response_limit_bytes: usize,
}

impl Request {
    /// Begins a request with any method.
    pub fn new(method: impl Into<String>, url: impl Into<String>) -> Self {
        Self {
            method: method.into(),
            url: url.into(),
            headers: Vec::new(),
            body: Vec::new(),
            timeout: None,
            response_limit_bytes: DEFAULT_RESPONSE_LIMIT_BYTES,
        }
    }

    /// Adds a header line.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Sets the body to a JSON value, and the content type with it.
    pub fn json(self, value: &Value) -> Self {
        self.header("content-type", "application/json").body(value.to_string())
    }

    /// Sets the body to anything that serializes, and the content type with it.
    ///
    /// # Errors
    ///
    /// What its `Serialize` says, or a map whose keys are no strings.
    pub fn json_of<T: Serialize>(self, value: &T) -> serde_json::Result<Self> {
        Ok(self.json(&serde_json::to_value(value)?))
    }

    /// Limits the wait for the connection, for the first byte, and between two bytes.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Keeps at most this many bytes of the answer's body.
    pub fn response_limit(mut self, bytes: usize) -> Self {
        self.response_limit_bytes = bytes;
        self
    }

    /// Sends it and waits for the answer, whatever its status.
    ///
    /// # Errors
    ///
    /// [`enum@Error`] when there was no answer.
    pub fn send(self) -> Result<Response, Error> {
        transport::send(&self)
    }
}

/// An answer, whatever its status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Response {
    /// 200, 404 …
    pub status: u16,
    /// Header lines, names in lower case.
    pub headers: Vec<(String, String)>,
    /// As much of the body as the request's limit keeps.
    pub body: Vec<u8>,
    /// True when there was more of it.
    pub body_truncated: bool,
}

impl Response {
    /// True for 200 to 299.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The first header line of this name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body as text; what is no UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as your type.
    ///
    /// # Errors
    ///
    /// It is no JSON, or of another shape.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_slice(&self.body)
    }
}

/// Why there was no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The manifest does not grant this host, or its address is private and not allowed.
    #[error("the request to {url} was denied: grant it in the plugin's manifest (`http`, `allow_private`)")]
    Denied {
        /// Where it should have gone.
        url: String,
    },
    /// The request itself is wrong.
    #[error("the request to {url} is not valid: {reason}")]
    Invalid {
        /// Where it should have gone.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The name of the host has no address.
    #[error("cannot find the host of {url}: {reason}")]
    Lookup {
        /// Where it should have gone.
        url: String,
        /// What the resolver said.
        reason: String,
    },
    /// Nothing listens there, or the connection broke.
    #[error("cannot connect to {url}: {reason}")]
    Connect {
        /// Where it should have gone.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The other side's certificate is not trusted, or TLS failed.
    #[error("no secure connection to {url}: {reason}")]
    Tls {
        /// Where it should have gone.
        url: String,
        /// What happened.
        reason: String,
    },
    /// It took too long.
    #[error("{url} did not answer in time")]
    Timeout {
        /// Where it went.
        url: String,
    },
    /// A limit of the server: size of headers or bodies, number of requests.
    #[error("the exchange with {url} is over a limit: {reason}")]
    Limit {
        /// Where it went.
        url: String,
        /// Which.
        reason: String,
    },
    /// The other side does not speak HTTP as it should.
    #[error("{url} gave no valid answer: {reason}")]
    Protocol {
        /// Where it went.
        url: String,
        /// What happened.
        reason: String,
    },
}

impl Error {
    /// Stable and machine-readable, for a [`HookError`](crate::HookError).
    pub fn code(&self) -> &'static str {
        match self {
            Self::Denied { .. } => "http-denied",
            Self::Invalid { .. } => "http-invalid",
            Self::Lookup { .. } => "http-lookup",
            Self::Connect { .. } => "http-connect",
            Self::Tls { .. } => "http-tls",
            Self::Timeout { .. } => "http-timeout",
            Self::Limit { .. } => "http-limit",
            Self::Protocol { .. } => "http-protocol",
        }
    }

    /// True when trying again may help without anybody changing this plugin, its settings or its manifest.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Lookup { .. }
            | Self::Connect { .. }
            | Self::Tls { .. }
            | Self::Timeout { .. }
            | Self::Protocol { .. } => true,
            Self::Denied { .. } | Self::Invalid { .. } | Self::Limit { .. } => false,
        }
    }
}

/// An address, taken apart as wasi:http wants it.
#[cfg_attr(not(target_family = "wasm"), allow(dead_code, reason = "the wasm transport's; tested natively"))]
#[derive(Debug, PartialEq, Eq)]
struct Address<'a> {
    https: bool,
    authority: &'a str,
    path_with_query: String,
}

#[cfg_attr(not(target_family = "wasm"), allow(dead_code, reason = "the wasm transport's; tested natively"))]
impl<'a> Address<'a> {
    /// The server checks the rest; this only finds the borders (RFC 3986, 3).
    fn parse(url: &'a str) -> Result<Self, &'static str> {
        let (scheme, rest) = url.split_once("://").ok_or("it does not begin with http:// or https://")?;
        let https = match scheme {
            scheme if scheme.eq_ignore_ascii_case("https") => true,
            scheme if scheme.eq_ignore_ascii_case("http") => false,
            _ => return Err("its scheme is neither http nor https"),
        };
        let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.is_empty() {
            return Err("it names no host");
        }
        if authority.contains('@') {
            return Err("a user name or password in it is not supported: use a header");
        }
        let path_with_query = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self { https, authority, path_with_query })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_apart() {
        for (url, https, authority, path) in [
            ("https://example.org", true, "example.org", "/"),
            ("http://example.org:8080/a/b?c=d#e", false, "example.org:8080", "/a/b?c=d"),
            ("HTTPS://[::1]:9?x", true, "[::1]:9", "/?x"),
        ] {
            let expected = Address { https, authority, path_with_query: path.to_owned() };
            assert_eq!(Address::parse(url), Ok(expected), "{url}");
        }
    }

    #[test]
    fn an_address_that_no_request_can_go_to_is_refused() {
        for url in ["example.org", "ftp://example.org", "https:///x", "https://user:pass@example.org"] {
            assert!(Address::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_json_body_brings_its_content_type() {
        let request = post("https://example.org").json(&crate::json!({"a": 1}));
        assert_eq!(request.headers, [("content-type".to_owned(), "application/json".to_owned())]);
        assert_eq!(request.body, br#"{"a":1}"#);
    }
}
