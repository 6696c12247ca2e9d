//! Makes a status of a reason: its code, its details, and the retry delay.

use std::collections::HashMap;
use std::time::Duration;

use governor::Jitter;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::fault::Fault;
use super::reason::Reason;
use super::rejection::Rejection;

/// Domain of every reason in an ErrorInfo.
const DOMAIN: &str = "orders.waybill";
/// Mean retry delay after a transient error.
pub(super) const RETRY_DELAY: Duration = Duration::from_millis(500);
/// Mean retry delay while the stream is full: an operator has to make space.
pub(super) const RETRY_DELAY_FULL: Duration = Duration::from_secs(30);
/// Obeyed by the retries of gRPC libraries: milliseconds until the next attempt, or -1 for none (gRFC A6).
const PUSHBACK: &str = "grpc-retry-pushback-ms";
/// The longest delay that a library should wait. A longer one is left to the caller.
const PUSHBACK_MAX: Duration = Duration::from_secs(5);

/// An internal error.
pub(crate) fn internal() -> Status {
    status(Reason::Internal, "internal error; it was logged", HashMap::new(), ErrorDetails::new())
}

/// The request is not a gRPC call.
pub(crate) fn malformed(description: &str) -> Status {
    status(Reason::MalformedRequest, description, HashMap::new(), ErrorDetails::new())
}

/// A status that is the caller's fault, although its reason usually is ours.
pub(super) fn by_caller(reason: Reason, message: &str) -> Status {
    let status = status(reason, message, HashMap::new(), ErrorDetails::new());
    Rejection { reason, fault: Fault::Theirs }.mark(status)
}

pub(super) fn retry_later(reason: Reason, message: &str, retry_delay: Duration) -> Status {
    let details = ErrorDetails::with_retry_info(Some(jittered(retry_delay)));
    status(reason, message, HashMap::new(), details)
}

/// Adds jitter: half to one and a half times as long, so that callers rejected together do not retry together.
pub(super) fn jittered(mean: Duration) -> Duration {
    Jitter::up_to(mean) + mean / 2
}

pub(super) fn status(
    reason: Reason,
    message: &str,
    metadata: HashMap<String, String>,
    mut details: ErrorDetails,
) -> Status {
    details.set_error_info(reason.as_str(), DOMAIN, metadata);
    let retry_delay = details.retry_info().and_then(|retry| retry.retry_delay);
    let mut status = Status::with_error_details(reason.code(), message, details);
    // Some libraries retry every status with this trailer. A caller over its quota has to see the error.
    if let (Code::Unavailable, Some(retry_delay)) = (reason.code(), retry_delay) {
        status.metadata_mut().insert(PUSHBACK, pushback(retry_delay));
    }
    Rejection { reason, fault: reason.fault() }.mark(status)
}

fn pushback(retry_delay: Duration) -> MetadataValue<Ascii> {
    if retry_delay > PUSHBACK_MAX {
        return MetadataValue::from_static("-1");
    }
    // Rounded up: an early call is rejected again. At most 5,000, so the cast truncates nothing.
    MetadataValue::from(retry_delay.as_millis() as u64 + 1)
}
