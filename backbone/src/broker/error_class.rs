//! The meaning of JetStream's answers: one table for publishes and for requests to its API.
//!
//! Codes and texts are those of nats-server 2.15 (`server/errors.json`, and `server/store.go` for the texts of 10077).
//! Its classes of codes (400, 500, 503) do not distinguish temporary errors: an account without space is 400, an
//! unsupported configuration is 500.
//! supported is 500.

use std::error::Error as _;

use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::{self, ErrorCode};

/// The outcome of a request that the broker answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// A retry may soon succeed: a leader is missing, a server starts.
    Transient,
    /// There is no space. A retry may succeed once an operator has made some, or old messages have expired.
    Full,
    /// The message is larger than the broker, or the stream, takes. It never succeeds.
    TooLarge,
    /// It never succeeds, for another reason.
    Permanent,
    /// Something else is stored there than was expected.
    Conflict,
}

/// An error code, a part of its text if several things have the code, and what it means.
type Row = (ErrorCode, &'static str, ErrorClass);

const fn any(code: u64, class: ErrorClass) -> Row {
    (ErrorCode(code), "", class)
}

const fn text(code: u64, text: &'static str, class: ErrorClass) -> Row {
    (ErrorCode(code), text, class)
}

/// The first matching row applies. An error without a row is classified by its class, see [`classify`].
const TABLE: [Row; 53] = [
    // No space: the limits of the account and the server (max_file_store), and the reservation of a new stream.
    any(10002, ErrorClass::Full),
    any(10023, ErrorClass::Full),
    any(10028, ErrorClass::Full),
    any(10047, ErrorClass::Full),
    // 10077, and failures to create a stream or consumer, pass on the store's error text.
    text(10077, "maximum messages exceeded", ErrorClass::Full),
    text(10077, "maximum bytes exceeded", ErrorClass::Full),
    text(10077, "maximum messages per subject exceeded", ErrorClass::Full),
    text(10077, "no space left", ErrorClass::Full),
    text(10012, "no space left", ErrorClass::Full),
    text(10049, "no space left", ErrorClass::Full),
    text(10051, "no space left", ErrorClass::Full),
    text(10069, "no space left", ErrorClass::Full),
    text(10104, "no space left", ErrorClass::Full),
    // Above the stream's max_msg_size, the server's max_payload, or the limit of a header or a record on disk.
    any(10054, ErrorClass::TooLarge),
    any(10097, ErrorClass::TooLarge),
    text(10077, "message too large", ErrorClass::TooLarge),
    any(10199, ErrorClass::TooLarge),
    // The compare-and-set.
    any(10070, ErrorClass::Conflict),
    any(10071, ErrorClass::Conflict),
    // Another message for the same subjects is being replicated, or the leader does not know the last sequence yet.
    any(10158, ErrorClass::Transient),
    any(10163, ErrorClass::Transient),
    any(10164, ErrorClass::Transient),
    // Servers, leaders or peers are missing, or the server is overloaded.
    any(10004, ErrorClass::Transient),
    any(10005, ErrorClass::Transient),
    any(10007, ErrorClass::Transient),
    any(10008, ErrorClass::Transient),
    any(10009, ErrorClass::Transient),
    any(10035, ErrorClass::Transient),
    any(10041, ErrorClass::Transient),
    any(10075, ErrorClass::Transient),
    any(10118, ErrorClass::Transient),
    any(10119, ErrorClass::Transient),
    any(10124, ErrorClass::Transient),
    any(10167, ErrorClass::Transient),
    any(10194, ErrorClass::Transient),
    any(10195, ErrorClass::Transient),
    any(10202, ErrorClass::Transient),
    any(10210, ErrorClass::Transient),
    any(10211, ErrorClass::Transient),
    any(10226, ErrorClass::Transient),
    // JetStream is disabled, at the server or for the account: an operator may enable it.
    any(10039, ErrorClass::Transient),
    any(10076, ErrorClass::Transient),
    // Missing, or existing already: this may have changed at the next attempt.
    any(10014, ErrorClass::Transient),
    any(10058, ErrorClass::Transient),
    any(10059, ErrorClass::Transient),
    // The broker lost a message of a batch, or waited too long for one.
    any(10176, ErrorClass::Transient),
    // Invalid settings that the server rejects with a 5xx code.
    any(10052, ErrorClass::Permanent),
    any(10053, ErrorClass::Permanent),
    any(10074, ErrorClass::Permanent),
    any(10036, ErrorClass::Permanent),
    any(10006, ErrorClass::Permanent),
    any(10010, ErrorClass::Permanent),
    any(10096, ErrorClass::Permanent),
];

/// The meaning of a JetStream error. An error without a row is temporary if its class is the server's (5xx), and
/// permanent if its class is the request's (4xx).
pub fn classify(error: &jetstream::Error) -> ErrorClass {
    let said = error.to_string();
    let row = TABLE.iter().find(|(code, text, _)| *code == error.error_code() && said.contains(text));
    match row {
        Some((_, _, class)) => *class,
        None if error.code() >= 500 => ErrorClass::Transient,
        None => ErrorClass::Permanent,
    }
}

/// What a publish met that was not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishFailure {
    /// It was not stored, and what that means.
    Refused(ErrorClass),
    /// Perhaps stored: there was no answer.
    Unanswered,
}

/// What a publish met that was not acknowledged.
pub fn publish_failure(error: &PublishError) -> PublishFailure {
    use PublishFailure::{Refused, Unanswered};
    match error.kind() {
        PublishErrorKind::WrongLastSequence | PublishErrorKind::WrongLastMessageId => {
            Refused(ErrorClass::Conflict)
        }
        // No responders on the subject: no stream, or no leader.
        PublishErrorKind::StreamNotFound | PublishErrorKind::MaxAckPending => Refused(ErrorClass::Transient),
        // Rejected by the client before it was sent.
        PublishErrorKind::MaxPayloadExceeded => Refused(ErrorClass::TooLarge),
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => Unanswered,
        PublishErrorKind::Other => match refusal(error) {
            Some(refusal) => Refused(classify(refusal)),
            // Not a reply of the broker.
            None => Unanswered,
        },
    }
}

/// The broker's error text, if it has answered.
pub(crate) fn refusal(error: &PublishError) -> Option<&jetstream::Error> {
    error.source().and_then(|source| source.downcast_ref::<jetstream::Error>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(code: u64, err_code: u64, description: &str) -> jetstream::Error {
        let answer = serde_json::json!({"code": code, "err_code": err_code, "description": description});
        serde_json::from_value(answer).unwrap()
    }

    #[test]
    fn every_row_matches_the_server() {
        use ErrorClass::{Conflict, Full, Permanent, TooLarge, Transient};
        // Class, code and text of nats-server 2.15; the common ones are from real replies of 2.15.1.
        let rows = [
            (400, 10002, "resource limits exceeded for account", Full),
            (503, 10023, "insufficient resources", Full),
            (500, 10028, "insufficient memory resources available", Full),
            (500, 10047, "insufficient storage resources available", Full),
            (503, 10077, "maximum messages exceeded", Full),
            (503, 10077, "maximum bytes exceeded", Full),
            (503, 10077, "maximum messages per subject exceeded", Full),
            (503, 10077, "write /data/msgs/3.blk: no space left on device", Full),
            (500, 10012, "open /data/obs/x: no space left on device", Full),
            (500, 10049, "mkdir /data/streams/X: no space left on device", Full),
            (500, 10051, "no space left on device", Full),
            (500, 10069, "no space left on device", Full),
            (500, 10104, "error creating store for consumer: no space left on device", Full),
            (400, 10054, "message size exceeds maximum allowed", TooLarge),
            (400, 10097, "header size exceeds maximum allowed of 64k", TooLarge),
            (503, 10077, "message too large", TooLarge),
            (400, 10199, "atomic publish batch is too large: 1000", TooLarge),
            (400, 10070, "wrong last msg ID: x", Conflict),
            (400, 10071, "wrong last sequence: 7", Conflict),
            (409, 10158, "duplicate message id is in process", Transient),
            (503, 10163, "expected last sequence per subject temporarily unavailable", Transient),
            (400, 10164, "wrong last sequence", Transient),
            (503, 10004, "incomplete results", Transient),
            (400, 10005, "no suitable peers for placement", Transient),
            (500, 10007, "JetStream cluster not assigned to this server", Transient),
            (503, 10008, "JetStream system temporarily unavailable", Transient),
            (500, 10009, "JetStream cluster can not handle request", Transient),
            (503, 10035, "account not found", Transient),
            (500, 10041, "raft: no leader", Transient),
            (503, 10075, "peer remap failed", Transient),
            (500, 10118, "stream is offline", Transient),
            (400, 10119, "consumer is offline", Transient),
            (400, 10124, "stream move already in progress", Transient),
            (429, 10167, "too many requests", Transient),
            (500, 10194, "stream is offline: unsupported", Transient),
            (500, 10195, "consumer is offline: unsupported", Transient),
            (400, 10202, "cluster member change is in progress", Transient),
            (429, 10210, "atomic publish too many inflight", Transient),
            (429, 10211, "batch publish too many inflight", Transient),
            (400, 10226, "stream reconfiguration already in progress", Transient),
            (503, 10039, "JetStream not enabled for account", Transient),
            (503, 10076, "JetStream not enabled", Transient),
            (404, 10014, "consumer not found", Transient),
            (400, 10058, "stream name already in use with a different configuration", Transient),
            (404, 10059, "stream not found", Transient),
            (400, 10176, "atomic publish batch is incomplete", Transient),
            (500, 10052, "max age needs to be >= 100ms", Permanent),
            (500, 10053, "stream limits", Permanent),
            (500, 10074, "replicas > 1 not supported in non-clustered mode", Permanent),
            (503, 10036, "not currently supported in clustered mode", Permanent),
            (500, 10006, "JetStream not in clustered mode", Permanent),
            (503, 10010, "JetStream clustering support required", Permanent),
            (500, 10096, "stream not valid", Permanent),
        ];
        for (class, code, text, wanted) in rows {
            assert_eq!(classify(&said(class, code, text)), wanted, "{code} {text}");
        }
        let tried: Vec<_> = TABLE
            .iter()
            .filter(|(row, text, _)| {
                rows.iter().any(|(_, code, said, _)| row.0 == *code && said.contains(text))
            })
            .collect();
        assert_eq!(tried.len(), TABLE.len(), "each row is tried");
    }

    #[test]
    fn an_error_without_a_row_is_classified_by_its_code() {
        for (class, code, text, wanted) in [
            (503, 10077, "file closed", ErrorClass::Transient),
            (500, 10999, "something new", ErrorClass::Transient),
            (400, 10999, "something new", ErrorClass::Permanent),
            (400, 10109, "invalid operation on sealed stream", ErrorClass::Permanent),
            (400, 10174, "atomic publish is disabled", ErrorClass::Permanent),
            (400, 10166, "per-message TTL is disabled", ErrorClass::Permanent),
            (400, 10060, "expected stream does not match", ErrorClass::Permanent),
            (400, 10065, "subjects overlap with an existing stream", ErrorClass::Permanent),
            (400, 10026, "maximum consumers limit reached", ErrorClass::Permanent),
            (400, 10025, "invalid JSON", ErrorClass::Permanent),
        ] {
            assert_eq!(classify(&said(class, code, text)), wanted, "{code} {text}");
        }
    }

    #[test]
    fn unsent_and_unanswered_publishes_differ() {
        let of = |kind| publish_failure(&PublishError::new(kind));
        use PublishFailure::{Refused, Unanswered};
        for (kind, wanted) in [
            (PublishErrorKind::StreamNotFound, Refused(ErrorClass::Transient)),
            (PublishErrorKind::MaxAckPending, Refused(ErrorClass::Transient)),
            (PublishErrorKind::WrongLastSequence, Refused(ErrorClass::Conflict)),
            (PublishErrorKind::WrongLastMessageId, Refused(ErrorClass::Conflict)),
            (PublishErrorKind::MaxPayloadExceeded, Refused(ErrorClass::TooLarge)),
            (PublishErrorKind::TimedOut, Unanswered),
            (PublishErrorKind::BrokenPipe, Unanswered),
            (PublishErrorKind::Other, Unanswered),
        ] {
            assert_eq!(of(kind), wanted, "{kind:?}");
        }
        let refusal = PublishError::with_source(PublishErrorKind::Other, said(400, 10002, "resource limits"));
        assert_eq!(publish_failure(&refusal), Refused(ErrorClass::Full));
    }
}
