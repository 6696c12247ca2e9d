//! The streams that hold the order log and the dead letters: made if they are missing, completed where that does no
//! harm, and otherwise left alone.

mod config;
mod layout;
pub(crate) mod names;
mod state;

use std::time::Duration;

use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamError, GetStreamErrorKind};
use async_nats::jetstream::stream::Info;
use async_nats::jetstream::{self, ErrorCode};
use program::backoff::Backoff;
use program::telemetry::LogThrottle;
use thiserror::Error;
use tracing::{error, info, warn};

pub use config::{RETENTION_MAX, RETENTION_MIN, StreamConfig};
pub use layout::{age, harm};
pub use names::{DEAD_LETTERS, DEFERRALS, ORDERS, PROVISION};
pub use state::StreamState;

use crate::broker::connection::Connection;
use crate::broker::direct_get::ReadError;
use crate::broker::error_class::{ErrorClass, classify};
use crate::log::known_losses::mark_of_successor;
use layout::Layout;

const CLUSTER_REPLICAS: usize = 3;
const RETRY: Backoff = Backoff { initial: Duration::from_millis(50), max: Duration::from_secs(2) };

/// A stream differs from what is needed, and cannot be changed to it.
#[derive(Debug, Error)]
pub enum ProvisionError {
    /// The stream exists, and changing it to what we need could lose orders.
    #[error("stream {0} exists and will not be changed, because that could lose orders: {harm}", harm = .1.join("; "))]
    Differs(&'static str, Vec<String>),
    /// The broker refused.
    #[error("the broker rejected stream {0}: {1}")]
    Broker(&'static str, String),
}

/// Pause between two log lines about the wait.
const LOG_INTERVAL: Duration = Duration::from_secs(15);

enum Attempt {
    /// With so many replicas.
    Done(usize),
    /// The broker is unavailable or busy: nothing is known.
    Retry(String),
}

/// Why an attempt cannot succeed.
enum FatalError {
    Differs(Vec<String>),
    Broker(String),
}

/// Ensures that the order log and the dead letters exist, and waits for the broker without a deadline. `waiting` receives the
/// cause.
pub async fn provision(
    connection: &Connection,
    config: &StreamConfig,
    waiting: impl Fn(String),
) -> Result<(), ProvisionError> {
    provision_both(connection, config, &waiting).await?;
    Ok(())
}

/// As [`provision`], and the timers of deferred orders, which gateways need and steps that may defer.
pub async fn provision_with_deferrals(
    connection: &Connection,
    config: &StreamConfig,
    waiting: impl Fn(String),
) -> Result<(), ProvisionError> {
    let replicas = provision_both(connection, config, &waiting).await?;
    provision_one(connection, &Layout::of_deferrals(replicas), &waiting).await?;
    Ok(())
}

async fn provision_both(
    connection: &Connection,
    config: &StreamConfig,
    waiting: impl Fn(String),
) -> Result<usize, ProvisionError> {
    let replicas = provision_one(connection, &Layout::of_orders(config), &waiting).await?;
    provision_one(connection, &Layout::of_dead_letters(replicas), &waiting).await?;
    Ok(replicas)
}

/// Recreates the stream of dead letters if it was deleted while the programs run.
pub(crate) async fn restore_dead_letters(connection: &Connection) {
    restore(connection, Layout::of_dead_letters, "its dead letters are lost").await;
}

/// Recreates the stream of timers if it was deleted while the programs run.
pub(crate) async fn restore_deferrals(connection: &Connection) {
    restore(connection, Layout::of_deferrals, "deferred orders are resumed when they are carried").await;
}

async fn restore(connection: &Connection, layout: impl Fn(usize) -> Layout, loss: &'static str) {
    let jetstream = connection.jetstream();
    let stream = layout(1).name;
    match jetstream.get_stream(stream).await {
        Err(error) if is_not_found(&error) => {}
        // The stream exists, or its state is unknown.
        Ok(_) | Err(_) => return,
    }
    // With as many replicas as the order log.
    let Ok(orders) = jetstream.get_stream(ORDERS).await else { return };
    let layout = layout(orders.cached_info().config.num_replicas);
    match create(connection, &layout).await {
        Ok(Attempt::Done(_)) => {
            error!("stream {stream} was deleted, recreated empty; {loss}");
        }
        Ok(Attempt::Retry(error)) | Err(FatalError::Broker(error)) => {
            error!(error, "stream {stream} was deleted, not recreated yet");
        }
        // Only an existing stream can differ.
        Err(FatalError::Differs(_)) => {}
    }
}

/// The stream's info from the server that acts as its leader. [`ReadError::Broker`] if it is missing.
pub async fn info(connection: &Connection, name: &str) -> Result<Info, ReadError> {
    match connection.jetstream().get_stream(name).await {
        Ok(stream) => Ok(stream.cached_info().clone()),
        Err(error) if is_not_found(&error) => Err(ReadError::Broker(format!("stream {name} is missing"))),
        Err(error) => Err(ReadError::NoAnswer(error.to_string())),
    }
}

fn is_not_found(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(refusal) if refusal.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

async fn provision_one(
    connection: &Connection,
    layout: &Layout,
    waiting: impl Fn(String),
) -> Result<usize, ProvisionError> {
    let stream = layout.name;
    let (mut attempts, throttle) = (0, LogThrottle::every(LOG_INTERVAL));
    loop {
        if !connection.is_up() {
            waiting("not connected to NATS".to_owned());
            connection.up().await;
        }
        match attempt(connection, layout).await {
            Ok(Attempt::Done(replicas)) => return Ok(replicas),
            Ok(Attempt::Retry(error)) => {
                attempts += 1;
                if let Some(left_out) = throttle.allow() {
                    warn!(stream, error, attempts, left_out, "stream not ready, retrying");
                }
                waiting(format!("stream {stream} cannot be set up yet: {error}"));
                tokio::time::sleep(RETRY.after(attempts)).await;
            }
            Err(FatalError::Differs(harm)) => return Err(ProvisionError::Differs(stream, harm)),
            Err(FatalError::Broker(error)) => return Err(ProvisionError::Broker(stream, error)),
        }
    }
}

async fn attempt(connection: &Connection, layout: &Layout) -> Result<Attempt, FatalError> {
    let jetstream = connection.jetstream();
    let present = match jetstream.get_stream(layout.name).await {
        Ok(stream) => Some(stream.cached_info().config.clone()),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => None,
            GetStreamErrorKind::JetStream(refusal) => return fatal_or_retry(&refusal),
            GetStreamErrorKind::EmptyName
            | GetStreamErrorKind::Request
            | GetStreamErrorKind::InvalidStreamName => {
                return Ok(Attempt::Retry(connection.unanswered(&error)));
            }
        },
    };
    let Some(present) = present else {
        return create(connection, layout).await;
    };
    if layout.name == ORDERS {
        warn_of_limits(connection, &present);
    }

    let (completed, changes) = layout.complete(&present).map_err(FatalError::Differs)?;
    let replicas = completed.num_replicas;
    if changes.is_empty() {
        return Ok(Attempt::Done(replicas));
    }
    let changes = changes.join("; ");
    let subject = format!("$JS.API.STREAM.UPDATE.{}", layout.name);
    match connection.if_allowed(&subject, jetstream.update_stream(&completed)).await {
        Some(Ok(_)) => {
            info!(stream = layout.name, changes, "stream updated");
            Ok(Attempt::Done(replicas))
        }
        Some(Err(error)) => not_done(&error, error.kind()),
        None if layout.can_do_with(&present) => {
            warn!(stream = layout.name, changes, "stream not updated: {PROVISION}");
            Ok(Attempt::Done(present.num_replicas))
        }
        None => Ok(Attempt::Retry(format!("it needs {changes}: {PROVISION}"))),
    }
}

async fn create(connection: &Connection, layout: &Layout) -> Result<Attempt, FatalError> {
    let of_new = if connection.client.server_info().cluster.is_some() { CLUSTER_REPLICAS } else { 1 };
    let mut wanted = layout.wanted(layout.replicas.unwrap_or(of_new));
    if layout.name == ORDERS {
        wanted.metadata.extend(mark_of_successor());
    }
    let replicas = wanted.num_replicas;
    if layout.name == ORDERS {
        warn_of_limits(connection, &wanted);
    }
    let subject = format!("$JS.API.STREAM.CREATE.{}", layout.name);
    match connection.if_allowed(&subject, connection.jetstream().create_stream(wanted)).await {
        Some(Ok(_)) => {
            info!(stream = layout.name, replicas, "stream created");
            Ok(Attempt::Done(replicas))
        }
        Some(Err(error)) => not_done(&error, error.kind()),
        None => Ok(Attempt::Retry(format!("it is missing: {PROVISION}"))),
    }
}

fn not_done(error: &impl ToString, kind: CreateStreamErrorKind) -> Result<Attempt, FatalError> {
    match kind {
        CreateStreamErrorKind::JetStream(refusal) => fatal_or_retry(&refusal),
        // Deleted since it was read.
        CreateStreamErrorKind::NotFound
        | CreateStreamErrorKind::JetStreamUnavailable
        | CreateStreamErrorKind::TimedOut
        | CreateStreamErrorKind::Response
        | CreateStreamErrorKind::ResponseParse => Ok(Attempt::Retry(error.to_string())),
        CreateStreamErrorKind::EmptyStreamName
        | CreateStreamErrorKind::InvalidStreamName
        | CreateStreamErrorKind::DomainAndExternalSet => Err(FatalError::Broker(error.to_string())),
    }
}

/// Distinguishes a permanent refusal from a temporary one.
fn fatal_or_retry(refusal: &jetstream::Error) -> Result<Attempt, FatalError> {
    // What the operator can do about some of them.
    let hint = match refusal.error_code() {
        ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
            "; enable it for this user's account, or use another user (NATS_URL)"
        }
        ErrorCode::CLUSTER_NO_PEERS | ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED => " (ORDERS_REPLICAS)",
        ErrorCode::STREAM_INVALID_CONFIG => " (ORDERS_RETENTION, ORDERS_REPLICAS)",
        _ => "",
    };
    match classify(refusal) {
        ErrorClass::Transient | ErrorClass::Full => Ok(Attempt::Retry(format!("{refusal}{hint}"))),
        ErrorClass::TooLarge | ErrorClass::Permanent | ErrorClass::Conflict => {
            Err(FatalError::Broker(format!("{refusal}{hint}")))
        }
    }
}

/// Logs that a broker accepts less than the contract allows.
fn warn_of_limits(connection: &Connection, present: &jetstream::stream::Config) {
    let max_payload = connection.client.server_info().max_payload;
    if let Some(reason) = layout::too_small(max_payload, present.max_message_size) {
        warn!(stream = present.name, reason, "broker's message size limit is below the largest event");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_transient_errors_are_retried() {
        let refusal = |code: u16, err_code: u16| -> jetstream::Error {
            let answer = format!(r#"{{"code": {code}, "err_code": {err_code}, "description": "no"}}"#);
            serde_json::from_str(&answer).unwrap()
        };
        // From nats-server 2.15: no leader, cluster incomplete, no peers, no storage, not enabled, account without space,
        // concurrent creation.
        for (code, err_code) in
            [(503, 10008), (503, 10004), (400, 10005), (500, 10047), (503, 10039), (400, 10002), (400, 10058)]
        {
            assert!(fatal_or_retry(&refusal(code, err_code)).is_ok(), "{err_code}");
        }
        for (code, err_code, named) in
            [(500, 10074, "ORDERS_REPLICAS"), (500, 10052, "ORDERS_RETENTION"), (400, 10065, "no")]
        {
            let refused = fatal_or_retry(&refusal(code, err_code)).err();
            let Some(FatalError::Broker(said)) = refused else { panic!("{err_code} is retried") };
            assert!(said.contains(named), "{err_code}: {said}");
        }
    }
}
