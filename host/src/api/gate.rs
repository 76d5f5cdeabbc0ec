//! Before any handler: is the request meant for us, does it come from a page of ours, who asks, and may they?

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header, request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Api;
use super::answer::Refused;
use super::connection::Peer;
use crate::store::{Scope, StoreError};

/// Who asks.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// Name of the token, or the user of the unix socket: for the audit trail and `submitted_by`.
    pub(super) name: Arc<str>,
    /// What they may do.
    pub(super) scope: Scope,
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut request::Parts, _: &S) -> Result<Self, Refused> {
        // Absent only on routes that are open to everybody, whose handlers do not ask.
        parts.extensions.get::<Self>().cloned().ok_or_else(unauthorized)
    }
}

/// What one route asks of its callers.
#[derive(Clone)]
pub(super) struct Gate {
    pub(super) api: Arc<Api>,
    /// None: open to everybody.
    pub(super) scope: Option<Scope>,
    /// Whether any `Host` will do: for probes, which know the service by its address alone.
    pub(super) any_host: bool,
}

/// The middleware of every route.
pub(super) async fn pass(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    match check(&gate, &parts).await {
        Ok(caller) => {
            if let Some(caller) = caller {
                parts.extensions.insert(caller);
            }
            next.run(Request::from_parts(parts, body)).await
        }
        Err(refused) => refused.into_response(),
    }
}

async fn check(gate: &Gate, request: &request::Parts) -> Result<Option<Caller>, Refused> {
    let headers = &request.headers;
    let peer = request.extensions.get::<Peer>().copied().unwrap_or(Peer::Tcp);
    let host = host(request);
    if matches!(peer, Peer::Tcp) && !gate.any_host && !host.is_some_and(|host| gate.api.hosts.allows(host)) {
        return Err(Refused::new(
            StatusCode::MISDIRECTED_REQUEST,
            "unknown-host",
            format!(
                "this service does not answer to the name `{}`: use localhost or an address, or add the name to server.allowed_hosts",
                host.unwrap_or_default()
            ),
        ));
    }
    let Some(needed) = gate.scope else { return Ok(None) };
    let by_token = bearer(headers, &gate.api).await?;
    if by_token.is_none() && request.method != Method::GET && request.method != Method::HEAD {
        own_page(headers, host.unwrap_or_default(), &gate.api)?;
    }
    let caller = match by_token {
        Some(caller) => caller,
        None => without_token(&gate.api, peer).ok_or_else(unauthorized)?,
    };
    if caller.scope < needed {
        return Err(forbidden(&caller, needed));
    }
    Ok(Some(caller))
}

/// The one `Host` of a request; none when it has several, which RFC 9112 forbids.
fn host(request: &request::Parts) -> Option<&str> {
    let mut hosts = request.headers.get_all(header::HOST).iter();
    let only = hosts.next().filter(|_| hosts.next().is_none())?.to_str().ok()?;
    // In absolute form the target's authority wins over the header (RFC 9112, 3.2.2).
    Some(request.uri.authority().map_or(only, |authority| authority.as_str()))
}

/// The token's owner; none when there is no token. A wrong one is refused, whatever else would speak for the caller.
async fn bearer(headers: &HeaderMap, api: &Api) -> Result<Option<Caller>, Refused> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let token = value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or_else(unauthorized)?;
    let found = api.tokens.find(token, &api.service.store).await.map_err(|error: StoreError| Refused::from(error))?;
    found.map(Some).ok_or_else(|| {
        Refused::new(StatusCode::UNAUTHORIZED, "unauthorized", "this token is not known here, or was revoked")
    })
}

/// A change must come from a page of ours, or from no page at all.
fn own_page(headers: &HeaderMap, host: &str, api: &Api) -> Result<(), Refused> {
    let site = headers.get("sec-fetch-site").is_none_or(|site| site == "same-origin");
    let origin = headers
        .get(header::ORIGIN)
        .is_none_or(|origin| origin.to_str().is_ok_and(|origin| api.hosts.is_same_origin(origin, host)));
    if site && origin {
        return Ok(());
    }
    Err(Refused::new(
        StatusCode::FORBIDDEN,
        "cross-origin",
        "a page of another site may change nothing here: send the request with a bearer token",
    ))
}

/// Who the connection itself speaks for.
fn without_token(api: &Api, peer: Peer) -> Option<Caller> {
    let own = nix::unistd::geteuid().as_raw();
    match peer {
        Peer::Unix { uid } if uid == own || uid == 0 => Some(Caller { name: user_name(uid), scope: Scope::Admin }),
        _ if api.service.settings.no_auth => Some(Caller { name: "anonymous".into(), scope: Scope::Admin }),
        _ => None,
    }
}

fn user_name(uid: u32) -> Arc<str> {
    if uid == 0 {
        return "root".into();
    }
    match nix::unistd::User::from_uid(uid.into()) {
        Ok(Some(user)) => user.name.into(),
        _ => format!("uid {uid}").into(),
    }
}

fn unauthorized() -> Refused {
    Refused::new(
        StatusCode::UNAUTHORIZED,
        "unauthorized",
        "send `Authorization: Bearer TOKEN`; the first start wrote a token to the file `token` in the service's data directory",
    )
}

/// The caller's scope does not suffice.
pub(super) fn forbidden(caller: &Caller, needed: Scope) -> Refused {
    let name = |scope| match scope {
        Scope::Read => "read",
        Scope::Submit => "submit",
        Scope::Operate => "operate",
        Scope::Admin => "admin",
    };
    Refused::new(
        StatusCode::FORBIDDEN,
        "forbidden",
        format!("`{}` has the scope `{}`, and this needs `{}`", caller.name, name(caller.scope), name(needed)),
    )
}
