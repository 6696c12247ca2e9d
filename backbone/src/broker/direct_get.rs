//! Reading many messages of a stream in one request: batched direct get (NATS ADR-31).

use std::time::{Duration, SystemTime};

use async_nats::connection::State;
use async_nats::{Client, HeaderMap, Message, StatusCode, Subject};
use bytes::Bytes;
use futures::StreamExt;
use prost_types::Timestamp;
use serde::Serialize;
use thiserror::Error;
use tokio::time::timeout;

use crate::log::ids::Revision;

/// Longest wait for the next message of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Most messages that one request asks for.
const BATCH_MESSAGES_MAX: u32 = 256;
/// Maximum bytes of one request; the message that exceeds it is the last one.
const BATCH_BYTES_MAX: u32 = 128 * 1024;
/// The server's end-of-batch status.
const END_OF_BATCH: u16 = 204;
/// The server's status for the last messages of more than 1,024 subjects.
const TOO_MANY_RESULTS: u16 = 413;
/// A filter for every message. The broker recognizes it, and counts without walking the log; any other filter, even one that
/// matches all subjects of the stream, is matched with each message.
pub const ALL: &str = ">";

/// A message as the stream keeps it.
#[derive(Debug)]
pub struct Stored {
    /// Where it was published.
    pub subject: Subject,
    /// Its sequence in the stream.
    pub sequence: Revision,
    /// Its headers, and the stream's own.
    pub headers: HeaderMap,
    /// Its payload.
    pub payload: Bytes,
}

/// A read without an answer. Its result is unknown.
#[derive(Clone, Debug, Error)]
pub enum ReadError {
    /// The broker is unavailable or too slow, or the stream is missing or has no leader.
    #[error("the broker did not answer: {0}")]
    NoAnswer(String),
    /// The broker answered with an error.
    #[error("the broker answered {0}")]
    Broker(String),
}

impl ReadError {
    /// The meaning of a direct get's status without a message. 503 (no responders) means that the stream is gone or has
    /// no leader, or a broker without JetStream.
    pub(crate) fn of(status: StatusCode, text: &str) -> Self {
        let said = format!("{status} {text}");
        if status.is_server_error() { Self::NoAnswer(said) } else { Self::Broker(said) }
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum Request<'a> {
    Last { multi_last: &'a [String] },
    SomeLast { multi_last: &'a [String], seq: u64, max_bytes: u32 },
    LastOn { last_by_subj: &'a str },
    At { seq: u64 },
    First { seq: u64, next_by_subj: &'a str },
    Next { seq: u64, next_by_subj: &'a str, batch: u32, max_bytes: u32 },
    Since { start_time: String, next_by_subj: &'a str, batch: u32 },
}

/// The sequence of the first message that was stored at `time` or later.
pub(crate) async fn first_since(
    client: &Client,
    stream: &str,
    time: SystemTime,
) -> Result<Option<Revision>, ReadError> {
    let start_time = Timestamp::from(time).to_string();
    let found = batch(client, stream, &Request::Since { start_time, next_by_subj: ALL, batch: 1 }).await?;
    Ok(found.messages.first().map(|message| message.sequence))
}

/// The last message on subjects that match `filter`, of which there may be any number. The broker visits each of them.
pub async fn last_on(client: &Client, stream: &str, filter: &str) -> Result<Option<Stored>, ReadError> {
    one(client, stream, &Request::LastOn { last_by_subj: filter }).await
}

/// The message at `sequence`.
pub async fn at(client: &Client, stream: &str, sequence: Revision) -> Result<Option<Stored>, ReadError> {
    one(client, stream, &Request::At { seq: sequence.0 }).await
}

/// The first message on subjects that match `filter`, from sequence `from` on. The broker walks the messages from there
/// to the one that it finds, but counts none, unlike [`batch_from`].
pub async fn first_from(
    client: &Client,
    stream: &str,
    filter: &str,
    from: Revision,
) -> Result<Option<Stored>, ReadError> {
    one(client, stream, &Request::First { seq: from.0.max(1), next_by_subj: filter }).await
}

/// The message of an answer that has no more than one.
async fn one(client: &Client, stream: &str, request: &Request<'_>) -> Result<Option<Stored>, ReadError> {
    reachable(client)?;
    let request = serde_json::to_vec(request).map_err(|error| ReadError::Broker(error.to_string()))?;
    let answer = client.request(format!("$JS.API.DIRECT.GET.{stream}"), request.into());
    let no_answer = |error: &dyn std::fmt::Display| ReadError::NoAnswer(error.to_string());
    let answer = timeout(ANSWER_TIMEOUT, answer).await.map_err(|error| no_answer(&error))?;
    let answer = answer.map_err(|error| no_answer(&error))?;
    match answer.status {
        None => stored(answer).map(Some),
        Some(StatusCode::NOT_FOUND) => Ok(None),
        Some(status) => Err(ReadError::of(status, answer.description.as_deref().unwrap_or_default())),
    }
}

/// The last message on each subject that matches one of `filters`, by sequence.
pub async fn last_of_each(
    client: &Client,
    stream: &str,
    filters: &[String],
) -> Result<Vec<Stored>, ReadError> {
    Ok(batch(client, stream, &Request::Last { multi_last: filters }).await?.messages)
}

/// The last message on each subject that matches `filter`, of those from sequence `from` on, by sequence; the
/// message that exceeds `bytes_max` is the last one. `None` if there are more than 1,024 such subjects, even if their last
/// messages are before `from`: the broker then answers none. It visits each of the subjects, but does not walk the log.
pub async fn last_of_few(
    client: &Client,
    stream: &str,
    filter: &str,
    from: Revision,
    bytes_max: u32,
) -> Result<Option<Batch>, ReadError> {
    let filters = [filter.to_owned()];
    let request = Request::SomeLast { multi_last: &filters, seq: from.0.max(1), max_bytes: bytes_max };
    match get(client, stream, &request).await? {
        Answer::Batch(batch) => Ok(Some(batch)),
        Answer::TooMany => Ok(None),
    }
}

/// All messages on subjects that match `filter`, from sequence `from` on, by sequence.
pub async fn all_from(
    client: &Client,
    stream: &str,
    filter: &str,
    from: Revision,
) -> Result<Vec<Stored>, ReadError> {
    let mut all: Vec<Stored> = Vec::new();
    let mut next = from;
    loop {
        let Batch { messages, remaining, .. } =
            batch_from(client, stream, filter, next, BATCH_MESSAGES_MAX).await?;
        next = messages.last().map_or(next, |last| Revision(last.sequence.0 + 1));
        all.extend(messages);
        if remaining == 0 {
            return Ok(all);
        }
    }
}

/// Some messages, and how many there are behind them.
#[derive(Debug)]
pub struct Batch {
    /// By sequence.
    pub messages: Vec<Stored>,
    /// Messages on the same subjects after these.
    pub remaining: u64,
    /// The last sequence of the stream when the last messages of some subjects were read, if there are such messages: the
    /// server that answered has all messages up to it.
    pub stream_end: Revision,
}

/// What the broker answers to a request for several messages.
enum Answer {
    Batch(Batch),
    /// The request is for the last messages of more than 1,024 subjects.
    TooMany,
}

impl Batch {
    /// How many messages there are, from the first of these on.
    pub fn total(&self) -> u64 {
        self.messages.len() as u64 + self.remaining
    }
}

/// The first `messages_max` messages on subjects that match `filter`, from sequence `from` on; fewer if they
/// are large, but at least one.
pub async fn batch_from(
    client: &Client,
    stream: &str,
    filter: &str,
    from: Revision,
    messages_max: u32,
) -> Result<Batch, ReadError> {
    let request = Request::Next {
        seq: from.0.max(1),
        next_by_subj: filter,
        batch: messages_max,
        max_bytes: BATCH_BYTES_MAX,
    };
    batch(client, stream, &request).await
}

/// A request during a broker outage times out: report the outage at once instead.
pub(crate) fn reachable(client: &Client) -> Result<(), ReadError> {
    match client.connection_state() {
        State::Connected => Ok(()),
        State::Pending | State::Disconnected => Err(ReadError::NoAnswer("broker unavailable".to_owned())),
    }
}

async fn batch(client: &Client, stream: &str, request: &Request<'_>) -> Result<Batch, ReadError> {
    match get(client, stream, request).await? {
        Answer::Batch(batch) => Ok(batch),
        Answer::TooMany => Err(ReadError::Broker("413: too many subjects".to_owned())),
    }
}

async fn get(client: &Client, stream: &str, request: &Request<'_>) -> Result<Answer, ReadError> {
    reachable(client)?;
    let no_answer = |error: &dyn std::fmt::Display| ReadError::NoAnswer(error.to_string());
    let payload = serde_json::to_vec(request).map_err(|error| ReadError::Broker(error.to_string()))?;
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.map_err(|error| no_answer(&error))?;
    client
        .publish_with_reply(format!("$JS.API.DIRECT.GET.{stream}"), inbox, payload.into())
        .await
        .map_err(|error| no_answer(&error))?;

    let mut received = Received::default();
    loop {
        let message = timeout(ANSWER_TIMEOUT, answers.next()).await.map_err(|error| no_answer(&error))?;
        let Some(message) = message else {
            return Err(ReadError::NoAnswer("the connection closed".to_owned()));
        };
        if let Some(answer) = received.add(message)? {
            return Ok(answer);
        }
    }
}

/// The messages of an answer so far. Each names the one before it, so that a lost one is noticed: a route between two
/// servers may be interrupted amid an answer.
#[derive(Debug, Default)]
struct Received(Vec<Stored>);

impl Received {
    /// The whole answer, if `message` is the end of it.
    fn add(&mut self, message: Message) -> Result<Option<Answer>, ReadError> {
        let end_of = |remaining, stream_end, messages: &mut Vec<Stored>| {
            let messages = std::mem::take(messages);
            Ok(Some(Answer::Batch(Batch { messages, remaining, stream_end })))
        };
        match message.status {
            None => {
                self.follows(message.headers.as_ref())?;
                self.0.push(stored(message)?);
                Ok(None)
            }
            Some(status) if status.as_u16() == END_OF_BATCH => {
                let headers = message.headers.as_ref();
                self.follows(headers)?;
                let remaining = number(headers, "Nats-Num-Pending").unwrap_or(0);
                let stream_end = Revision(number(headers, "Nats-UpTo-Sequence").unwrap_or(0));
                end_of(remaining, stream_end, &mut self.0)
            }
            Some(StatusCode::NOT_FOUND) if self.0.is_empty() => end_of(0, Revision::NONE, &mut self.0),
            // The server could not load one of the messages.
            Some(StatusCode::NOT_FOUND) => {
                Err(ReadError::NoAnswer("the broker broke off its answer".to_owned()))
            }
            Some(status) if status.as_u16() == TOO_MANY_RESULTS => Ok(Some(Answer::TooMany)),
            Some(status) => Err(ReadError::of(status, message.description.as_deref().unwrap_or_default())),
        }
    }

    fn follows(&self, headers: Option<&HeaderMap>) -> Result<(), ReadError> {
        let last = self.0.last().map_or(0, |last| last.sequence.0);
        if number(headers, "Nats-Last-Sequence").is_none_or(|before| before == last) {
            return Ok(());
        }
        Err(ReadError::NoAnswer("a message of the broker's answer was lost".to_owned()))
    }
}

fn stored(message: Message) -> Result<Stored, ReadError> {
    let incomplete = || ReadError::Broker("a message without Nats-Subject or Nats-Sequence".to_owned());
    let headers = message.headers.unwrap_or_default();
    let subject = headers.get_last("Nats-Subject").ok_or_else(incomplete)?.as_str().into();
    let sequence = number(Some(&headers), "Nats-Sequence").ok_or_else(incomplete)?;
    Ok(Stored { subject, sequence: Revision(sequence), headers, payload: message.payload })
}

/// The broker writes its headers behind those of the message, which may have the same names.
fn number(headers: Option<&HeaderMap>, name: &'static str) -> Option<u64> {
    headers?.get_last(name)?.as_str().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(status: Option<u16>, headers: &[(&'static str, u64)]) -> Message {
        let mut map = HeaderMap::new();
        map.insert("Nats-Subject", "ORDER.probe");
        for (name, value) in headers {
            map.append(*name, value.to_string());
        }
        Message {
            subject: "_INBOX".into(),
            reply: None,
            payload: Bytes::new(),
            headers: Some(map),
            status: status.map(|status| StatusCode::from_u16(status).unwrap()),
            description: None,
            length: 0,
        }
    }

    fn at(sequence: u64, before: u64) -> Message {
        // The message's own header comes first, and does not count.
        let forged = ("Nats-Last-Sequence", 99);
        message(None, &[forged, ("Nats-Sequence", sequence), ("Nats-Last-Sequence", before)])
    }

    fn end(before: u64) -> Message {
        message(Some(END_OF_BATCH), &[("Nats-Num-Pending", 5), ("Nats-Last-Sequence", before)])
    }

    fn not_found() -> Message {
        message(Some(404), &[])
    }

    /// The sequences of the whole answer, and how many remain.
    fn received(messages: Vec<Message>) -> Result<(Vec<u64>, u64), ReadError> {
        let mut received = Received::default();
        for message in messages {
            match received.add(message)? {
                None => {}
                Some(Answer::Batch(Batch { messages, remaining, .. })) => {
                    return Ok((messages.iter().map(|message| message.sequence.0).collect(), remaining));
                }
                Some(Answer::TooMany) => unreachable!("no such message"),
            }
        }
        unreachable!("no end")
    }

    #[test]
    fn an_answer_has_every_message() {
        assert_eq!(received(vec![at(3, 0), at(7, 3), at(8, 7), end(8)]).unwrap(), (vec![3, 7, 8], 5));
        assert_eq!(received(vec![not_found()]).unwrap(), (vec![], 0));
    }

    #[test]
    fn an_answer_that_lacks_a_message_is_none() {
        for lost in 0..3 {
            let mut messages = vec![at(3, 0), at(7, 3), at(8, 7), end(8)];
            messages.remove(lost);
            let error = received(messages).unwrap_err();
            assert!(matches!(error, ReadError::NoAnswer(_)), "{lost}: {error:?}");
        }
    }

    #[test]
    fn an_answer_that_is_broken_off_is_none() {
        let error = received(vec![at(3, 0), not_found()]).unwrap_err();
        assert!(matches!(error, ReadError::NoAnswer(_)), "{error:?}");
    }
}
