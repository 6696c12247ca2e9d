//! Publishing with an expectation, and the meaning of the broker's answer.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use program::telemetry::LogThrottle;
use tokio::time::{Instant, timeout_at};
use tracing::error;

use crate::broker::connection::Connection;
use crate::broker::error_class::{ErrorClass, PublishFailure, publish_failure, refusal};
use crate::broker::leader_get;
use crate::broker::unanswered;
use crate::log::ids::Revision;

const EXPECTED_SEQUENCE: &str = "Nats-Expected-Last-Subject-Sequence";
const EXPECTED_SUBJECT: &str = "Nats-Expected-Last-Subject-Sequence-Subject";
/// How long it may take to find out why a publish was not answered.
const INQUIRY_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a publish may go unanswered before the broker is suspect. A shorter wait may be due to the caller's
/// deadline.
const SUSPICIOUS: Duration = Duration::from_millis(500);

static PERMANENT: LogThrottle = LogThrottle::every(Duration::from_secs(15));

/// The outcome of one publish.
#[derive(Debug)]
pub(crate) enum Outcome {
    Stored(Revision),
    /// Another message is stored there than was expected.
    Conflict,
    /// Not stored by this publish: the broker is unavailable, or has no leader.
    Unavailable(String),
    /// Not stored: the broker has no space.
    Full(String),
    /// Never to be stored: larger than the broker takes.
    TooLarge(String),
    /// Never to be stored.
    Permanent(String),
    /// Perhaps stored.
    Unknown(String),
}

/// Publishes once to a subject of `stream`, and waits for the acknowledgement. An expectation is a filter and the
/// position of the last message on it. While the broker is unavailable or has no space, nothing is sent: the client
/// could store a buffered message long after its writer gave up. An occasional probe is enough to detect free space.
pub(crate) async fn publish(
    connection: &Connection,
    stream: &'static str,
    subject: String,
    mut headers: HeaderMap,
    payload: Bytes,
    expectation: Option<(String, Revision)>,
    deadline: Instant,
) -> Outcome {
    if !connection.is_up() {
        return Outcome::Unavailable("broker unavailable".to_owned());
    }
    let space = connection.storage();
    if let Err(reason) = space.admit(stream) {
        return Outcome::Full(reason);
    }
    if let Some((filter, expected)) = &expectation {
        headers.insert(EXPECTED_SEQUENCE, expected.to_string());
        headers.insert(EXPECTED_SUBJECT, filter.as_str());
    }
    let connects = *connection.connects().borrow();
    let (to, bytes, began) = (subject.clone(), payload.len(), Instant::now());
    let published =
        async { connection.jetstream.publish_with_headers(subject, headers, payload).await?.await };
    let error = match timeout_at(deadline, published).await {
        Ok(Ok(ack)) => {
            space.found_space(stream);
            return Outcome::Stored(Revision(ack.sequence));
        }
        Ok(Err(error)) => error,
        Err(_) => {
            space.found_nothing(stream);
            if began.elapsed() >= SUSPICIOUS {
                space.suspect();
            }
            return Outcome::Unknown("no acknowledgement before the deadline".to_owned());
        }
    };
    let outcome = match publish_failure(&error) {
        PublishFailure::Refused(ErrorClass::Conflict) => Outcome::Conflict,
        PublishFailure::Refused(ErrorClass::Transient) => Outcome::Unavailable(error.to_string()),
        PublishFailure::Refused(ErrorClass::Full) => {
            Outcome::Full(refusal(&error).map_or_else(|| error.to_string(), ToString::to_string))
        }
        PublishFailure::Refused(ErrorClass::TooLarge) => {
            Outcome::TooLarge(format!("message of {bytes} bytes exceeds the broker's limit: {error}"))
        }
        PublishFailure::Refused(ErrorClass::Permanent) => {
            if let Some(left_out) = PERMANENT.allow() {
                error!(stream, left_out, %error, "broker rejected message, not retried");
            }
            Outcome::Permanent(error.to_string())
        }
        PublishFailure::Unanswered => {
            let inquiry = is_discarded(connection, stream, to, expectation.as_ref(), connects);
            match timeout_at(deadline.min(Instant::now() + INQUIRY_TIMEOUT), inquiry).await {
                Ok(true) => Outcome::Full(unanswered::DISCARDS_MESSAGES.to_owned()),
                Ok(false) | Err(_) => Outcome::Unknown(error.to_string()),
            }
        }
    };
    match &outcome {
        Outcome::Full(reason) => space.found_full(stream, reason),
        Outcome::Conflict => space.found_conflict(stream),
        Outcome::Stored(_)
        | Outcome::Unavailable(_)
        | Outcome::TooLarge(_)
        | Outcome::Permanent(_)
        | Outcome::Unknown(_) => space.found_nothing(stream),
    }
    outcome
}

/// Whether a stream that cannot write discarded an unanswered publish. The stream has processed it, and its leader did
/// not store it.
async fn is_discarded(
    connection: &Connection,
    stream: &'static str,
    subject: String,
    expectation: Option<&(String, Revision)>,
    connects: u64,
) -> bool {
    if !unanswered::discards_messages(connection, subject, connects).await {
        return false;
    }
    let Some((filter, expected)) = expectation else { return true };
    match leader_get::last(connection, stream, filter).await {
        Ok(last) => last.map_or(Revision::NONE, |last| last.sequence) == *expected,
        Err(_) => false,
    }
}
