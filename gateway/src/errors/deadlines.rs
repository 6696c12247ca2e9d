//! Calls whose time is over.

use std::collections::HashMap;

use tonic::Status;
use tonic_types::ErrorDetails;

use super::reason::Reason;
use super::status::{by_caller, status};

/// The deadline that its caller has set for a stream has come.
pub(crate) fn stream_timed_out() -> Status {
    let message = "stream deadline exceeded; resume with the last revision seen";
    by_caller(Reason::TimedOut, message)
}

/// The deadline that its caller has set for a redrive has come.
pub(crate) fn redrive_timed_out() -> Status {
    let message = "redrive deadline exceeded; answered dead letters are done, and the next one may be: repeat the \
                   call for the others, no dead letter redrives its order twice";
    status(Reason::TimedOut, message, HashMap::new(), ErrorDetails::new())
}

/// The deadline that its caller has set has come, and the call had no answer of its own yet.
pub(crate) fn caller_timed_out() -> Status {
    let message = "deadline exceeded, outcome unknown; repeat the call with a longer deadline (CreateOrder with the \
                   same request_id)";
    status(Reason::OutcomeUnknown, message, HashMap::new(), ErrorDetails::new())
}

/// The request itself did not come whole in the time that it has for that.
pub(crate) fn request_late() -> Status {
    let message = "the request did not arrive in time, nothing was changed; send it again";
    by_caller(Reason::TimedOut, message)
}

/// Time ran out over a call that changes nothing.
pub(crate) fn timed_out() -> Status {
    let message = "no answer within the deadline; nothing was changed, call again";
    status(Reason::TimedOut, message, HashMap::new(), ErrorDetails::new())
}
