//! Orders that do not exist, cannot be changed, stored or read.

use std::collections::HashMap;

use backbone::broker::direct_get::ReadError;
use backbone::log::AppendError;
use backbone::log::ids::{OrderId, Revision};
use proto::orders::v1::OrderStatus;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use super::invalid::invalid;
use super::reason::Reason;
use super::status::{RETRY_DELAY, RETRY_DELAY_FULL, internal, retry_later, status};

/// The request_id was used for another order.
pub(crate) fn request_id_reused(id: &OrderId) -> Status {
    let message =
        "request_id already used by an order with other items or another route; send a new request_id";
    status(Reason::RequestIdReused, message, of_order(id), ErrorDetails::new())
}

/// There is no such order.
pub(crate) fn not_found(id: &OrderId) -> Status {
    let description = "there is no order with this order_id";
    let details = ErrorDetails::with_resource_info("orders.v1.Order", id.to_string(), "", description);
    Status::with_error_details(Code::NotFound, description, details)
}

/// The order ended in another way before it could be cancelled.
pub(crate) fn not_cancellable(id: &OrderId, ended_as: OrderStatus) -> Status {
    let ended_as = ended_as.as_str_name().trim_start_matches("ORDER_STATUS_");
    let description = format!("the order is {ended_as} and can no longer be cancelled");
    let details =
        ErrorDetails::with_precondition_failure_violation("ORDER_STATUS", id.to_string(), &description);
    let mut metadata = of_order(id);
    metadata.insert("order_status".to_owned(), ended_as.to_owned());
    status(Reason::NotCancellable, &description, metadata, details)
}

/// A status for an event that was not appended, or may not have been.
pub(crate) fn append(id: &OrderId, append_error: &AppendError) -> Status {
    match append_error {
        AppendError::Unavailable(_) => retry_later(
            Reason::BrokerUnavailable,
            "broker unavailable, nothing was accepted; try again",
            RETRY_DELAY,
        ),
        AppendError::Full(_) => {
            let message = "broker storage is full, nothing was accepted; try again later";
            retry_later(Reason::StorageFull, message, RETRY_DELAY_FULL)
        }
        AppendError::TooLarge(_) => message_too_large(id),
        AppendError::Gone => not_found(id),
        // The caller cannot fix it.
        AppendError::Permanent(_) | AppendError::Refused(_) => internal(),
        AppendError::Unknown(_) => {
            let message = "outcome unknown: the call may have been accepted; repeat it (CreateOrder with the same \
                           request_id), or get the order_id";
            status(Reason::OutcomeUnknown, message, of_order(id), ErrorDetails::new())
        }
    }
}

/// The order is larger than the broker is configured to take.
fn message_too_large(id: &OrderId) -> Status {
    let description = "the order exceeds the broker's message size limit, nothing was accepted; send a smaller order, \
                       or have the limit raised";
    let details =
        ErrorDetails::with_precondition_failure_violation("MESSAGE_SIZE", id.to_string(), description);
    status(Reason::MessageTooLarge, description, of_order(id), details)
}

/// A status for a read that gave no answer.
pub(crate) fn read(read_error: &ReadError) -> Status {
    match read_error {
        ReadError::NoAnswer(_) => {
            let message = "the order log cannot be read at the moment; try again";
            retry_later(Reason::BrokerUnavailable, message, RETRY_DELAY)
        }
        ReadError::Broker(_) => internal(),
    }
}

/// A status for a watch from a revision that does not exist yet.
pub(crate) fn beyond(last: Revision) -> Status {
    let description = format!("is beyond the last revision, {last}; send the last revision seen, or 0");
    invalid(vec![FieldViolation::new("after_revision", description)], 0)
}

/// The log that a stream was read from is lost.
pub(crate) fn log_replaced() -> Status {
    let message = "the order log was lost and recreated; watch again with after_revision 0";
    status(Reason::LogReplaced, message, HashMap::new(), ErrorDetails::new())
}

/// The log that a stream was read from has lost events.
pub(crate) fn events_lost() -> Status {
    let message = "the order log lost events or no longer keeps them; watch again with after_revision 0";
    status(Reason::LogReplaced, message, HashMap::new(), ErrorDetails::new())
}

/// The gateway is about to stop.
pub(crate) fn draining() -> Status {
    let message = "this gateway is stopping; call again, and resume a watch with the last revision seen";
    retry_later(Reason::Draining, message, RETRY_DELAY)
}

/// The durability is below the configured one, or unknown yet.
pub(crate) fn not_durable(reason: &str) -> Status {
    let message = format!("nothing was accepted: {reason}");
    retry_later(Reason::NotDurable, &message, RETRY_DELAY)
}

fn of_order(id: &OrderId) -> HashMap<String, String> {
    HashMap::from([("order_id".to_owned(), id.to_string())])
}
