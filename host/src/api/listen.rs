//! The listeners, and serving until the service stops.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use axum::Router;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::{self, Peer};
use super::{Api, hosts, idempotency, routes, socket, token};
use crate::config::Settings;
use crate::service::Service;
use crate::systemd;

/// How long requests that are under way may take once the service stops. Submissions take milliseconds, plugins at most two
/// seconds each; what is slower is a client that does not read.
const LAST_REQUESTS: Duration = Duration::from_secs(5);

/// Why the service cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Others could reach it without protection.
    #[error(
        "{0} can be reached from other machines, and tokens would travel unencrypted: put a TLS proxy in front and set server.behind_proxy = true, or listen on 127.0.0.1"
    )]
    Exposed(SocketAddr),
    /// Everybody would be an administrator.
    #[error("--no-auth works on loopback only, and {0} is not: leave it out, or listen on 127.0.0.1")]
    NoAuthExposed(SocketAddr),
    /// The TCP address is not to be had.
    #[error("cannot listen on {address}: {source}; choose another with --listen, or 127.0.0.1:0 for any free port")]
    Tcp {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The unix socket is not to be had.
    #[error("cannot listen on the unix socket {}: {source}", path.display())]
    Unix {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The listeners, bound. Clients that connect already wait until [`Server::run`].
pub struct Server {
    tcp: TcpListener,
    address: SocketAddr,
    unix: UnixListener,
    /// Removes the socket's file when the server is dropped.
    bound: socket::Bound,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("address", &self.address).field("socket", &self.bound).finish_non_exhaustive()
    }
}

impl Server {
    /// Binds the TCP address and the unix socket. Call it with the data directory claimed, within a runtime.
    ///
    /// # Errors
    /// When an address is taken, or would expose the service.
    pub async fn bind(settings: &Settings) -> Result<Self, BindError> {
        let wanted = settings.config.server.listen;
        if !wanted.ip().is_loopback() {
            if settings.no_auth {
                return Err(BindError::NoAuthExposed(wanted));
            }
            if !settings.config.server.behind_proxy {
                return Err(BindError::Exposed(wanted));
            }
        }
        let failed = |source| BindError::Tcp { address: wanted, source };
        let tcp = TcpListener::bind(wanted).await.map_err(failed)?;
        let address = tcp.local_addr().map_err(failed)?;
        let path = settings.socket();
        let failed = |source| BindError::Unix { path: path.clone(), source };
        let bound = socket::bind(&path, settings.config.server.socket_mode).map_err(failed)?;
        let unix = bound.listener.try_clone().and_then(UnixListener::from_std).map_err(failed)?;
        Ok(Self { tcp, address, unix, bound })
    }

    /// The TCP address, with its port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves `service` until `stop` is cancelled; then takes no more connections, ends streams, and returns when the
    /// requests that are under way are answered. Prints `listening on http://ADDRESS` to standard output, once.
    pub async fn run(self, service: Arc<Service>, stop: CancellationToken) {
        let api = Arc::new(Api {
            hosts: hosts::Hosts::new(&service.settings.config.server),
            service,
            tokens: token::Tokens::default(),
            keys: idempotency::Keys::default(),
            large_bodies: Semaphore::new(1),
            stop: stop.clone(),
        });
        routes::settle_incoming(&api.service.store, &api.service.settings.jobs_dir()).await;
        let router = routes::router(&api);
        let connections = TaskTracker::new();
        if let Err(error) = writeln!(io::stdout(), "listening on http://{}", self.address) {
            tracing::warn!(%error, address = %self.address, "listening, and standard output cannot be written");
        }
        systemd::ready(&format!("listening on http://{}", self.address));
        let tcp = accept_tcp(self.tcp, router.clone(), &connections, &stop);
        let unix = accept_unix(self.unix, router, &connections, &stop);
        tokio::select! {
            () = stop.cancelled() => {}
            ((), ()) = async { tokio::join!(tcp, unix) } => {}
        }
        systemd::stopping();
        drop(self.bound);
        connections.close();
        if tokio::time::timeout(LAST_REQUESTS, connections.wait()).await.is_err() {
            tracing::warn!(connections = connections.len(), "some clients were cut off");
        }
    }
}

async fn accept_tcp(listener: TcpListener, router: Router, connections: &TaskTracker, stop: &CancellationToken) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Answers are written whole: waiting for more to send (Nagle) would only delay them.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "a connection ended before it began");
                    continue;
                }
                connections.spawn(connection::serve(stream, Peer::Tcp, router.clone(), stop.clone()));
            }
            Err(error) => recover(&error).await,
        }
    }
}

async fn accept_unix(listener: UnixListener, router: Router, connections: &TaskTracker, stop: &CancellationToken) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match stream.peer_cred() {
                Ok(peer) => {
                    let peer = Peer::Unix { uid: peer.uid() };
                    connections.spawn(connection::serve(stream, peer, router.clone(), stop.clone()));
                }
                Err(error) => tracing::warn!(%error, "a client of the unix socket could not be identified"),
            },
            Err(error) => recover(&error).await,
        }
    }
}

/// After a failed accept. A client that hung up (ECONNABORTED) concerns nobody. When there are no more descriptors or memory,
/// the connection stays in the backlog and accept would fail again at once: nothing tells when to go on, so time must.
async fn recover(error: &io::Error) {
    if error.kind() == io::ErrorKind::ConnectionAborted {
        return;
    }
    tracing::error!(%error, "cannot accept connections just now");
    tokio::time::sleep(Duration::from_millis(200)).await;
}
