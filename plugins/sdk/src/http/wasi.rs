//! A request over `wasi:http`, one at a time: a hook has nothing else to do meanwhile.

use std::time::Duration;

use wasip2::{
    http::{
        outgoing_handler,
        types::{
            ErrorCode, Fields, IncomingBody, IncomingResponse, Method, OutgoingBody, OutgoingRequest, RequestOptions,
            Scheme,
        },
    },
    io::streams::StreamError,
};

use super::{Address, Error, Request, Response};

/// What `blocking-write-and-flush` takes at once (wasi:io/streams).
const WRITE_BYTES: usize = 4096;

pub(super) fn send(request: &Request) -> Result<Response, Error> {
    let url = request.url.as_str();
    let invalid = |reason: &str| Error::Invalid { url: url.to_owned(), reason: reason.to_owned() };

    let address = Address::parse(url).map_err(invalid)?;
    let mut lines: Vec<(String, Vec<u8>)> =
        request.headers.iter().map(|(name, value)| (name.clone(), value.as_bytes().to_vec())).collect();
    if !request.body.is_empty() {
        // Without it the body is sent in chunks, which some receivers refuse.
        lines.push(("content-length".to_owned(), request.body.len().to_string().into_bytes()));
    }
    let headers = Fields::from_list(&lines)
        .map_err(|error| invalid(&format!("a header is malformed or not allowed: {error:?}")))?;

    let outgoing = OutgoingRequest::new(headers);
    outgoing.set_method(&method(&request.method)).map_err(|()| invalid("malformed method"))?;
    let scheme = if address.https { Scheme::Https } else { Scheme::Http };
    outgoing.set_scheme(Some(&scheme)).map_err(|()| invalid("malformed scheme"))?;
    outgoing.set_authority(Some(address.authority)).map_err(|()| invalid("malformed host or port"))?;
    outgoing.set_path_with_query(Some(&address.path_with_query)).map_err(|()| invalid("malformed path or query"))?;
    let body = outgoing.body().map_err(|()| invalid("its body was taken already"))?;

    let future = outgoing_handler::handle(outgoing, options(request.timeout)).map_err(|code| from_code(url, code))?;
    // A receiver may answer and hang up before it has read everything: its answer counts then, not the broken pipe.
    let written = write(body, &request.body);

    future.subscribe().block();
    let answer = match future.get() {
        Some(Ok(answer)) => answer.map_err(|code| from_code(url, code))?,
        Some(Err(())) | None => {
            return Err(Error::Protocol { url: url.to_owned(), reason: "the server gave no answer".to_owned() });
        }
    };
    if let Err(reason) = written {
        crate::debug!("the body of the request to {url} was not read to its end: {reason}");
    }
    read(url, &answer, request.response_limit_bytes)
}

fn options(timeout: Option<Duration>) -> Option<RequestOptions> {
    let nanos = u64::try_from(timeout?.as_nanos()).unwrap_or(u64::MAX);
    let options = RequestOptions::new();
    // Each of them may be one that this server does not support; its own limits hold all the same.
    let _ = options.set_connect_timeout(Some(nanos));
    let _ = options.set_first_byte_timeout(Some(nanos));
    let _ = options.set_between_bytes_timeout(Some(nanos));
    Some(options)
}

fn write(body: OutgoingBody, bytes: &[u8]) -> Result<(), String> {
    {
        let stream = body.write().map_err(|()| "its stream was taken already".to_owned())?;
        for chunk in bytes.chunks(WRITE_BYTES) {
            stream.blocking_write_and_flush(chunk).map_err(|error| match error {
                StreamError::Closed => "closed".to_owned(),
                StreamError::LastOperationFailed(cause) => cause.to_debug_string(),
            })?;
        }
        // The stream must be gone before its body can be finished.
    }
    OutgoingBody::finish(body, None).map_err(|code| format!("{code:?}"))
}

fn read(url: &str, answer: &IncomingResponse, limit: usize) -> Result<Response, Error> {
    let protocol = |reason: String| Error::Protocol { url: url.to_owned(), reason };
    let headers = answer
        .headers()
        .entries()
        .into_iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), String::from_utf8_lossy(&value).into_owned()))
        .collect();
    let incoming: IncomingBody = answer.consume().map_err(|()| protocol("its body was taken already".to_owned()))?;
    let stream = incoming.stream().map_err(|()| protocol("its body's stream was taken already".to_owned()))?;

    let mut body = Vec::new();
    let body_truncated = loop {
        // One byte more than is kept tells whether there is more.
        let want = (limit - body.len()).saturating_add(1).min(64 * 1024);
        match stream.blocking_read(want as u64) {
            Ok(bytes) => body.extend_from_slice(&bytes),
            Err(StreamError::Closed) => break false,
            Err(StreamError::LastOperationFailed(cause)) => return Err(protocol(cause.to_debug_string())),
        }
        if body.len() > limit {
            body.truncate(limit);
            break true;
        }
    };
    Ok(Response { status: answer.status(), headers, body, body_truncated })
}

fn method(name: &str) -> Method {
    match name {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "DELETE" => Method::Delete,
        "CONNECT" => Method::Connect,
        "OPTIONS" => Method::Options,
        "TRACE" => Method::Trace,
        "PATCH" => Method::Patch,
        other => Method::Other(other.to_owned()),
    }
}

fn from_code(url: &str, code: ErrorCode) -> Error {
    let url = url.to_owned();
    let reason = match &code {
        ErrorCode::InternalError(Some(text)) => text.clone(),
        code => format!("{code:?}"),
    };
    match code {
        ErrorCode::HttpRequestDenied | ErrorCode::DestinationIpProhibited => Error::Denied { url },
        ErrorCode::HttpRequestMethodInvalid
        | ErrorCode::HttpRequestUriInvalid
        | ErrorCode::HttpRequestUriTooLong
        | ErrorCode::HttpRequestLengthRequired
        | ErrorCode::ConfigurationError => Error::Invalid { url, reason },
        ErrorCode::DnsError(_) | ErrorCode::DestinationNotFound => Error::Lookup { url, reason },
        ErrorCode::DestinationUnavailable
        | ErrorCode::DestinationIpUnroutable
        | ErrorCode::ConnectionRefused
        | ErrorCode::ConnectionTerminated => Error::Connect { url, reason },
        ErrorCode::TlsProtocolError | ErrorCode::TlsCertificateError | ErrorCode::TlsAlertReceived(_) => {
            Error::Tls { url, reason }
        }
        ErrorCode::DnsTimeout
        | ErrorCode::ConnectionTimeout
        | ErrorCode::ConnectionReadTimeout
        | ErrorCode::ConnectionWriteTimeout
        | ErrorCode::HttpResponseTimeout => Error::Timeout { url },
        ErrorCode::ConnectionLimitReached
        | ErrorCode::HttpRequestBodySize(_)
        | ErrorCode::HttpRequestHeaderSectionSize(_)
        | ErrorCode::HttpRequestHeaderSize(_)
        | ErrorCode::HttpRequestTrailerSectionSize(_)
        | ErrorCode::HttpRequestTrailerSize(_)
        | ErrorCode::HttpResponseHeaderSectionSize(_)
        | ErrorCode::HttpResponseHeaderSize(_)
        | ErrorCode::HttpResponseBodySize(_)
        | ErrorCode::HttpResponseTrailerSectionSize(_)
        | ErrorCode::HttpResponseTrailerSize(_) => Error::Limit { url, reason },
        ErrorCode::HttpResponseIncomplete
        | ErrorCode::HttpResponseTransferCoding(_)
        | ErrorCode::HttpResponseContentCoding(_)
        | ErrorCode::HttpUpgradeFailed
        | ErrorCode::HttpProtocolError
        | ErrorCode::LoopDetected
        | ErrorCode::InternalError(_) => Error::Protocol { url, reason },
    }
}
