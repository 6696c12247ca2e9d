//! Deferred orders: a timer at the broker for each, and its end.
//!
//! The order's own `deferral` decides. A timer only wakes: it is a scheduled message (NATS ADR-51) in a stream of its own, as
//! the broker allows none in a stream that rejects messages when it is full. At its time the broker replaces it by a message
//! that says which order is due. A gateway then appends `resumed`, which wakes the step. A timer that is lost is set again
//! when the order is carried.

use std::time::{Duration, SystemTime};

use async_nats::HeaderMap;
use async_nats::jetstream::stream::DeleteMessageErrorKind;
use bytes::Bytes;
use futures::{StreamExt, stream};
use prost_types::Timestamp;
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Order, StepResumed};
use tokio::time::Instant;
use tracing::{debug, error};

use super::{AppendError, Appended, CarryError, OrderLog};
use crate::broker::direct_get::{ReadError, Stored, batch_from};
use crate::broker::publish::{Outcome, publish};
use crate::broker::streams::{DEFERRALS, restore_deferrals};
use crate::broker::trace_headers;
use crate::log::event::stored;
use crate::log::ids::{OrderId, Revision};
use crate::log::subjects;
use program::trace::{self, FutureExt};

const TIMER_TIMEOUT: Duration = Duration::from_secs(5);
const APPEND_TIMEOUT: Duration = Duration::from_secs(3);
/// Due orders that are read at once.
const DUE_MAX: u32 = 256;
const RESUMES_AT_ONCE: usize = 64;

/// Until when a step has deferred its work, if it has. A time that is missing or impossible is over.
pub fn deferred_until(order: &Order) -> Option<SystemTime> {
    let until = order.deferral.as_ref()?.until.unwrap_or_default();
    Some(SystemTime::try_from(until).unwrap_or(SystemTime::UNIX_EPOCH))
}

impl OrderLog {
    /// Sets the timer of an order that `step` has deferred, in place of an earlier one.
    pub async fn set_timer(&self, step: &str, id: &OrderId, until: SystemTime) -> Result<(), AppendError> {
        // The broker counts in seconds, and must not be early.
        let Timestamp { seconds, nanos } = until.into();
        let seconds = seconds.saturating_add(i64::from(nanos > 0));
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Schedule", format!("@at {}", Timestamp { seconds, nanos: 0 }));
        headers.insert("Nats-Schedule-Target", subjects::due(id));
        trace_headers::write(&mut headers);
        let (subject, deadline) = (subjects::timer(step, id), Instant::now() + TIMER_TIMEOUT);
        match publish(&self.connection, DEFERRALS, subject, headers, Bytes::new(), None, deadline).await {
            Outcome::Stored(_) => Ok(()),
            // No timer has an expectation.
            Outcome::Conflict => Err(AppendError::Unavailable("timer rejected".to_owned())),
            Outcome::Unavailable(error) => Err(AppendError::Unavailable(error)),
            Outcome::Full(error) => Err(AppendError::Full(error)),
            Outcome::TooLarge(error) => Err(AppendError::TooLarge(error)),
            Outcome::Permanent(error) => Err(AppendError::Permanent(error)),
            Outcome::Unknown(error) => Err(AppendError::Unknown(error)),
        }
    }

    /// Resumes orders whose time has come. Returns whether there may be more. Several programs may do so at once.
    pub async fn resume_due(&self) -> Result<bool, CarryError> {
        let client = &self.connection.client;
        let due = match batch_from(client, DEFERRALS, subjects::ALL_DUE, Revision::NONE, DUE_MAX).await {
            Ok(due) => due,
            Err(error) => {
                restore_deferrals(&self.connection).await;
                return Err(error.into());
            }
        };
        let more = due.remaining > 0;
        let mut resumed = stream::iter(due.messages)
            .map(|message| {
                let origin = trace_headers::read(&message.headers).unwrap_or_else(trace::root);
                self.resume(message).with_context(trace::remote(origin))
            })
            .buffer_unordered(RESUMES_AT_ONCE);
        let mut failed = None;
        while let Some(outcome) = resumed.next().await {
            if let Err(error) = outcome {
                failed = Some(error);
            }
        }
        failed.map_or(Ok(more), Err)
    }

    async fn resume(&self, message: Stored) -> Result<(), CarryError> {
        if let Some(id) = subjects::due_order(&message.subject) {
            // The broker's clock alone decides. A message without a time is not the broker's.
            let fired = stored(&message.headers).unwrap_or(SystemTime::UNIX_EPOCH);
            // A step skips no work because of a stale read: the leader answers.
            let mut current = self.load_latest(&id).await?;
            while let Some(deferred) = current.take() {
                let Some(until) = deferred_until(&deferred.order) else { break };
                if until > fired {
                    // The message belongs to an earlier deferral, whose late timer may have replaced that of this one.
                    self.set_timer(&deferred.order.current_step, &id, until).await?;
                    break;
                }
                let detail = Detail::Resumed(StepResumed {});
                match self.append(&deferred, detail, Instant::now() + APPEND_TIMEOUT).await {
                    Ok(Appended::Stored(order)) => {
                        debug!(order_id = %id, revision = order.order.revision, "deferral over, order resumed");
                    }
                    Ok(Appended::Overtaken(now)) => current = Some(now),
                    Err(AppendError::Gone) => {}
                    // A message that stays would block those behind it.
                    Err(
                        error @ (AppendError::TooLarge(_)
                        | AppendError::Permanent(_)
                        | AppendError::Refused(_)),
                    ) => {
                        error!(order_id = %id, %error, "order not resumed, it waits until it is carried");
                    }
                    Err(
                        error
                        @ (AppendError::Unavailable(_) | AppendError::Full(_) | AppendError::Unknown(_)),
                    ) => return Err(error.into()),
                }
            }
        }
        self.forget_due(message.sequence).await?;
        Ok(())
    }

    /// Deletes the message of a due order. Another program may have deleted it before.
    async fn forget_due(&self, sequence: Revision) -> Result<(), ReadError> {
        let no_answer = |error: &dyn std::fmt::Display| ReadError::NoAnswer(error.to_string());
        let timers = self.connection.jetstream().get_stream_no_info(DEFERRALS).await;
        let timers = timers.map_err(|error| no_answer(&error))?;
        match timers.delete_message(sequence.0).await {
            Ok(_) => Ok(()),
            Err(error) => match error.kind() {
                DeleteMessageErrorKind::JetStream(_) => {
                    debug!(%error, "due message not deleted");
                    Ok(())
                }
                DeleteMessageErrorKind::Request | DeleteMessageErrorKind::TimedOut => Err(no_answer(&error)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::orders::v1::Deferral;

    #[test]
    fn a_deferral_without_a_possible_time_is_over() {
        let deferred =
            |until| Order { deferral: Some(Deferral { until, ..Deferral::default() }), ..Order::default() };
        let until = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        assert_eq!(deferred_until(&deferred(Some(until.into()))), Some(until));
        assert_eq!(deferred_until(&deferred(None)), Some(SystemTime::UNIX_EPOCH));
        let impossible = Timestamp { seconds: i64::MIN, nanos: -1 };
        assert_eq!(deferred_until(&deferred(Some(impossible))), Some(SystemTime::UNIX_EPOCH));
        assert_eq!(deferred_until(&Order::default()), None);
    }
}
