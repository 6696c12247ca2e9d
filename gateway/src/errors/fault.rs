//! Whose fault an error is: alerts wake an operator by it.
//!
//! A code alone is ambiguous: INTERNAL may be malformed bytes, DEADLINE_EXCEEDED an impossible deadline. So a status
//! carries its fault from where it is made.

use tonic::Code;

/// The side that has to act so that the error does not occur again.
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

    /// The fault of a status without a mark: one of the gRPC library, or one whose code is unambiguous.
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
