//! Publishing with an expectation, and what the broker's answer to it means.

use std::error::Error as _;

use async_nats::HeaderMap;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::{self, ErrorCode};
use bytes::Bytes;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use crate::connection::Connection;
use crate::ids::Revision;
use crate::stream::is_full;

const EXPECTED_SEQUENCE: &str = "Nats-Expected-Last-Subject-Sequence";
const EXPECTED_SUBJECT: &str = "Nats-Expected-Last-Subject-Sequence-Subject";

/// What one publish brought.
#[derive(Debug)]
pub(crate) enum Outcome {
    Stored(Revision),
    /// Something else lies there than was expected.
    Conflict,
    /// Not stored by this publish: the broker is away, or has no leader.
    Unavailable(String),
    /// Not stored: the stream has no room.
    Full,
    /// Perhaps stored.
    Unknown(String),
}

/// Publishes once, provided that the last message on `filter` is at `expected`, and waits for the acknowledgement.
/// While the broker is away nothing is sent: what the client would buffer could be stored long after its writer gave
/// up.
pub(crate) async fn publish(
    connection: &Connection,
    subject: String,
    mut headers: HeaderMap,
    payload: Bytes,
    (filter, expected): (String, Revision),
    deadline: Instant,
) -> Outcome {
    if !connection.is_up() {
        return Outcome::Unavailable("the broker is away".to_owned());
    }
    headers.insert(EXPECTED_SEQUENCE, expected.to_string());
    headers.insert(EXPECTED_SUBJECT, filter);
    let published =
        async { connection.jetstream.publish_with_headers(subject, headers, payload).await?.await };
    match timeout_at(deadline, published).await {
        Ok(Ok(ack)) => Outcome::Stored(Revision(ack.sequence)),
        Ok(Err(error)) => outcome(&error),
        Err(_) => Outcome::Unknown("no acknowledgement before the deadline".to_owned()),
    }
}

fn outcome(error: &PublishError) -> Outcome {
    match error.kind() {
        PublishErrorKind::WrongLastSequence => Outcome::Conflict,
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => Outcome::Unknown(error.to_string()),
        PublishErrorKind::StreamNotFound
        | PublishErrorKind::MaxAckPending
        | PublishErrorKind::MaxPayloadExceeded
        | PublishErrorKind::WrongLastMessageId => Outcome::Unavailable(error.to_string()),
        PublishErrorKind::Other => {
            match error.source().and_then(|source| source.downcast_ref::<jetstream::Error>()) {
                Some(refusal) if is_full(refusal) => Outcome::Full,
                // In a cluster: another message of these subjects is on its way to the replicas, whoever sent it.
                Some(refusal) if refusal.error_code() == ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT => {
                    Outcome::Unavailable("another message is on its way".to_owned())
                }
                Some(refusal) => {
                    warn!(code = refusal.error_code().0, error = %refusal, "the broker refused a message");
                    Outcome::Unavailable(error.to_string())
                }
                // Not an answer of the broker.
                None => Outcome::Unknown(error.to_string()),
            }
        }
    }
}
