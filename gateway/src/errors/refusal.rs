//! The mark of a refusal: its reason and whose fault it is, which travel with the status as far as
//! [`Spans`](crate::spans::Spans), where they are counted and taken off.

use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::Status;

use super::fault::Fault;
use super::reason::Reason;

/// The mark. No client sees it.
const MARK: HeaderName = HeaderName::from_static("waybill-refusal");

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
