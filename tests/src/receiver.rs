//! The outside world: an HTTP server that takes webhooks.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, Mac};
use http::{HeaderMap, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use sha2::Sha256;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::patiently;

/// A webhook that arrived.
#[derive(Debug, Clone)]
pub struct Webhook {
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, byte for byte: that is what was signed.
    pub body: Bytes,
    /// What it was answered.
    pub answered: u16,
}

impl Webhook {
    /// A header's value, empty when there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The same for every try of one delivery.
    #[must_use]
    pub fn id(&self) -> &str {
        self.header("webhook-id")
    }

    /// Its body as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a webhook is JSON")
    }

    /// The id of the job it is about.
    #[must_use]
    pub fn job_id(&self) -> String {
        self.json()["data"]["job"]["id"].as_str().expect("a webhook names its job").to_owned()
    }

    /// Whether it was signed with this key (Standard Webhooks: HMAC-SHA256 of `id.timestamp.body`).
    #[must_use]
    pub fn is_signed_with(&self, key: &[u8]) -> bool {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length will do");
        mac.update(format!("{}.{}.", self.id(), self.header("webhook-timestamp")).as_bytes());
        mac.update(&self.body);
        let expected = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
        self.header("webhook-signature").split(' ').any(|signature| signature == expected)
    }
}

/// What to answer to a webhook: a status, and perhaps `Retry-After`.
type Script = Box<dyn FnMut(&Webhook) -> (u16, Option<u32>) + Send>;

/// Listens on a free port of this machine until it goes.
#[derive(Debug)]
pub struct Receiver {
    url: String,
    arrived: mpsc::UnboundedReceiver<Webhook>,
    listening: tokio::task::JoinHandle<()>,
}

impl Receiver {
    /// Answers each webhook as `script` says.
    pub async fn start(script: impl FnMut(&Webhook) -> (u16, Option<u32>) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let script: Arc<Mutex<Script>> = Arc::new(Mutex::new(Box::new(script)));
        // Unbounded: it holds what one test causes.
        let (sender, arrived) = mpsc::unbounded_channel();
        let listening = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, sender) = (script.clone(), sender.clone());
                let service = service_fn(move |request| take(request, script.clone(), sender.clone()));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { url, arrived, listening }
    }

    /// `http://127.0.0.1:PORT`
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The next webhook that arrives.
    pub async fn webhook(&mut self) -> Webhook {
        patiently("a webhook", self.arrived.recv()).await.expect("the receiver listens")
    }

    /// Webhooks that have arrived and were not asked for.
    pub fn rest(&mut self) -> Vec<Webhook> {
        std::iter::from_fn(|| self.arrived.try_recv().ok()).collect()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn take(
    request: http::Request<Incoming>,
    script: Arc<Mutex<Script>>,
    arrived: mpsc::UnboundedSender<Webhook>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let mut response = Response::new(Full::new(Bytes::new()));
    let Ok(body) = body.collect().await else {
        // It was cut off by a service that was killed: nothing has arrived.
        return Ok(response);
    };
    let mut webhook = Webhook { headers: parts.headers, body: body.to_bytes(), answered: 0 };
    let (status, retry_after) = (script.lock().expect("no script panics"))(&webhook);
    webhook.answered = status;
    *response.status_mut() = status.try_into().expect("a status");
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(http::header::RETRY_AFTER, seconds.into());
    }
    // The test may have heard enough.
    let _ = arrived.send(webhook);
    Ok(response)
}
