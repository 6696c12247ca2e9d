//! HTTP for whoever runs the gateway: probes of an orchestrator, and of people with curl.

use std::io;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::readiness::{self, Readiness};

/// Serves until it is aborted.
pub(crate) async fn serve(listener: TcpListener, readiness: Readiness) -> io::Result<()> {
    let routes = Router::new()
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .route("/health", get(healthy))
        .with_state(readiness);
    axum::serve(listener, routes).await
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
