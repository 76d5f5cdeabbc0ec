//! One connection: who is at its other end, and serving it until it ends or the service stops.

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tower::Service;

/// Time to send the head of a request. A client that is slower than this holds a connection open for nothing.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Who is at the other end.
#[derive(Debug, Clone, Copy)]
pub(super) enum Peer {
    /// Somebody who reached the TCP listener.
    Tcp,
    /// A process of this user (SO_PEERCRED, unix(7)).
    Unix {
        /// The user.
        uid: u32,
    },
}

/// Serves the connection. When `stop` is cancelled it ends after the request that is under way.
pub(super) async fn serve<I>(io: I, peer: Peer, router: Router, stop: CancellationToken)
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer);
        let answer = Service::<Request<Body>>::call(&mut router.clone(), request);
        async move { answer.await.map_err(|never: Infallible| never) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // Clients hang up all the time; nobody needs to be told.
        tracing::debug!(%error, ?peer, "a connection ended early");
    }
}
