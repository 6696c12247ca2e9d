//! The one place where what went wrong becomes a gRPC status that a client can act on without reading text.

use std::collections::HashMap;
use std::time::Duration;

use backbone::direct_get::ReadError;
use backbone::ids::OrderId;
use backbone::log::{AppendError, WatchError};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};
use tracing::{error, warn};

/// Domain of every reason in an ErrorInfo.
const DOMAIN: &str = "orders.waybill";
/// When to come back after a refusal that passes by itself.
const RETRY_DELAY: Duration = Duration::from_millis(500);
/// When to come back while the stream has no room: somebody has to make some.
const RETRY_DELAY_FULL: Duration = Duration::from_secs(30);
/// Most violations in one answer: error details travel in a header, and clients bound those.
const VIOLATIONS_MAX: usize = 32;
/// Most violations spelled out in the message, for people; the details name them all.
const VIOLATIONS_SAID_MAX: usize = 3;

/// Fields that break rules, all of them at once.
pub(crate) fn invalid(mut violations: Vec<FieldViolation>) -> Status {
    let left_out = violations.len().saturating_sub(VIOLATIONS_MAX);
    violations.truncate(VIOLATIONS_MAX);
    let said: Vec<_> = violations
        .iter()
        .take(VIOLATIONS_SAID_MAX)
        .map(|v| format!("{} {}", v.field, v.description))
        .collect();
    let more = if violations.len() > said.len() { "; and more, see BadRequest" } else { "" };
    let mut message = format!("{}{more}", said.join("; "));
    if left_out > 0 {
        message.push_str(&format!("; {left_out} further violations are left out"));
    }
    Status::with_error_details(Code::InvalidArgument, message, ErrorDetails::with_bad_request(violations))
}

/// The request_id was used for another order.
pub(crate) fn request_id_reused(id: &OrderId) -> Status {
    let metadata = HashMap::from([("order_id".to_owned(), id.to_string())]);
    status(
        Code::AlreadyExists,
        "request_id was already used for an order with other content; use a new one",
        ErrorDetails::with_error_info("REQUEST_ID_REUSED", DOMAIN, metadata),
    )
}

/// There is no such order.
pub(crate) fn not_found(id: &OrderId) -> Status {
    let description = "there is no order with this order_id";
    let details = ErrorDetails::with_resource_info("orders.v1.Order", id.to_string(), "", description);
    status(Code::NotFound, description, details)
}

/// The peer calls too often.
pub(crate) fn rate_limited(wait: Duration) -> Status {
    let mut details = ErrorDetails::with_retry_info(Some(wait));
    details.add_quota_failure_violation("peer", "calls per second from one peer address");
    details.set_error_info("RATE_LIMITED", DOMAIN, HashMap::new());
    status(Code::ResourceExhausted, "too many calls; wait as long as RetryInfo says", details)
}

/// The gateway is about to stop.
pub(crate) fn draining() -> Status {
    unavailable(
        "DRAINING",
        "this gateway is stopping; call again, and resume a watch with the last revision seen",
        RETRY_DELAY,
    )
}

/// A status for an append that was not stored, or may not have been.
pub(crate) fn append(id: &OrderId, append_error: &AppendError) -> Status {
    match append_error {
        AppendError::Unavailable(_) => {
            warn!(order_id = %id, error = %append_error, "order not accepted");
            unavailable("BROKER_UNAVAILABLE", "the order was not accepted; try again", RETRY_DELAY)
        }
        AppendError::Full => {
            error!(order_id = %id, error = %append_error, "order not accepted");
            unavailable("STORAGE_FULL", "the order was not accepted: storage is full", RETRY_DELAY_FULL)
        }
        AppendError::Unknown(_) => {
            warn!(order_id = %id, error = %append_error, "outcome of an order unknown");
            let metadata = HashMap::from([("order_id".to_owned(), id.to_string())]);
            status(
                Code::DeadlineExceeded,
                "it is not known whether the order was accepted; repeat with the same request_id, or get the order_id",
                ErrorDetails::with_error_info("OUTCOME_UNKNOWN", DOMAIN, metadata),
            )
        }
        AppendError::Refused(_) => {
            error!(order_id = %id, error = %append_error, "lifecycle refused a validated order");
            internal()
        }
    }
}

/// A status for a read that gave no answer.
pub(crate) fn read(id: &OrderId, read_error: &ReadError) -> Status {
    match read_error {
        ReadError::NoAnswer(_) => {
            warn!(order_id = %id, error = %read_error, "order not read");
            unavailable(
                "BROKER_UNAVAILABLE",
                "the order log cannot be read at the moment; try again",
                RETRY_DELAY,
            )
        }
        ReadError::Broker(_) => {
            error!(order_id = %id, error = %read_error, "order not read");
            internal()
        }
    }
}

/// A status for a watch that cannot begin.
pub(crate) fn watch(id: &OrderId, watch_error: &WatchError) -> Status {
    match watch_error {
        WatchError::NotFound => not_found(id),
        WatchError::Beyond { last } => invalid(vec![FieldViolation::new(
            "after_revision",
            format!("is beyond the order's last revision, {last}; send a revision that the order had, or 0"),
        )]),
        WatchError::Read(error) => read(id, error),
    }
}

fn unavailable(reason: &str, message: &str, retry_delay: Duration) -> Status {
    let mut details = ErrorDetails::with_retry_info(Some(retry_delay));
    details.set_error_info(reason, DOMAIN, HashMap::new());
    status(Code::Unavailable, message, details)
}

fn internal() -> Status {
    status(
        Code::Internal,
        "internal error; it was logged",
        ErrorDetails::with_error_info("INTERNAL", DOMAIN, HashMap::new()),
    )
}

fn status(code: Code, message: &str, details: ErrorDetails) -> Status {
    Status::with_error_details(code, message, details)
}
