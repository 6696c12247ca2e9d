//! Errors for dead letters that do not exist, or cannot be changed.

use std::collections::HashMap;

use backbone::dead_letters::{LetterId, PutError};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::invalid::VIOLATIONS_MAX;
use super::reason::Reason;
use super::status::{RETRY_DELAY, internal, retry_later, status};

/// Why a dead letter without an event cannot be redriven, and what to do about it.
pub(crate) const UNDECODABLE: &str = "the message cannot be decoded, so there is no order to redrive; find its writer \
                                      (GetDeadLetter shows the message), and discard the dead letter";

/// There is no such dead letter.
pub(crate) fn letter_not_found(id: &LetterId) -> Status {
    let description = "there is no dead letter with this dead_letter_id";
    let details =
        ErrorDetails::with_resource_info("operations.v1.DeadLetter", id.to_string(), "", description);
    Status::with_error_details(Code::NotFound, format!("{description}: {id}"), details)
}

/// Named dead letters cannot be redriven.
pub(crate) fn undecodable(ids: &[LetterId]) -> Status {
    let mut details = ErrorDetails::new();
    for id in ids.iter().take(VIOLATIONS_MAX) {
        details.add_precondition_failure_violation("UNDECODABLE", id.to_string(), UNDECODABLE);
    }
    status(Reason::NotRedrivable, UNDECODABLE, HashMap::new(), details)
}

/// The order of the dead letter was redriven.
pub(crate) fn already_redriven(id: &LetterId) -> Status {
    let description = "the order was already redriven; if it fails again, it gets a new dead letter";
    let details =
        ErrorDetails::with_precondition_failure_violation("DEAD_LETTER_STATE", id.to_string(), description);
    status(Reason::AlreadyRedriven, description, of_letter(id), details)
}

/// The status for a dead letter that was not changed, or may not have been.
pub(crate) fn put(id: &LetterId, put_error: &PutError) -> Status {
    match put_error {
        PutError::Conflict | PutError::Unavailable(_) => {
            retry_later(Reason::BrokerUnavailable, "nothing was changed; try again", RETRY_DELAY)
        }
        PutError::Unknown(_) => letter_unknown(id),
        PutError::Permanent(_) => internal(),
    }
}

/// It is unknown whether the dead letter was changed.
pub(crate) fn letter_unknown(id: &LetterId) -> Status {
    let message = "outcome unknown: the dead letter may have been changed; repeat the call";
    status(Reason::OutcomeUnknown, message, of_letter(id), ErrorDetails::new())
}

fn of_letter(id: &LetterId) -> HashMap<String, String> {
    HashMap::from([("dead_letter_id".to_owned(), id.to_string())])
}
