//! Whose fault it is that a call was not answered with OK: what alerts wake an operator by.
//!
//! A code alone does not tell: INTERNAL may be bytes that are no message, DEADLINE_EXCEEDED a deadline that nobody could
//! meet. So a status says it where it is made, in a mark that travels with it as far as [`Spans`](crate::spans::Spans),
//! which counts it and takes it off.

use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::{Code, Status};

use crate::errors::Reason;

/// The mark. No client sees it.
const MARK: HeaderName = HeaderName::from_static("waybill-refusal");

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

/// Why a call was refused, and by whose fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    pub(crate) fault: Fault,
}

impl Refusal {
    /// Marks the status of a refusal.
    pub(crate) fn mark(self, mut status: Status) -> Status {
        let text = format!("{} {}", self.reason.as_str(), self.fault.as_str());
        if let Ok(text) = HeaderValue::from_str(&text) {
            status.metadata_mut().as_mut().insert(MARK, text);
        }
        status
    }

    /// Takes the mark off the headers or trailers of an answer.
    pub(crate) fn take(headers: &mut HeaderMap) -> Option<Self> {
        Self::parse(headers.remove(MARK)?.to_str().ok()?)
    }

    /// Whether an answer has a mark.
    pub(crate) fn is_marked(headers: &HeaderMap) -> bool {
        headers.contains_key(MARK)
    }

    fn parse(text: &str) -> Option<Self> {
        let (reason, fault) = text.split_once(' ')?;
        let reason = Reason::ALL.into_iter().find(|known| known.as_str() == reason)?;
        let fault = Fault::ALL.into_iter().find(|known| known.as_str() == fault)?;
        Some(Self { reason, fault })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_says_what_it_was_told_and_is_gone_when_it_is_taken() {
        for reason in Reason::ALL {
            for fault in Fault::ALL {
                let refusal = Refusal { reason, fault };
                let mut answer = refusal.mark(Status::internal("x")).into_http::<()>();
                assert!(Refusal::is_marked(answer.headers()));
                assert_eq!(Refusal::take(answer.headers_mut()), Some(refusal));
                assert!(
                    answer
                        .headers()
                        .keys()
                        .all(|name| name.as_str().starts_with("grpc-") || name == "content-type")
                );
            }
        }
    }
}
