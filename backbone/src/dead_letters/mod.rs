//! Dead letters: the messages of the order log that a step has given up, and the attempts before that.
//!
//! Dead letters have a stream of their own. A dead letter has one subject for each state, and its latest message on any
//! of them is the dead letter. Each message is published with the expectation of the previous one, as events are. So of
//! two writers one wins, and no change happens twice.

mod fingerprint;
mod fit;
pub(crate) mod id;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use async_nats::jetstream::stream::Stream;
use async_nats::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use futures::TryStreamExt;
use program::trace::{self, FutureExt, SpanContext};
use prost::Message;
use proto::operations::v1::{DeadLetter, DeadLetterState, Header, Resolution};
use thiserror::Error;
use tokio::time::{Instant, sleep};
use tracing::field::Empty;
use tracing::{Span, info_span, warn};

pub use fingerprint::fingerprint;
pub use id::{ALL_DEAD_LETTERS, LetterId, MalformedLetterId};

use crate::broker::barrier::Barrier;
use crate::broker::connection::Connection;
use crate::broker::direct_get::{self, Batch, ReadError, Stored};
use crate::broker::leader_get::found;
use crate::broker::publish::{Outcome, publish};
use crate::broker::streams::{DEAD_LETTERS, StreamState, restore_dead_letters};
use crate::broker::trace_headers;
use crate::log::ids::Revision;
use crate::log::subjects::{self, is_step_name};
use fit::Cut;

/// How long the attempts at a message are remembered after the latest of them.
const ATTEMPTS_TTL: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// How long a resolved dead letter stays readable.
const RESOLVED_TTL: Duration = Duration::from_secs(90 * 24 * 60 * 60);
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a broker's message beside the dead letter.
const HEADER_BYTES_MAX: usize = 4 * 1024;
/// Dead letters read at once.
const READ_LETTERS_MAX: u32 = 64;
/// Reads from replicas that are behind, before giving up.
const REPLICA_READS_MAX: u32 = 5;
const REPLICA_PAUSE: Duration = Duration::from_millis(50);
/// Longest text of an error, in characters.
pub const ERROR_CHARS_MAX: usize = 512;

/// The dead letters, as one program sees them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    connection: Connection,
    stream: Stream<()>,
    barrier: Barrier,
}

/// A dead letter as stored, or the record of attempts before there is one.
#[derive(Clone, Debug)]
pub struct StoredDeadLetter {
    /// Whose it is.
    pub id: LetterId,
    /// The dead letter. Its state is unspecified while it is only a record of attempts.
    pub letter: DeadLetter,
    /// Where in its order's trace it was written, if its message tells.
    pub trace: Option<SpanContext>,
    /// Where its latest message is stored.
    head: Revision,
}

/// A dead letter that was not stored.
#[derive(Debug, Error)]
pub enum PutError {
    /// Another writer has changed the dead letter.
    #[error("the dead letter was changed concurrently")]
    Conflict,
    /// The broker is unavailable, or has no space; nothing was stored.
    #[error("the dead letter was not stored: {0}")]
    Unavailable(String),
    /// It is larger than the broker takes, or refused for another reason that stays; nothing was stored.
    #[error("the broker rejected the dead letter: {0}")]
    Permanent(String),
    /// Perhaps stored; reading the dead letter shows it.
    #[error("outcome unknown, the dead letter was not acknowledged in time: {0}")]
    Unknown(String),
}

/// A page of open dead letters, and whether there are more.
#[derive(Debug)]
pub struct DeadLetterPage {
    /// The oldest first.
    pub letters: Vec<StoredDeadLetter>,
    /// Where to go on; `None` after the last.
    pub next: Option<Revision>,
}

impl StoredDeadLetter {
    /// Its position among the dead letters.
    pub fn position(&self) -> Revision {
        self.head
    }
}

/// The contents of the stream of dead letters.
#[derive(Debug)]
pub struct Contents {
    /// How the stream is.
    pub stream: StreamState,
    /// The number of open dead letters of each step that has any.
    pub open: BTreeMap<String, u64>,
    /// Whether there is no dead letter in any state, and no record of attempts.
    pub is_empty: bool,
}

impl DeadLetters {
    /// The dead letters behind `connection`. Does not touch the broker.
    pub async fn new(connection: Connection) -> Result<Self, ReadError> {
        let stream = connection.jetstream.get_stream_no_info(DEAD_LETTERS).await;
        let stream = stream.map_err(|error| ReadError::Broker(error.to_string()))?;
        let barrier = Barrier::of_dead_letters(connection.clone());
        Ok(Self { connection, stream, barrier })
    }

    /// The dead letter. Its absence, and that there is no newer version, is proved.
    pub async fn find_proven(&self, id: &LetterId) -> Result<Option<StoredDeadLetter>, ReadError> {
        let found = self.barrier.last_of_each(&[id.filter()]).await;
        let last = self.or_restored(found).await?.pop();
        Ok(last
            .map(|Stored { sequence, headers, payload, .. }| decode_stored(id, sequence, &headers, payload)))
    }

    /// The dead letter from the server that acts as the stream's leader: for a write, whose expectation fails if the
    /// read was stale.
    pub async fn find(&self, id: &LetterId) -> Result<Option<StoredDeadLetter>, ReadError> {
        let found = found(self.stream.get_last_raw_message_by_subject(&id.filter()).await);
        let last = self.or_restored(found).await?;
        Ok(last.map(|last| decode_stored(id, Revision(last.sequence), &last.headers, last.payload)))
    }

    /// Stores a dead letter that does not exist yet.
    pub async fn put(&self, id: &LetterId, letter: DeadLetter) -> Result<StoredDeadLetter, PutError> {
        self.publish(id, letter, Revision::NONE).await
    }

    /// Stores the dead letter again if it is unchanged since `before` was read.
    pub async fn replace(
        &self,
        before: &StoredDeadLetter,
        letter: DeadLetter,
    ) -> Result<StoredDeadLetter, PutError> {
        let after = self.publish(&before.id, letter, before.head).await?;
        if before.letter.state() == DeadLetterState::Open && after.letter.state() != DeadLetterState::Open {
            self.delete(&before.id, before.head).await;
        }
        Ok(after)
    }

    /// Closes an open dead letter in `state`.
    pub async fn resolve(
        &self,
        open: &StoredDeadLetter,
        state: DeadLetterState,
        operator: &str,
        reason: &str,
    ) -> Result<StoredDeadLetter, PutError> {
        let resolution = Resolution {
            operator: operator.to_owned(),
            time: Some(SystemTime::now().into()),
            reason: reason.to_owned(),
        };
        let letter = DeadLetter { state: state.into(), resolution: Some(resolution), ..open.letter.clone() };
        self.replace(open, letter).await
    }

    /// Removes a record of attempts of which none failed. If that fails, the record expires.
    pub async fn forget(&self, record: &StoredDeadLetter) {
        if let Err(error) = self.stream.delete_message(record.head.0).await {
            warn!(dead_letter_id = %record.id, %error, "record of attempts not deleted");
        }
    }

    /// Removes the message of the open state that a crashed writer has left behind.
    pub async fn sweep(&self, closed: &StoredDeadLetter) -> Result<(), ReadError> {
        let open = closed.id.subject(DeadLetterState::Open);
        if let Some(left) = found(self.stream.get_last_raw_message_by_subject(&open).await)?
            && left.sequence < closed.head.0
        {
            self.delete(&closed.id, Revision(left.sequence)).await;
        }
        Ok(())
    }

    /// Some open dead letters of `step`, or of all steps, starting at `from`.
    pub async fn open_from(&self, step: Option<&str>, from: Revision) -> Result<DeadLetterPage, ReadError> {
        let batch = self.open_batch(&id::open(step), from).await;
        let batch = self.or_restored(batch).await?;
        let last = batch.messages.last().map(|last| Revision(last.sequence.0 + 1));
        let letters = batch.messages.into_iter().filter_map(|message| {
            let letter = DeadLetter::decode(message.payload).ok()?;
            let id = letter.dead_letter_id.parse::<LetterId>().ok()?;
            // On any other subject it is a foreign message.
            (*message.subject == *id.subject(DeadLetterState::Open)).then_some(StoredDeadLetter {
                id,
                letter,
                trace: None,
                head: message.sequence,
            })
        });
        Ok(DeadLetterPage { letters: letters.collect(), next: last.filter(|_| batch.remaining > 0) })
    }

    /// The last batch has all that there is.
    async fn open_batch(&self, filter: &str, from: Revision) -> Result<Batch, ReadError> {
        let client = &self.connection.client;
        for reads in 1..=REPLICA_READS_MAX {
            let batch = direct_get::batch_from(client, DEAD_LETTERS, filter, from, READ_LETTERS_MAX).await?;
            if batch.remaining > 0 {
                return Ok(batch);
            }
            let before = Revision(from.0.saturating_sub(1));
            let reached = batch.messages.last().map_or(before, |last| last.sequence);
            if reached >= self.barrier.last_on(filter).await? {
                return Ok(batch);
            }
            sleep(REPLICA_PAUSE * reads).await;
        }
        Err(ReadError::NoAnswer("the replica that answered lags".to_owned()))
    }

    /// The contents of the stream of dead letters.
    pub async fn contents(&self) -> Result<Contents, ReadError> {
        direct_get::reachable(&self.connection.client)?;
        let no_answer = |error: &dyn std::fmt::Display| ReadError::NoAnswer(error.to_string());
        let info = self.stream.get_info().await.map_err(|error| no_answer(&error))?;
        let mut open = BTreeMap::new();
        let subjects = self.stream.info_with_subjects(id::open(None)).await;
        let mut subjects = subjects.map_err(|error| no_answer(&error))?;
        // The stream keeps one message per subject, so each subject is one dead letter.
        while let Some((subject, letters)) = subjects.try_next().await.map_err(|error| no_answer(&error))? {
            let step = subject.split('.').nth(2).filter(|step| is_step_name(step)).unwrap_or_default();
            *open.entry(step.to_owned()).or_default() += letters as u64;
        }
        // The stream also holds other records.
        let is_empty = open.is_empty() && self.barrier.last_on(id::ALL_LETTERS).await? == Revision::NONE;
        Ok(Contents { stream: StreamState::from(&info), open, is_empty })
    }

    async fn publish(
        &self,
        id: &LetterId,
        mut letter: DeadLetter,
        expected: Revision,
    ) -> Result<StoredDeadLetter, PutError> {
        letter.dead_letter_id = id.to_string();
        letter.step = id.step().to_owned();
        letter.sequence = id.sequence().0;
        letter.attempt_count = i32::try_from(letter.attempts.len()).unwrap_or(i32::MAX);
        let span = info_span!(
            "publish",
            otel.name = format!("publish {}", subject_of(&letter)),
            otel.kind = "producer",
            messaging.system = "nats",
            messaging.operation.name = "publish",
            messaging.operation.type = "send",
            messaging.destination.name = id.subject(letter.state()),
            messaging.destination.template = subject_of(&letter),
            waybill.dead_letter.id = letter.dead_letter_id,
            waybill.order.id = order_of(&letter),
            waybill.step = id.step(),
            waybill.keep = Empty,
        );
        if letter.state() != DeadLetterState::Unspecified {
            span.record("waybill.keep", true);
        }
        self.publish_cut(id, letter, expected, &span).with_context(trace::within(&span)).await
    }

    /// Publishes the dead letter, cut to the size that fits.
    async fn publish_cut(
        &self,
        id: &LetterId,
        mut letter: DeadLetter,
        expected: Revision,
        span: &Span,
    ) -> Result<StoredDeadLetter, PutError> {
        let subject = id.subject(letter.state());
        let mut headers = HeaderMap::new();
        headers.insert("content-type", "application/protobuf");
        trace_headers::write(&mut headers);
        let trace = trace_headers::read(&headers);
        let ttl = match letter.state() {
            DeadLetterState::Unspecified => Some(ATTEMPTS_TTL),
            DeadLetterState::Open => None,
            DeadLetterState::Redriven | DeadLetterState::Discarded => Some(RESOLVED_TTL),
        };
        if let Some(ttl) = ttl {
            headers.insert("Nats-TTL", format!("{}s", ttl.as_secs()));
        }
        let deadline = Instant::now() + PUBLISH_TIMEOUT;
        let mut failed = ("too_large", PutError::Permanent(String::new()));
        for cut in Cut::ALL {
            cut.apply(&mut letter);
            let max_payload = self.connection.client.max_payload();
            if letter.encoded_len() + HEADER_BYTES_MAX > max_payload && cut != Cut::MOST {
                continue;
            }
            let (subject, headers) = (subject.clone(), headers.clone());
            let payload = letter.encode_to_vec().into();
            let expectation = Some((id.filter(), expected));
            let published =
                publish(&self.connection, DEAD_LETTERS, subject, headers, payload, expectation, deadline);
            failed = match published.await {
                Outcome::Stored(head) => {
                    return Ok(StoredDeadLetter { id: id.clone(), letter, trace, head });
                }
                // The stream's limit may be lower than the broker's.
                Outcome::TooLarge(error) => ("too_large", PutError::Permanent(error)),
                Outcome::Conflict => ("conflict", PutError::Conflict),
                Outcome::Unavailable(error) => ("unavailable", PutError::Unavailable(error)),
                Outcome::Full(error) => ("full", PutError::Unavailable(format!("no storage space: {error}"))),
                Outcome::Permanent(error) => ("permanent", PutError::Permanent(error)),
                Outcome::Unknown(error) => ("unknown", PutError::Unknown(error)),
            };
            if failed.0 != "too_large" {
                break;
            }
        }
        let (kind, error) = failed;
        trace::fail(span, kind, &error);
        if matches!(error, PutError::Unavailable(_)) {
            self.restore().await;
        }
        Err(error)
    }

    /// The answer of a read. Without one the stream may be gone: a retry then finds it recreated.
    async fn or_restored<T>(&self, answer: Result<T, ReadError>) -> Result<T, ReadError> {
        if matches!(answer, Err(ReadError::NoAnswer(_))) {
            self.restore().await;
        }
        answer
    }

    /// Recreates the stream if it was deleted.
    pub async fn restore(&self) {
        if self.connection.is_up() {
            // Boxed because the future is large and rarely needed.
            Box::pin(restore_dead_letters(&self.connection)).await;
        }
    }

    /// Removes the message of the open state. If that fails, the dead letter stays listed until it is read again;
    /// nothing else depends on it.
    async fn delete(&self, id: &LetterId, open: Revision) {
        if let Err(error) = self.stream.delete_message(open.0).await {
            warn!(dead_letter_id = %id, %error, "open entry of a resolved dead letter not deleted");
        }
    }
}

/// A dead letter as stored.
fn decode_stored(id: &LetterId, head: Revision, headers: &HeaderMap, payload: Bytes) -> StoredDeadLetter {
    let letter = DeadLetter::decode(payload).unwrap_or_else(|error| {
        warn!(dead_letter_id = %id, %error, "foreign message on a dead letter's subject, skipped");
        DeadLetter::default()
    });
    StoredDeadLetter { id: id.clone(), letter, trace: trace_headers::read(headers), head }
}

/// The order of the dead letter; empty for a message that names no order.
fn order_of(letter: &DeadLetter) -> String {
    subjects::parse(&letter.subject).map(|subject| subject.id.to_string()).unwrap_or_default()
}

/// All dead letters in the same state.
fn subject_of(letter: &DeadLetter) -> String {
    id::all_in(letter.state())
}

/// The headers of a message as a dead letter has them, by name.
pub fn headers_of(headers: Option<&HeaderMap>) -> Vec<Header> {
    let header = |(name, values): (&HeaderName, &Vec<HeaderValue>)| {
        let name = name.to_string();
        values.iter().map(|value| Header { name: name.clone(), value: value.to_string() }).collect::<Vec<_>>()
    };
    let mut headers: Vec<_> = headers.into_iter().flat_map(HeaderMap::iter).flat_map(header).collect();
    // A map has no order, and the same message must always read the same.
    headers.sort_by(|a, b| a.name.cmp(&b.name));
    headers
}

/// The text of an error, cut to the size that a dead letter holds.
pub fn error_text(error: &impl ToString) -> String {
    error.to_string().chars().take(ERROR_CHARS_MAX).collect()
}
