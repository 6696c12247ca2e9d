//! The bucket itself: made where it is missing, and left alone where it could lose stock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{CreateStreamError, CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config, DiscardPolicy};
use backbone::broker::connection::Connection;
use backbone::broker::direct_get::ReadError;
use backbone::broker::error_class::{ErrorClass, classify};
use backbone::broker::leader_get;
use backbone::broker::streams::{self, ORDERS, PROVISION};
use backbone::log::has_ever_lost_events;
use backbone::log::ids::Revision;
use backbone::log::subjects::{self, EventKind};
use program::backoff::Backoff;
use thiserror::Error;
use tokio::time::sleep;
use tracing::info;

use crate::records::{BUCKET, STREAM, SUBJECT_PREFIX};

/// Messages of the log that are examined once more. A leader that was deposed may have answered one of two questions.
const EXAMINED_AGAIN: u64 = 1000;
const RETRY: Backoff = Backoff { initial: Duration::from_millis(50), max: Duration::from_secs(2) };

/// The inventory cannot be opened.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The broker refused.
    #[error("the broker rejected bucket {BUCKET}: {0}")]
    Broker(#[from] CreateStreamError),
    /// The bucket exists, but is not configured as required.
    #[error(
        "bucket {BUCKET} exists with settings that could lose stock, and will not be changed: {}; fix them, or delete \
         the bucket if it holds no stock", .0.join("; ")
    )]
    Differs(Vec<String>),
}

/// Whether stock existed before, so that a missing or empty bucket means a loss. That is so if the log has an order
/// that received stock, or if the log itself replaces a lost one.
pub async fn is_known(connection: &Connection) -> Result<bool, ReadError> {
    Ok(has_reserved(connection).await? || has_ever_lost_events(connection).await?)
}

/// Whether the log has an order that was given stock.
async fn has_reserved(connection: &Connection) -> Result<bool, ReadError> {
    let reserved = leader_get::last(connection, ORDERS, &subjects::kind(EventKind::Reserved)).await?;
    Ok(reserved.is_some())
}

/// Whether an order was given stock since the log ended at `examined`, and where it ends now. Without a step that gives
/// stock, the broker would otherwise visit every subject of the log each time.
pub(crate) async fn has_reserved_since(
    connection: &Connection,
    examined: Option<Revision>,
) -> Result<(bool, Revision), ReadError> {
    let end = Revision(streams::info(connection, ORDERS).await?.state.last_sequence);
    let has_reserved = match examined.filter(|examined| *examined <= end) {
        Some(examined) => {
            let from = Revision(examined.0.saturating_sub(EXAMINED_AGAIN) + 1);
            let reserved = subjects::kind(EventKind::Reserved);
            leader_get::first_from(connection, ORDERS, &reserved, from).await?.is_some()
        }
        None => has_reserved(connection).await?,
    };
    Ok((has_reserved, end))
}

/// Ensures that the bucket exists, and waits for the broker and the order log without a deadline. `waiting` receives
/// the cause.
pub async fn provision(connection: &Connection, waiting: impl Fn(String)) -> Result<(), StoreError> {
    let mut attempts = 0;
    loop {
        connection.up().await;
        let provided = match connection.jetstream().get_stream(ORDERS).await {
            Ok(orders) => make(connection, orders.cached_info().config.num_replicas).await,
            Err(error) => Err(error.to_string()),
        };
        let provided = match provided {
            Ok(Ok(())) => forbid_rollup(connection).await.map(Ok),
            other => other,
        };
        match provided {
            Ok(provided) => return provided,
            Err(error) => {
                attempts += 1;
                waiting(format!("bucket {BUCKET} cannot be set up yet: {error}"));
                sleep(RETRY.after(attempts)).await;
            }
        }
    }
}

/// Removes a feature that Waybill does not use from a bucket of an earlier version: one message of a writer could
/// remove all others.
async fn forbid_rollup(connection: &Connection) -> Result<(), String> {
    let jetstream = connection.jetstream();
    let bucket = jetstream.get_stream(STREAM).await.map_err(|error| error.to_string())?;
    let present = &bucket.cached_info().config;
    if present.allow_rollup {
        let completed = Config { allow_rollup: false, ..present.clone() };
        jetstream.update_stream(completed).await.map_err(|error| error.to_string())?;
        info!("bucket {BUCKET} updated, rollup disabled");
    }
    Ok(())
}

/// Makes the bucket if it is missing. The outer error is one that passes by itself.
pub async fn make(connection: &Connection, replicas: usize) -> Result<Result<(), StoreError>, String> {
    let jetstream = connection.jetstream();
    match jetstream.get_stream(STREAM).await {
        Ok(present) => {
            let harm = harm(&present.cached_info().config);
            return Ok(if harm.is_empty() { Ok(()) } else { Err(StoreError::Differs(harm)) });
        }
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(refusal) if refusal.error_code() == ErrorCode::STREAM_NOT_FOUND => {
            }
            GetStreamErrorKind::JetStream(_)
            | GetStreamErrorKind::EmptyName
            | GetStreamErrorKind::Request
            | GetStreamErrorKind::InvalidStreamName => return Err(error.to_string()),
        },
    }
    let subject = format!("$JS.API.STREAM.CREATE.{STREAM}");
    let error = match connection.if_allowed(&subject, jetstream.create_stream(bucket(replicas))).await {
        None => return Err(format!("it is missing: {PROVISION}")),
        Some(Ok(_)) => return Ok(Ok(())),
        Some(Err(error)) => error,
    };
    match error.kind() {
        // `Transient` includes a concurrent creation: the next attempt checks the bucket.
        CreateStreamErrorKind::JetStream(refusal) => match classify(&refusal) {
            ErrorClass::Transient | ErrorClass::Full => Err(error.to_string()),
            ErrorClass::TooLarge | ErrorClass::Permanent | ErrorClass::Conflict => {
                Ok(Err(StoreError::Broker(error)))
            }
        },
        CreateStreamErrorKind::JetStreamUnavailable
        | CreateStreamErrorKind::TimedOut
        | CreateStreamErrorKind::Response
        | CreateStreamErrorKind::ResponseParse
        | CreateStreamErrorKind::EmptyStreamName
        | CreateStreamErrorKind::InvalidStreamName
        | CreateStreamErrorKind::DomainAndExternalSet
        | CreateStreamErrorKind::NotFound => Err(error.to_string()),
    }
}

fn bucket(replicas: usize) -> Config {
    Config {
        name: STREAM.to_owned(),
        description: Some("Waybill: stock by SKU and reservations by order".to_owned()),
        subjects: vec![format!("{SUBJECT_PREFIX}>")],
        max_messages_per_subject: 1,
        discard: DiscardPolicy::New,
        num_replicas: replicas,
        first_sequence: Some(first_revision()),
        deny_delete: true,
        allow_direct: true,
        allow_atomic_publish: true,
        allow_message_ttl: true,
        ..Config::default()
    }
}

/// Revisions of a new bucket begin beyond those of one that was deleted before it: a replica that remembers a count of
/// the old one must not find its revision in the new one, where it may stand for another count. So they begin at the
/// time, in microseconds since 1970, which no bucket has kept up with.
fn first_revision() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(time.as_micros()).unwrap_or(1)
}

/// How a bucket that is `present` could lose stock, or lack a feature that the inventory needs.
fn harm(present: &Config) -> Vec<String> {
    let mut harm = streams::harm(present, &bucket(present.num_replicas));
    if !present.max_age.is_zero() {
        let age = streams::age(present.max_age);
        harm.push(format!("max_age is {age}, must be unlimited"));
    }
    let features = [
        ("allow_direct", present.allow_direct),
        ("allow_atomic", present.allow_atomic_publish),
        ("allow_msg_ttl", present.allow_message_ttl),
    ];
    let missing = features.into_iter().filter(|(_, present)| !present);
    harm.extend(missing.map(|(feature, _)| format!("{feature} is false, must be true")));
    harm
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_nats::jetstream::stream::{PersistenceMode, StorageType};

    #[test]
    fn a_bucket_made_by_waybill_is_accepted() {
        assert_eq!(harm(&bucket(3)), Vec::<String>::new());
    }

    #[test]
    fn every_setting_that_could_lose_stock_is_named() {
        let present = Config {
            storage: StorageType::Memory,
            max_age: Duration::from_secs(60),
            max_messages_per_subject: 5,
            discard: DiscardPolicy::Old,
            discard_new_per_subject: true,
            persist_mode: Some(PersistenceMode::Async),
            allow_message_ttl: false,
            ..bucket(1)
        };
        let harm = harm(&present);
        let fields: Vec<_> = harm.iter().filter_map(|harm| harm.split(' ').next()).collect();
        assert_eq!(
            fields,
            [
                "storage",
                "discard",
                "discard_new_per_subject",
                "max_msgs_per_subject",
                "persist_mode",
                "max_age",
                "allow_msg_ttl"
            ]
        );
    }
}
