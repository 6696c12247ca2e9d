//! The HTTP port: probes of an orchestrator, Prometheus, and people with curl.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{debug, error, warn};

use crate::metrics;
use crate::telemetry::LogThrottle;

/// Maximum number of connections. A further one replaces the oldest: a probe is answered as soon as it arrives, and
/// does not need its connection afterwards.
const CONNECTIONS_MAX: usize = 256;
/// How long a request may take to come, or the next one on the same connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after a connection could not be accepted; for want of file descriptors, as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The health of a program.
pub trait Health: Clone + Send + Sync + 'static {
    /// Whether to send it work: details of its state, or why not.
    fn ready(&self) -> Result<String, String>;

    /// Whether its dependencies are healthy, or which is not.
    fn healthy(&self) -> Result<(), String>;
}

/// Serves /livez, /readyz, /health and /metrics until it is aborted.
pub async fn serve<H: Health>(listener: TcpListener, health: H) -> Infallible {
    let routes = Router::new()
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(ready::<H>))
        .route("/health", get(healthy::<H>))
        .route("/metrics", get(measured))
        .with_state(health);
    let routes = TowerToHyperService::new(routes);
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let mut connections = JoinSet::new();
    let mut by_age = VecDeque::new();
    static FAILED: LogThrottle = LogThrottle::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                if let Some(left_out) = FAILED.allow() {
                    warn!(left_out, %error, "connection at OPS_ADDR not accepted");
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
                debug!(%error, "connection at OPS_ADDR failed");
            }
        }));
    }
}

async fn ready<H: Health>(State(health): State<H>) -> (StatusCode, String) {
    match health.ready() {
        Ok(more) => (StatusCode::OK, format!("ready\n{more}")),
        Err(reason) => unavailable(&reason),
    }
}

async fn healthy<H: Health>(State(health): State<H>) -> (StatusCode, String) {
    match health.healthy() {
        Ok(()) => (StatusCode::OK, "healthy\n".to_owned()),
        Err(reason) => unavailable(&reason),
    }
}

async fn measured() -> Response {
    match metrics::text() {
        Ok(text) => ([(CONTENT_TYPE, metrics::TEXT_TYPE)], text).into_response(),
        Err(error) => {
            error!(%error, "metrics not encoded");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

fn unavailable(reason: &str) -> (StatusCode, String) {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n"))
}
