//! The contents of a dead letter, and the record of attempts before it. Does no I/O.

use std::time::SystemTime;

use async_nats::jetstream::Message;
use backbone::broker::trace_headers;
use backbone::dead_letters::{StoredDeadLetter, error_text, fingerprint, headers_of};
use backbone::log::event::Undecodable;
use backbone::log::ids::Revision;
use backbone::log::payment_method::removed_from_payload;
use backbone::log::subjects;
use program::trace;
use prost_types::Timestamp;
use proto::operations::v1::{Attempt, DeadLetter, DeadLetterReason, DeadLetterState};
use proto::orders::v1::OrderFailed;

use super::order_context::OrderContext;
use crate::delivery::Delivery;

/// Reason of an order that a step has given up.
pub(crate) const RETRIES_EXHAUSTED: &str = "RETRIES_EXHAUSTED";
/// The error text of an announced attempt without a result.
const NO_RESULT: &str = "the attempt left no result: its process died, or could not reach the broker";

/// The record of `attempts` at a message, on the order as it stood at `order_revision`.
pub(super) fn record(delivery: &Delivery<'_>, order_revision: u64, attempts: Vec<Attempt>) -> DeadLetter {
    DeadLetter { order_revision, attempts, ..of_message(delivery) }
}

/// The dead letter of a message that cannot be decoded.
pub(super) fn undecodable(step: &str, delivery: &Delivery<'_>, reason: &Undecodable) -> DeadLetter {
    let error = error_text(reason);
    DeadLetter {
        order_id: subjects::parse(&delivery.message.subject)
            .map(|subject| subject.id.to_string())
            .unwrap_or_default(),
        fingerprint: fingerprint(step, DeadLetterReason::Undecodable, &error),
        trace_id: trace_of(delivery.message).unwrap_or_default(),
        attempts: vec![Attempt { time: Some(now()), error }],
        ..open(delivery, DeadLetterReason::Undecodable)
    }
}

/// The dead letter of an order whose recorded attempts are used up.
pub(super) fn exhausted(
    step: &str,
    delivery: &Delivery<'_>,
    about: &OrderContext,
    record: &DeadLetter,
) -> DeadLetter {
    let reason = DeadLetterReason::RetriesExhausted;
    let mut attempts = record.attempts.clone();
    for attempt in attempts.iter_mut().filter(|attempt| is_open(attempt)) {
        attempt.error = NO_RESULT.to_owned();
    }
    let error = attempts.last().map_or("", |attempt| &attempt.error);
    DeadLetter {
        fingerprint: fingerprint(step, reason, error),
        order_id: about.order_id.to_string(),
        order_revision: record.order_revision,
        attempts,
        trace_id: trace::current_trace_id(),
        previous_dead_letter_id: about.redriven_from.clone(),
        ..open(delivery, reason)
    }
}

/// A withdrawn dead letter: of the message only its identity is left.
pub(super) fn withdrawn(letter: &DeadLetter) -> DeadLetter {
    let DeadLetter { subject, publish_time, .. } = letter.clone();
    DeadLetter { subject, publish_time, ..DeadLetter::default() }
}

/// The detail of the event that makes the order FAILED.
pub(super) fn order_failed(kept: &StoredDeadLetter) -> OrderFailed {
    OrderFailed {
        reason: RETRIES_EXHAUSTED.to_owned(),
        message: kept.letter.attempts.last().map_or("", |attempt| &attempt.error).to_owned(),
        attempts: kept.letter.attempt_count,
        dead_letter_id: kept.id.to_string(),
    }
}

/// An attempt that begins now and has no result yet.
pub(super) fn announced() -> Attempt {
    Attempt { time: Some(now()), error: String::new() }
}

/// An attempt that has failed now.
pub(super) fn failed(error: &impl ToString) -> Attempt {
    Attempt { time: Some(now()), error: error_text(error) }
}

/// Whether the record is about this message. In a stream that was recreated, another message had the same sequence.
pub(super) fn is_about(letter: &DeadLetter, delivery: &Delivery<'_>) -> bool {
    *letter.subject == *delivery.message.subject && letter.publish_time == Some(delivery.published)
}

/// Whether it is a record of attempts at this order in the status that it has had since `since`.
pub(super) fn is_of_order(letter: &DeadLetter, about: &OrderContext, since: Revision) -> bool {
    let order = subjects::parse(&letter.subject).map(|subject| subject.id);
    order == Some(about.order_id) && letter.order_revision == since.0
}

/// Whether the record is a dead letter, not only a record of attempts.
pub(super) fn is_letter(record: &StoredDeadLetter) -> bool {
    record.letter.state() != DeadLetterState::Unspecified
}

/// Whether the attempt was announced and has no result.
pub(super) fn is_open(attempt: &Attempt) -> bool {
    attempt.error.is_empty()
}

/// The attempts whose error is known.
pub(super) fn failed_of(attempts: &[Attempt]) -> Vec<Attempt> {
    attempts.iter().filter(|attempt| !is_open(attempt)).cloned().collect()
}

/// The fields that every record about the message has.
fn of_message(delivery: &Delivery<'_>) -> DeadLetter {
    DeadLetter {
        subject: delivery.message.subject.to_string(),
        publish_time: Some(delivery.published),
        ..DeadLetter::default()
    }
}

/// The common fields of every open dead letter.
fn open(delivery: &Delivery<'_>, reason: DeadLetterReason) -> DeadLetter {
    DeadLetter {
        state: DeadLetterState::Open.into(),
        reason: reason.into(),
        headers: headers_of(delivery.message.headers.as_ref()),
        payload: removed_from_payload(&delivery.message.payload),
        create_time: Some(now()),
        ..of_message(delivery)
    }
}

fn trace_of(message: &Message) -> Option<String> {
    Some(trace_headers::read(message.headers.as_ref()?)?.trace_id().to_string())
}

fn now() -> Timestamp {
    SystemTime::now().into()
}
