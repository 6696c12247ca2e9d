//! Requests that break the rules of their fields.

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

/// Most violations in one answer: error details travel in a header, and clients bound those.
pub(crate) const VIOLATIONS_MAX: usize = 32;
/// Most violations spelled out in the message, for people; the details name them all.
const VIOLATIONS_IN_MESSAGE_MAX: usize = 3;

/// Fields that break rules, at most [`VIOLATIONS_MAX`] of them, and how many more there are.
pub(crate) fn invalid(violations: Vec<FieldViolation>, left_out: usize) -> Status {
    let texts: Vec<_> = violations
        .iter()
        .take(VIOLATIONS_IN_MESSAGE_MAX)
        .map(|v| format!("{} {}", v.field, v.description))
        .collect();
    let more = if violations.len() > texts.len() { "; and more, see BadRequest" } else { "" };
    let mut message = format!("{}{more}", texts.join("; "));
    if left_out > 0 {
        message.push_str(&format!("; {left_out} further violations are left out"));
    }
    Status::with_error_details(Code::InvalidArgument, message, ErrorDetails::with_bad_request(violations))
}
