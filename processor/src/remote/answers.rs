//! Reads a service's answers, and distinguishes them from missing ones. Does no I/O.

use std::borrow::Cow;
use std::error::Error as _;

use program::plain_text::is_plain;
use thiserror::Error;
use tonic::{Code, Status};

use crate::step::StepError;

/// References and messages go into the order's history.
pub(crate) const TEXT_CHARS_MAX: usize = 256;
/// Stands for the payment method in texts of the service.
const HIDDEN: &str = "[payment_method]";

/// The service gave no usable answer.
#[derive(Clone, Debug, Error)]
pub enum CallError {
    /// The service is unavailable, or rejects all calls at the moment: not the order's fault.
    #[error("no answer: {0}")]
    Unavailable(String),
    /// Its answer is invalid, or it rejected a valid request.
    #[error("unusable answer: {0}")]
    Unusable(String),
}

impl From<CallError> for StepError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Unavailable(_) => Self::Unavailable(error.to_string()),
            CallError::Unusable(_) => Self::Unexpected(error.to_string()),
        }
    }
}

/// Whether a retry of the call may succeed.
pub(super) fn may_pass(status: &Status) -> bool {
    // A status that the client library made has the connection's error as its source.
    status.source().is_some()
        || matches!(
            status.code(),
            Code::Unavailable
                | Code::DeadlineExceeded
                | Code::Cancelled
                | Code::Aborted
                | Code::ResourceExhausted
        )
}

/// The outcome of a call. A rejected caller or a missing service is not the order's fault either, though an immediate
/// retry does not help.
pub(super) fn call_error(status: &Status, payment_method: &str) -> CallError {
    let text = format!("{:?}: {}", status.code(), shortened(status.message(), payment_method));
    let refused =
        matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented);
    if refused || may_pass(status) { CallError::Unavailable(text) } else { CallError::Unusable(text) }
}

pub(crate) fn unusable(what: &str) -> CallError {
    CallError::Unusable(what.to_owned())
}

/// A text with a length, and without characters that a terminal would interpret.
pub(crate) fn text(field: &str, text: String, chars_max: usize) -> Result<String, CallError> {
    if !text.chars().all(is_plain) {
        return Err(unusable(&format!("{field} contains control characters")));
    }
    match text.chars().count() {
        chars if chars <= chars_max => Ok(text),
        chars => Err(unusable(&format!("{field} has {chars} characters, must have at most {chars_max}"))),
    }
}

/// A text for people, with characters replaced that a terminal would interpret, and without the payment method: it goes into
/// logs, spans, dead letters and the order's history.
pub(crate) fn shortened(text: &str, payment_method: &str) -> String {
    let text = match payment_method {
        "" => Cow::Borrowed(text),
        token => Cow::Owned(text.replace(token, HIDDEN)),
    };
    let plain = |c| if is_plain(c) { c } else { char::REPLACEMENT_CHARACTER };
    text.chars().take(TEXT_CHARS_MAX).map(plain).collect()
}
