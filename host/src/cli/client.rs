//! A typed client of the public API.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use taxiway_job::JobId;

use super::Connect;
use super::sse::EventStream;
use crate::api::socket::SocketPath;
use crate::api::wire::{
    self, ArrayVerdict, CancelMany, CancelledMany, Explanation, Job, Page, ProblemDocument, QueueSummary, Removed,
    Submission, SubmittedArray, Verdict,
};
use crate::config::{self, SYSTEM_SOCKET};

/// A request that was not answered as asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// Nobody answers.
    #[error(
        "no taxiway service answers at {place}: {cause}\nStart one with `taxiway serve`, or name another with --server or --data-dir."
    )]
    Unreachable {
        /// Where it was looked for.
        place: String,
        /// Why.
        cause: String,
    },
    /// The service says no, and why.
    #[error("{}", .0.detail)]
    Refused(Box<ProblemDocument>),
    /// The connection broke before the answer was there.
    #[error("the connection to {place} broke: {cause}")]
    Broken {
        /// Who should have answered.
        place: String,
        /// Why.
        cause: String,
    },
    /// The answer is none of Taxiway's.
    #[error("the answer of {place} is not understood: {cause}")]
    Answer {
        /// Who answered.
        place: String,
        /// Why.
        cause: String,
    },
}

/// How to reach one service.
pub(super) struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
    /// For people: the URL or the socket's path.
    place: String,
    /// Keeps a long path reachable.
    _socket: Option<SocketPath>,
}

impl Client {
    /// Finds the service: `--server`, else the data directory's socket, else the system's.
    pub(super) fn new(connect: &Connect) -> anyhow::Result<Self> {
        let token = match &connect.token_file {
            Some(file) => {
                let text = std::fs::read_to_string(file)
                    .with_context(|| format!("cannot read the token file {}", file.display()))?;
                Some(text.trim().to_owned())
            }
            None => None,
        };
        let builder = reqwest::Client::builder().user_agent(concat!("taxiway/", env!("CARGO_PKG_VERSION")));
        if let Some(url) = &connect.server {
            let base = url.trim_end_matches('/').to_owned();
            anyhow::ensure!(
                base.starts_with("http://") || base.starts_with("https://"),
                "`{url}` is not a URL: write --server like http://127.0.0.1:8294"
            );
            // A token on its way to this machine has no business at a proxy.
            let host = url.split("://").nth(1).unwrap_or_default();
            let is_here = ["localhost", "127.", "[::1]"].iter().any(|name| host.starts_with(name));
            let builder = if is_here { builder.no_proxy() } else { builder };
            // A machine without certificate authorities can still talk plain HTTP.
            let builder = if base.starts_with("http://") { builder.tls_certs_only([]) } else { builder };
            let http = builder.build().context("cannot set up the HTTP client")?;
            return Ok(Self { http, place: base.clone(), base, token, _socket: None });
        }
        let path = socket_path(connect.data_dir.as_deref())?;
        let socket = SocketPath::new(&path).map_err(|error| ClientError::Unreachable {
            place: path.display().to_string(),
            cause: error.to_string(),
        })?;
        let http = builder
            .tls_certs_only([])
            .no_proxy()
            .unix_socket(socket.as_path())
            .build()
            .context("cannot set up the HTTP client")?;
        Ok(Self {
            http,
            base: "http://localhost".into(),
            token,
            place: path.display().to_string(),
            _socket: Some(socket),
        })
    }

    pub(super) async fn submit(&self, submission: &Submission) -> Result<Job<'static>, ClientError> {
        self.json(self.request(Method::POST, "/api/v1/jobs").json(submission)).await
    }

    pub(super) async fn dry_run(&self, submission: &Submission) -> Result<Verdict<'static>, ClientError> {
        self.json(self.request(Method::POST, "/api/v1/jobs?dry_run=true").json(submission)).await
    }

    pub(super) async fn submit_array(
        &self,
        submission: &Submission,
    ) -> Result<SubmittedArray<Job<'static>>, ClientError> {
        self.json(self.request(Method::POST, "/api/v1/jobs").json(submission)).await
    }

    pub(super) async fn dry_run_array(&self, submission: &Submission) -> Result<ArrayVerdict<'static>, ClientError> {
        self.json(self.request(Method::POST, "/api/v1/jobs?dry_run=true").json(submission)).await
    }

    pub(super) async fn cancel_many(&self, request: &CancelMany) -> Result<CancelledMany<'static>, ClientError> {
        self.json(self.request(Method::POST, "/api/v1/jobs/cancel").json(request)).await
    }

    pub(super) async fn jobs(&self, query: &[(&str, String)]) -> Result<Page<Job<'static>>, ClientError> {
        self.json(self.request(Method::GET, "/api/v1/jobs").query(query)).await
    }

    pub(super) async fn job(&self, id: JobId) -> Result<Job<'static>, ClientError> {
        self.json(self.request(Method::GET, &format!("/api/v1/jobs/{id}"))).await
    }

    pub(super) async fn edit(&self, id: JobId, patch: &Value) -> Result<Job<'static>, ClientError> {
        self.json(self.request(Method::PATCH, &format!("/api/v1/jobs/{id}")).json(patch)).await
    }

    pub(super) async fn explain(&self, id: JobId) -> Result<Explanation<'static>, ClientError> {
        self.json(self.request(Method::GET, &format!("/api/v1/jobs/{id}/explain"))).await
    }

    /// `cancel`, `hold` …, with what it takes beside the job, if anything.
    pub(super) async fn operate(
        &self,
        id: JobId,
        verb: &str,
        body: Option<&Value>,
    ) -> Result<Job<'static>, ClientError> {
        let request = self.request(Method::POST, &format!("/api/v1/jobs/{id}/{verb}"));
        self.json(match body {
            Some(body) => request.json(body),
            None => request,
        })
        .await
    }

    pub(super) async fn queue(&self) -> Result<QueueSummary<'static>, ClientError> {
        self.json(self.request(Method::GET, "/api/v1/queue")).await
    }

    /// `pause`, `resume` or `drain`.
    pub(super) async fn set_queue(&self, verb: &str) -> Result<QueueSummary<'static>, ClientError> {
        self.json(self.request(Method::POST, &format!("/api/v1/queue/{verb}"))).await
    }

    pub(super) async fn collect(&self) -> Result<Removed, ClientError> {
        self.json(self.request(Method::POST, "/api/v1/gc")).await
    }

    pub(super) async fn gpus(&self) -> Result<Page<wire::Gpu>, ClientError> {
        self.json(self.request(Method::GET, "/api/v1/gpus")).await
    }

    pub(super) async fn release_gpu(&self, uuid: &str) -> Result<wire::Gpu, ClientError> {
        self.json(self.request(Method::POST, &format!("/api/v1/gpus/{uuid}/release"))).await
    }

    pub(super) async fn plugins(&self) -> Result<Page<Value>, ClientError> {
        self.json(self.request(Method::GET, "/api/v1/plugins")).await
    }

    /// The log of the last start from this byte on, as far as it has come. None when there is nothing from there on.
    pub(super) async fn log(&self, id: JobId, from: u64) -> Result<Option<Response>, ClientError> {
        self.log_by(id, "", from).await
    }

    /// The same of this attempt. None also when it has not begun.
    pub(super) async fn log_of(&self, id: JobId, attempt: u32, from: u64) -> Result<Option<Response>, ClientError> {
        self.log_by(id, &format!("?attempt={attempt}"), from).await
    }

    /// The log of this attempt from this byte on, as it grows, until the attempt is over; it may be yet to begin. None when it
    /// never will.
    pub(super) async fn follow(&self, id: JobId, attempt: u32, from: u64) -> Result<Option<Response>, ClientError> {
        self.log_by(id, &format!("?attempt={attempt}&follow=true"), from).await
    }

    async fn log_by(&self, id: JobId, query: &str, from: u64) -> Result<Option<Response>, ClientError> {
        let mut request = self.request(Method::GET, &format!("/api/v1/jobs/{id}/log{query}"));
        if from > 0 {
            request = request.header(reqwest::header::RANGE, format!("bytes={from}-"));
        }
        match self.send(request).await {
            Ok(response) => Ok(Some(response)),
            Err(ClientError::Refused(document)) if document.status == StatusCode::RANGE_NOT_SATISFIABLE => Ok(None),
            // Of an attempt that was asked for by its number.
            Err(ClientError::Refused(document)) if document.status == StatusCode::NOT_FOUND && !query.is_empty() => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Bytes of a log so far: of this attempt, which may not have begun, else of the last one that did.
    pub(super) async fn log_size(&self, id: JobId, attempt: Option<u32>) -> Result<u64, ClientError> {
        let query = attempt.map_or_else(String::new, |attempt| format!("?attempt={attempt}"));
        let request = self.request(Method::HEAD, &format!("/api/v1/jobs/{id}/log{query}"));
        let response = self.answer(request).await?;
        if response.status() == StatusCode::NOT_FOUND && attempt.is_some() {
            return Ok(0);
        }
        if !response.status().is_success() {
            // What is wrong only the answer to another method says.
            self.send(self.request(Method::GET, &format!("/api/v1/jobs/{id}"))).await?;
            return Err(self.not_understood(anyhow::anyhow!("the log's size is told with {}", response.status())));
        }
        let length = response.headers().get(reqwest::header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        Ok(length.and_then(|length| length.parse().ok()).unwrap_or(0))
    }

    /// What happens to a job from now on.
    pub(super) async fn events(&self, id: JobId) -> Result<EventStream, ClientError> {
        let request = self.request(Method::GET, "/api/v1/events").query(&[("job_id", id.to_string())]);
        Ok(EventStream::new(self.send(request).await?))
    }

    /// The job that a person means: its id, the first digits of it, or its external id.
    pub(super) async fn resolve(&self, text: &str) -> anyhow::Result<JobId> {
        // Plain digits without hyphens would be an id to the parser, and a prefix to people.
        if let Ok(id) = text.parse::<JobId>() {
            return Ok(id);
        }
        if !text.is_empty() && text.chars().all(|c| c.is_ascii_hexdigit() || c == '-') {
            let found = self.jobs(&[("id", text.to_owned()), ("limit", "2".to_owned())]).await?.items;
            match found.as_slice() {
                [only] => return Ok(only.id),
                [] => {}
                _ => anyhow::bail!("several jobs have an id that begins with `{text}`: give more digits of it"),
            }
        }
        let found = self.jobs(&[("external_id", text.to_owned())]).await?.items;
        match found.first() {
            Some(job) => Ok(job.id),
            None => anyhow::bail!("there is no job `{text}`: `taxiway ls` lists the jobs"),
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        let bytes = self.send(request).await?.bytes().await.map_err(|error| self.broken(error))?;
        serde_json::from_slice(&bytes).map_err(|error| self.not_understood(error))
    }

    /// The answer, when it is a success.
    /// The answer, whatever it says.
    async fn answer(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        request.send().await.map_err(|error| {
            if error.is_connect() {
                ClientError::Unreachable { place: self.place.clone(), cause: innermost(error) }
            } else {
                self.broken(error)
            }
        })
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = self.answer(request).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = response.bytes().await.map_err(|error| self.broken(error))?;
        match serde_json::from_slice(&bytes) {
            Ok(document) => Err(ClientError::Refused(Box::new(document))),
            Err(_) => Err(self.not_understood(anyhow::anyhow!("it is {status}, and no problem document"))),
        }
    }

    fn broken(&self, error: reqwest::Error) -> ClientError {
        ClientError::Broken { place: self.place.clone(), cause: innermost(error) }
    }

    fn not_understood(&self, cause: impl Into<anyhow::Error>) -> ClientError {
        ClientError::Answer { place: self.place.clone(), cause: format!("{:#}", cause.into()) }
    }
}

/// The socket of the data directory, unless it is not there and the system's is.
fn socket_path(data_dir: Option<&Path>) -> anyhow::Result<PathBuf> {
    let own = config::data_dir(data_dir)?.join("taxiway.sock");
    let system = Path::new(SYSTEM_SOCKET);
    Ok(if data_dir.is_none() && !own.exists() && system.exists() { system.to_owned() } else { own })
}

/// The cause that says something: what the kernel answered.
fn innermost(error: reqwest::Error) -> String {
    anyhow::Error::from(error).root_cause().to_string()
}

/// A try that fails because the service is away is repeated for about this long: a restart takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Calls `attempt` until it is answered, with growing pauses while no service is there to tell when it is back.
pub(super) async fn through_restarts<T>(
    mut attempt: impl AsyncFnMut() -> Result<T, ClientError>,
) -> Result<T, ClientError> {
    let began = tokio::time::Instant::now();
    let mut pause = Duration::from_millis(100);
    loop {
        let failed = match attempt().await {
            Err(error) if is_away(&error) && began.elapsed() < PATIENCE => error,
            answer => return answer,
        };
        tracing::debug!(%failed, "the service is away");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

fn is_away(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } | ClientError::Broken { .. } => true,
        ClientError::Answer { .. } => false,
        ClientError::Refused(document) => document.code == "stopping",
    }
}
