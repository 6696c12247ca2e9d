//! Calls that exceeded a deadline.

use std::collections::HashMap;

use tonic::Status;
use tonic_types::ErrorDetails;

use super::reason::Reason;
use super::status::{by_caller, status};

/// A stream reached its caller's deadline.
pub(crate) fn stream_timed_out() -> Status {
    let message = "stream deadline exceeded; resume with the last revision seen";
    by_caller(Reason::TimedOut, message)
}

/// A redrive reached its caller's deadline.
pub(crate) fn redrive_timed_out() -> Status {
    let message = "redrive deadline exceeded; answered dead letters are done, and the next one may be: repeat the \
                   call for the others, no dead letter redrives its order twice";
    status(Reason::TimedOut, message, HashMap::new(), ErrorDetails::new())
}

/// The call reached its caller's deadline before the handler answered.
pub(crate) fn caller_timed_out() -> Status {
    let message = "deadline exceeded, outcome unknown; repeat the call with a longer deadline (CreateOrder with the \
                   same request_id)";
    status(Reason::OutcomeUnknown, message, HashMap::new(), ErrorDetails::new())
}

/// The request did not arrive completely in time.
pub(crate) fn request_timed_out() -> Status {
    let message = "the request did not arrive in time, nothing was changed; send it again";
    by_caller(Reason::TimedOut, message)
}

/// Time ran out over a call that changes nothing.
pub(crate) fn timed_out() -> Status {
    let message = "no answer within the deadline; nothing was changed, call again";
    status(Reason::TimedOut, message, HashMap::new(), ErrorDetails::new())
}
