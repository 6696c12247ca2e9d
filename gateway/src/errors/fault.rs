//! Whose fault it is that a call was not answered with OK: what alerts wake an operator by.
//!
//! A code alone does not tell: INTERNAL may be bytes that are no message, DEADLINE_EXCEEDED a deadline that nobody could
//! meet. So a status says it where it is made.

use tonic::Code;

/// Who would have to act so that it does not happen again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Those who run Waybill.
    Ours,
    /// The caller.
    Theirs,
}

impl Fault {
    pub(crate) const ALL: [Self; 2] = [Self::Ours, Self::Theirs];

    /// The label of metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Theirs => "theirs",
        }
    }

    /// Of a status without a mark: one of the gRPC library, or a refusal whose code says enough.
    pub(crate) fn of_code(code: Code) -> Self {
        match code {
            Code::Unknown | Code::DeadlineExceeded | Code::Internal | Code::Unavailable | Code::DataLoss => {
                Self::Ours
            }
            Code::Ok
            | Code::Cancelled
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated => Self::Theirs,
        }
    }
}
