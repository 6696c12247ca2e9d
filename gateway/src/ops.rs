//! HTTP for whoever runs the gateway: probes of an orchestrator, and of people with curl.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use backbone::telemetry::Seldom;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{debug, warn};

use crate::readiness::{self, Readiness};

/// Connections at a time. A further one takes the place of the oldest: a probe is answered as soon as it is there,
/// and needs its connection no longer.
const CONNECTIONS_MAX: usize = 256;
/// How long a request may take to come, or the next one on the same connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after a connection could not be accepted; for want of file descriptors, as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until it is aborted.
pub(crate) async fn serve(listener: TcpListener, readiness: Readiness) -> Infallible {
    let routes = Router::new()
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .route("/health", get(healthy))
        .with_state(readiness);
    let routes = TowerToHyperService::new(routes);
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let mut connections = JoinSet::new();
    let mut by_age = VecDeque::new();
    static FAILED: Seldom = Seldom::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                if let Some(left_out) = FAILED.may_tell() {
                    warn!(left_out, %error, "connection of a probe not accepted");
                }
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        by_age.retain(|connection: &tokio::task::AbortHandle| !connection.is_finished());
        if by_age.len() >= CONNECTIONS_MAX
            && let Some(oldest) = by_age.pop_front()
        {
            oldest.abort();
        }
        let serving = server.serve_connection(TokioIo::new(stream), routes.clone());
        by_age.push_back(connections.spawn(async move {
            if let Err(error) = serving.await {
                debug!(%error, "connection of a probe");
            }
        }));
    }
}

/// Whether to send this gateway new calls.
async fn ready(State(readiness): State<Readiness>) -> (StatusCode, String) {
    match readiness.now() {
        readiness::State::Ready => (StatusCode::OK, "ready\n".to_owned()),
        readiness::State::BrokerAway(reason) => unavailable(&reason),
        readiness::State::Draining => unavailable("draining"),
    }
}

/// Whether what the gateway stands on is well: NATS is connected and the stream answers.
async fn healthy(State(readiness): State<Readiness>) -> (StatusCode, String) {
    match readiness.now() {
        readiness::State::Ready | readiness::State::Draining => (StatusCode::OK, "healthy\n".to_owned()),
        readiness::State::BrokerAway(reason) => unavailable(&reason),
    }
}

fn unavailable(reason: &str) -> (StatusCode, String) {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n"))
}
