//! Reads and writes that the broker failed: the log tells operators why, and the caller gets a status.

use backbone::broker::direct_get::ReadError;
use backbone::dead_letters::{LetterId, PutError};
use backbone::log::AppendError;
use backbone::log::ids::OrderId;
use program::telemetry::LogThrottle;
use stock::ChangeError;
use tonic::Status;
use tracing::{error, warn};

use crate::errors;

// While the broker is unavailable, full or failing, every call causes these lines.
static NOT_STORED: LogThrottle = LogThrottle::new();
static TOO_LARGE: LogThrottle = LogThrottle::new();
static REFUSED: LogThrottle = LogThrottle::new();
static UNKNOWN: LogThrottle = LogThrottle::new();
static NOT_READ: LogThrottle = LogThrottle::new();
static UNREADABLE: LogThrottle = LogThrottle::new();

/// An event was not appended, or may not have been.
pub(crate) fn append(id: &OrderId, append_error: &AppendError) -> Status {
    match append_error {
        AppendError::Unavailable(_) => {
            if let Some(left_out) = NOT_STORED.allow() {
                warn!(left_out, order_id = %id, error = %append_error, "event not stored");
            }
        }
        AppendError::TooLarge(_) => {
            if let Some(left_out) = TOO_LARGE.allow() {
                warn!(left_out, order_id = %id, error = %append_error, "event not stored");
            }
        }
        AppendError::Permanent(_) => {
            if let Some(left_out) = REFUSED.allow() {
                error!(left_out, order_id = %id, error = %append_error, "event not stored");
            }
        }
        AppendError::Unknown(_) => {
            if let Some(left_out) = UNKNOWN.allow() {
                warn!(left_out, order_id = %id, error = %append_error, "append outcome unknown");
            }
        }
        AppendError::Refused(_) => {
            error!(order_id = %id, error = %append_error, "lifecycle rejected a validated request");
        }
        // The backbone logs full storage, at intervals. An expired order is no error.
        AppendError::Full(_) | AppendError::Gone => {}
    }
    errors::append(id, append_error)
}

/// The order log was not read.
pub(crate) fn read(read_error: &ReadError) -> Status {
    match read_error {
        ReadError::NoAnswer(_) => {
            if let Some(left_out) = NOT_READ.allow() {
                warn!(left_out, error = %read_error, "order log not read");
            }
        }
        ReadError::Broker(_) => {
            if let Some(left_out) = UNREADABLE.allow() {
                error!(left_out, error = %read_error, "order log not read");
            }
        }
    }
    errors::read(read_error)
}

/// A dead letter was not changed, or may not have been.
pub(crate) fn put(id: &LetterId, put_error: &PutError) -> Status {
    warn!(dead_letter_id = %id, error = %put_error, "dead letter not changed");
    errors::put(id, put_error)
}

/// Stock was not changed, or may not have been.
pub(crate) fn stock(sku: &str, change_error: &ChangeError) -> Status {
    match change_error {
        ChangeError::Refused(_) => error!(sku, error = %change_error, "stock not changed"),
        ChangeError::Unavailable(_) => warn!(sku, error = %change_error, "stock not changed"),
        ChangeError::Unknown(_) => warn!(sku, error = %change_error, "stock change outcome unknown"),
        // The request's own fault, or logged by the backbone.
        ChangeError::RequestIdReused
        | ChangeError::TooFew { .. }
        | ChangeError::TooMany { .. }
        | ChangeError::Stale { .. }
        | ChangeError::Unreadable { .. }
        | ChangeError::Full(_) => {}
    }
    errors::stock(sku, change_error)
}
