//! Serves HTTP on the connections of one address. hyper speaks the protocol; this file hands it every limit and
//! decides when a connection ends.
//!
//! tonic's own server is not used: with a grace it never sends the GOAWAY of an old connection and cuts its calls
//! (tonic 0.14.9), and it has one age for all connections.

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rand::Rng;
use tokio::select;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::{Service, ServiceExt};
use tracing::{debug, error};

use super::connection::Connection;

/// Headers of one request that are read. Larger ones are refused by the protocol's library, with HTTP 431 or the end of
/// the connection; those beyond [`Metadata`](crate::admission::Metadata)'s limit by us, with a gRPC status.
pub(crate) const HEADER_BYTES_READ_MAX: u32 = 64 * 1024;
/// Streams that a client may open and reset at once before its connection is closed (CVE-2023-44487).
const RESET_STREAMS_MAX: usize = 64;
/// Frames for streams that are over, and the like, before a connection is closed.
const FAULTS_MAX: usize = 256;
/// How long a connection may be silent before the gateway sends a ping, and how long the client has to answer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the head of a request of HTTP/1.1 may take to come.
const HTTP1_HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// By which part of its age a connection may end earlier or later than others (gRPC proposal A9).
const AGE_JITTER: f64 = 0.1;

/// The settings that differ by address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Streams that one connection may have open at once.
    pub(crate) streams_per_connection_max: u32,
    /// Whether HTTP/1.1 is spoken, for gRPC-Web.
    pub(crate) allows_http1: bool,
    /// When the client should open another connection; with jitter.
    pub(crate) age_max: Duration,
    /// How long its calls and streams may go on after that.
    pub(crate) age_grace: Duration,
}

/// Serves until the drain begins and the last connection has ended. Ends its connections when it is dropped.
pub(crate) async fn serve<S>(
    incoming: impl Stream<Item = Connection>,
    service: S,
    limits: Limits,
    draining: CancellationToken,
) where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let builder = builder(limits);
    let mut connections = JoinSet::new();
    {
        let mut incoming = pin!(incoming);
        loop {
            let connection = select! {
                () = draining.cancelled() => break,
                Some(ended) = connections.join_next() => {
                    report(ended);
                    continue;
                }
                connection = incoming.next() => connection,
            };
            let Some(connection) = connection else { break };
            let (builder, service, draining) = (builder.clone(), service.clone(), draining.clone());
            connections.spawn(drive(connection, builder, service, limits, draining));
        }
        // Dropping `incoming` closes the listener.
    }
    while let Some(ended) = connections.join_next().await {
        report(ended);
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        error!(%error, "connection task panicked");
    }
}

fn builder(limits: Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    if !limits.allows_http1 {
        builder = builder.http2_only();
    }
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .max_concurrent_streams(limits.streams_per_connection_max)
        .max_header_list_size(HEADER_BYTES_READ_MAX)
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        .max_local_error_reset_streams(FAULTS_MAX);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HTTP1_HEADER_TIMEOUT);
    builder
}

/// Serves one connection until its client or its age ends it.
async fn drive<S>(
    connection: Connection,
    builder: auto::Builder<TokioExecutor>,
    service: S,
    limits: Limits,
    draining: CancellationToken,
) where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let age = jittered(limits.age_max, rand::rng().random_range(-1.0..=1.0));
    let too_old = Instant::now() + age;
    let peer = connection.peer();
    let service = service.map_request(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer.clone());
        request
    });
    let serving = builder.serve_connection(TokioIo::new(connection), TowerToHyperService::new(service));
    let mut serving = pin!(serving);
    let ended = select! {
        ended = &mut serving => Some(ended),
        () = sleep_until(too_old) => None,
        () = draining.cancelled() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            // HTTP/2 sends GOAWAY; HTTP/1.1 closes after the answer. A connection without open calls ends at once.
            serving.as_mut().graceful_shutdown();
            match timeout_at(too_old + limits.age_grace, serving).await {
                Ok(ended) => ended,
                Err(_) => {
                    debug!("connection closed with open calls, grace period over");
                    return;
                }
            }
        }
    };
    if let Err(error) = ended {
        debug!(%error, "connection ended");
    }
}

/// An age somewhere around `age_max`; `chance` is from -1 to 1.
fn jittered(age_max: Duration, chance: f64) -> Duration {
    age_max.mul_f64(1.0 + AGE_JITTER * chance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_differ_by_a_tenth_at_the_most() {
        let age = |chance| jittered(Duration::from_secs(100), chance);
        assert_eq!(age(-1.0), Duration::from_secs(90));
        assert_eq!(age(0.0), Duration::from_secs(100));
        assert_eq!(age(1.0), Duration::from_secs(110));
    }
}
