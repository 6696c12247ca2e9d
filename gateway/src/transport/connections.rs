//! Accepting connections, before there is a call on them: how many there may be, and their TLS.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::unfold;
use futures::{Stream, StreamExt};
use program::telemetry::LogThrottle;
use tokio::net::{TcpListener, TcpStream};
use tokio::select;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use super::connection::Connection;
use super::eviction::{AuthenticationState, UnauthenticatedConnections};
use super::peer::Peer;
use super::tls::{self, Tls};

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often an unauthenticated connection is evicted while others wait.
const EVICTION_INTERVAL: Duration = Duration::from_secs(1);
/// Pause after a failed accept, usually for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The connection limit; connections in their TLS handshake count.
#[derive(Debug)]
pub(crate) struct ConnectionLimit {
    connections_max: usize,
    unauthenticated: Option<UnauthenticatedConnections>,
}

impl ConnectionLimit {
    /// Further connections wait in the listen backlog until another one ends.
    pub(crate) fn of(connections_max: usize) -> Self {
        Self { connections_max, unauthenticated: None }
    }

    /// Further connections wait until an unauthenticated one is evicted: one without a call that passed
    /// [`KeepAuthenticated`](super::peer::KeepAuthenticated).
    pub(crate) fn with_eviction(connections_max: usize) -> Self {
        Self { connections_max, unauthenticated: Some(UnauthenticatedConnections::default()) }
    }
}

/// The connections of `listener`. Silent ones end when the drain begins.
pub(crate) fn accept(
    listener: TcpListener,
    limit: ConnectionLimit,
    tls: Option<Tls>,
    draining: CancellationToken,
) -> impl Stream<Item = Connection> {
    let accepted = accept_tcp(listener, limit, draining.clone());
    match tls {
        None => accepted.map(move |accepted| accepted.plaintext(draining.clone())).left_stream(),
        Some(tls) => accepted
            .map(move |accepted| {
                // A task of its own, so that handshakes run concurrently.
                let secured = accepted.secured(tls.clone(), draining.clone());
                AbortOnDropHandle::new(tokio::spawn(secured))
            })
            // Bounded by the connection limit.
            .buffer_unordered(usize::MAX)
            .filter_map(async |secured| secured.ok().flatten())
            .right_stream(),
    }
}

fn accept_tcp(
    listener: TcpListener,
    limit: ConnectionLimit,
    draining: CancellationToken,
) -> impl Stream<Item = Accepted> {
    static FULL: LogThrottle = LogThrottle::new();
    static FAILED: LogThrottle = LogThrottle::new();
    let ConnectionLimit { connections_max, unauthenticated } = limit;
    let permits = Arc::new(Semaphore::new(connections_max));
    unfold(
        (listener, permits, unauthenticated, draining),
        async |(listener, permits, unauthenticated, draining)| {
            if permits.available_permits() == 0
                && let Some(left_out) = FULL.allow()
            {
                warn!(left_out, "connection limit reached, new connections wait");
            }
            let permit = loop {
                select! {
                    // The semaphore is never closed.
                    permit = permits.clone().acquire_owned() => break permit.ok()?,
                    () = sleep(EVICTION_INTERVAL), if unauthenticated.is_some() => {
                        unauthenticated.iter().for_each(UnauthenticatedConnections::evict_one);
                    }
                }
            };
            let stream = loop {
                match listener.accept().await {
                    Ok((stream, _)) => break stream,
                    Err(error) => {
                        if let Some(left_out) = FAILED.allow() {
                            warn!(left_out, %error, "connection not accepted");
                        }
                        select! {
                            () = sleep(ACCEPT_PAUSE) => {}
                            () = draining.cancelled() => return None,
                        }
                    }
                }
            };
            // Answers are small and must not wait for a full packet (Nagle).
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%error, "TCP_NODELAY not set");
            }
            let authentication = unauthenticated.as_ref().map(UnauthenticatedConnections::add);
            Some((
                Accepted { stream, permit, authentication },
                (listener, permits, unauthenticated, draining),
            ))
        },
    )
}

/// A connection without data yet.
struct Accepted {
    stream: TcpStream,
    permit: OwnedSemaphorePermit,
    authentication: Option<Arc<AuthenticationState>>,
}

impl Accepted {
    fn plaintext(self, draining: CancellationToken) -> Connection {
        let peer = Peer { addr: self.addr(), certificate_names: None, authentication: self.authentication };
        Connection::new(Box::new(self.stream), peer, self.permit, draining)
    }

    /// The connection after its TLS handshake, if that succeeds in time.
    async fn secured(self, tls: Tls, draining: CancellationToken) -> Option<Connection> {
        let addr = self.addr();
        let handshake = timeout(HANDSHAKE_TIMEOUT, tls.handshake(self.stream)).await;
        let stream = match handshake.map_err(io::Error::from).flatten() {
            Ok(stream) => stream,
            Err(error) => {
                debug!(?addr, %error, "TLS handshake failed");
                return None;
            }
        };
        let (_, session) = stream.get_ref();
        let certificate = session.peer_certificates().and_then(<[_]>::first);
        let certificate_names = certificate.map(|certificate| tls::names(certificate).into());
        let peer = Peer { addr, certificate_names, authentication: self.authentication };
        Some(Connection::new(Box::new(stream), peer, self.permit, draining))
    }

    /// `None` of a connection that is gone already.
    fn addr(&self) -> Option<IpAddr> {
        self.stream.peer_addr().ok().map(|addr| addr.ip())
    }
}
