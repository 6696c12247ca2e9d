//! Calls beyond a limit: of one caller, or of all of them.

use std::collections::HashMap;
use std::time::Duration;

use tonic::Status;
use tonic_types::ErrorDetails;

use super::reason::Reason;
use super::status::{RETRY_DELAY, jittered, retry_later, status};

/// Too many calls by `subject`: one tenant, one peer address, or all callers of the gateway.
pub(crate) fn rate_limited(subject: &str, wait: Duration) -> Status {
    over_quota(Reason::RateLimited, subject, &format!("calls per second of this {subject}"), wait)
}

/// The caller has reached its limit of open streams.
pub(crate) fn too_many_streams(subject: &str, streams_max: usize) -> Status {
    let description = format!("at most {streams_max} open streams of this {subject}");
    over_quota(Reason::TooManyStreams, subject, &description, jittered(RETRY_DELAY))
}

/// The caller has reached its limit of calls in flight.
pub(crate) fn too_many_calls(subject: &str, calls_max: usize) -> Status {
    let description = format!("at most {calls_max} calls in flight of this {subject}");
    over_quota(Reason::TooManyCalls, subject, &description, jittered(RETRY_DELAY))
}

/// The call has more metadata than is read; the same call is refused again.
pub(crate) fn metadata_too_large(bytes_max: usize) -> Status {
    let description = format!("at most {bytes_max} bytes of metadata in a call");
    let details = ErrorDetails::with_quota_failure_violation("call", &description);
    let message = format!("metadata too large: {description}; send less");
    status(Reason::MetadataTooLarge, &message, HashMap::new(), details)
}

/// More came than any request needs.
pub(crate) fn request_too_large(bytes_max: usize) -> Status {
    Status::out_of_range(format!(
        "the call has sent more than {bytes_max} bytes; send one message of at most half of that"
    ))
}

/// The limit of calls in flight, or of open streams, is reached.
pub(crate) fn overloaded() -> Status {
    retry_later(Reason::Overloaded, "gateway overloaded; try again", RETRY_DELAY)
}

fn over_quota(reason: Reason, subject: &str, description: &str, wait: Duration) -> Status {
    let mut details = ErrorDetails::with_retry_info(Some(wait));
    details.add_quota_failure_violation(subject, description);
    let message = format!("over quota: {description}; wait as long as RetryInfo says");
    status(reason, &message, HashMap::new(), details)
}
