//! The mark of a rejection: its reason and fault. It travels with the status to
//! [`Spans`](crate::spans::Spans), which counts and removes it.

use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::Status;

use super::fault::Fault;
use super::reason::Reason;

/// The header of the mark. It never reaches a client.
const MARK: HeaderName = HeaderName::from_static("waybill-refusal");

/// The reason and fault of a rejected call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) reason: Reason,
    pub(crate) fault: Fault,
}

impl Rejection {
    /// Adds the mark to a status.
    pub(crate) fn mark(self, mut status: Status) -> Status {
        let text = format!("{} {}", self.reason.as_str(), self.fault.as_str());
        if let Ok(text) = HeaderValue::from_str(&text) {
            status.metadata_mut().as_mut().insert(MARK, text);
        }
        status
    }

    /// Removes the mark from the headers or trailers of an answer.
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
    fn a_mark_is_read_back_and_removed() {
        for reason in Reason::ALL {
            for fault in Fault::ALL {
                let rejection = Rejection { reason, fault };
                let mut answer = rejection.mark(Status::internal("x")).into_http::<()>();
                assert!(Rejection::is_marked(answer.headers()));
                assert_eq!(Rejection::take(answer.headers_mut()), Some(rejection));
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
