//! Reading from the leader of a stream. A direct get is faster, but any replica answers it, even one that lags. So
//! permanent decisions read from the leader.

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{LastRawMessageError, LastRawMessageErrorKind, Stream};

use crate::broker::connection::Connection;
use crate::broker::direct_get::{ReadError, Stored};
use crate::broker::error_class::{ErrorClass, classify};
use crate::log::ids::Revision;

/// The last message on a subject, as the leader of its stream has it. For a filter the broker visits each subject that
/// matches.
pub async fn last(connection: &Connection, stream: &str, subject: &str) -> Result<Option<Stored>, ReadError> {
    let stream = open(connection, stream).await?;
    Ok(found(stream.get_last_raw_message_by_subject(subject).await)?.map(stored))
}

/// The first message on a subject from sequence `from` on, as the leader of its stream has it. The broker walks the
/// messages from there.
pub async fn first_from(
    connection: &Connection,
    stream: &str,
    subject: &str,
    from: Revision,
) -> Result<Option<Stored>, ReadError> {
    let stream = open(connection, stream).await?;
    Ok(found(stream.get_first_raw_message_by_subject(subject, from.0).await)?.map(stored))
}

async fn open(connection: &Connection, stream: &str) -> Result<Stream<()>, ReadError> {
    let stream = connection.jetstream.get_stream_no_info(stream).await;
    stream.map_err(|error| ReadError::NoAnswer(error.to_string()))
}

fn stored(StreamMessage { subject, sequence, headers, payload, .. }: StreamMessage) -> Stored {
    Stored { subject, sequence: Revision(sequence), headers, payload }
}

/// The message of an answer, if there is one.
pub(crate) fn found(
    answer: Result<StreamMessage, LastRawMessageError>,
) -> Result<Option<StreamMessage>, ReadError> {
    let error = match answer {
        Ok(message) => return Ok(Some(message)),
        Err(error) => error,
    };
    match error.kind() {
        LastRawMessageErrorKind::NoMessageFound => Ok(None),
        LastRawMessageErrorKind::JetStream(refusal) => match classify(&refusal) {
            // No leader, no JetStream, or no stream: it may be back at the next attempt.
            ErrorClass::Transient | ErrorClass::Full => Err(ReadError::NoAnswer(error.to_string())),
            ErrorClass::TooLarge | ErrorClass::Permanent | ErrorClass::Conflict => {
                Err(ReadError::Broker(error.to_string()))
            }
        },
        LastRawMessageErrorKind::InvalidSubject => Err(ReadError::Broker(error.to_string())),
        LastRawMessageErrorKind::Other => Err(ReadError::NoAnswer(error.to_string())),
    }
}

/// Whether the answer is from a server that knows no leader. That server may be the only one. A partitioned server that
/// has not found the others again answers that at once to every client, before the leader answers.
pub(crate) fn knows_no_leader(answer: &Result<StreamMessage, LastRawMessageError>) -> bool {
    let refused = answer.as_ref().err().map(LastRawMessageError::kind);
    matches!(refused, Some(LastRawMessageErrorKind::JetStream(refusal))
        if refusal.error_code() == ErrorCode::CLUSTER_NOT_AVAILABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_is_gone_or_without_a_leader_is_no_answer() {
        let leader = |code: u16, err_code: u16| {
            let answer = format!(r#"{{"code": {code}, "err_code": {err_code}, "description": "no"}}"#);
            let refusal = LastRawMessageErrorKind::JetStream(serde_json::from_str(&answer).unwrap());
            found(Err(LastRawMessageError::new(refusal))).unwrap_err()
        };
        // Stream not found, no leader, JetStream not enabled.
        for (code, err_code) in [(404, 10059), (503, 10008), (503, 10076)] {
            assert!(matches!(leader(code, err_code), ReadError::NoAnswer(_)), "{err_code}");
        }
        assert!(matches!(leader(400, 10025), ReadError::Broker(_)));
    }
}
