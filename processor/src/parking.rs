//! Giving up: what has been tried is counted, and what cannot be done is put where an operator finds it.
//!
//! First the dead letter is stored, then the order becomes FAILED, and only then is the message terminated. Each of
//! these can be repeated: a message that is delivered again after a crash finds how far it had come.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use async_nats::jetstream::Message;
use backbone::dead_letters::{DeadLetters, Kept, LetterId, PutError, error_text, fingerprint, headers_of};
use backbone::direct_get::ReadError;
use backbone::event::Undecodable;
use backbone::ids::{OrderId, Revision};
use backbone::log::{AppendError, Appended, OrderLog};
use backbone::subjects;
use backbone::trace_headers;
use program::backoff::Backoff;
use program::trace;
use prost_types::Timestamp;
use proto::operations::v1::{Attempt, DeadLetter, DeadLetterReason, DeadLetterState};
use proto::orders::v1::OrderFailed;
use proto::orders::v1::order_event::Detail;
use thiserror::Error;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;
use tracing::{error, warn};

use crate::metrics;

/// Reason of an order that a step has given up.
pub(crate) const RETRIES_EXHAUSTED: &str = "RETRIES_EXHAUSTED";
/// Growing pauses before a message is tried again.
pub(crate) const RETRY: Backoff =
    Backoff { initial: Duration::from_millis(200), max: Duration::from_secs(30) };
/// Deliveries of a message of which nothing was heard before further attempts are announced: that a step is killed
/// once costs its orders no write.
const SILENT_DELIVERIES_MAX: usize = 3;
/// Announced attempts in a row that nothing was heard of again. Then the order is taken for what kills the step.
const VANISHED_MAX: usize = 10;
/// What is said of such an attempt.
const VANISHED: &str = "the attempt ended without a word: its process died, or could not reach the broker";
/// How long the append of `failed` may take; it is repeated when the message comes again.
const APPEND_TIMEOUT: Duration = Duration::from_secs(10);

/// What is to become of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is given up, and all about that is stored.
    Terminate,
    /// It comes again after so long.
    Again(Duration),
}

impl Fate {
    /// The same in one word.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Terminate => "parked",
            Self::Again(_) => "postponed",
        }
    }
}

/// What is to happen to a message that has come before.
#[derive(Debug)]
pub(crate) enum Before<'a> {
    /// An attempt. One that is announced goes on as long as it holds this.
    Attempt(Option<MutexGuard<'a, ()>>),
    /// No attempt.
    Settled(Fate),
}

/// Not given up, or not known to be: the message has to come again.
#[derive(Debug, Error)]
pub(crate) enum ParkingError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Put(#[from] PutError),
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// A message that is worked on.
#[derive(Debug)]
pub(crate) struct Delivery<'a> {
    pub(crate) message: &'a Message,
    /// The name of its letter, should there be one.
    pub(crate) id: LetterId,
    pub(crate) deliveries: i64,
    /// When it was stored. With the subject it tells messages apart that had the same sequence, one after the other,
    /// in a stream that was made anew.
    pub(crate) published: Timestamp,
    /// Whether the order stands as the message says, for all that is known.
    pub(crate) is_news: bool,
    /// Whether orders that are carried come by a message of their own.
    pub(crate) brings_carried: bool,
}

/// What is known of a message that could be decoded.
#[derive(Debug)]
pub(crate) struct About {
    pub(crate) order_id: OrderId,
    /// The letter that the order was redriven from, if that is what the message says.
    pub(crate) redriven_from: String,
    /// If the message says that the order is carried: since when it stands as it does, and its event before.
    pub(crate) carried: Option<(Revision, Revision)>,
}

/// Keeps count of attempts, and gives up.
#[derive(Debug)]
pub(crate) struct Parking {
    pub(crate) letters: DeadLetters,
    pub(crate) log: OrderLog,
    pub(crate) step: &'static str,
    pub(crate) attempts_max: usize,
    /// Held during an announced attempt.
    pub(crate) announced: Mutex<()>,
    /// The first message that this process was the first to be brought. What comes behind it was brought to nobody before
    /// this process ran, so nothing that ended before can have died of it.
    pub(crate) first_new: OnceLock<Revision>,
}

impl Parking {
    /// Before an attempt at a message that has come before: whether there is to be one. If the message comes again and
    /// again, and nothing was heard of it, the attempt is announced: it leaves a trace even if the process does not live
    /// to say how it ended.
    pub(crate) async fn before_attempt(
        &self,
        delivery: &Delivery<'_>,
        about: &About,
    ) -> Result<Before<'_>, ParkingError> {
        let record = self.record(delivery).await?;
        match &record {
            Some(record) if is_letter(record) => {
                return Ok(Before::Settled(self.fail(about, record.clone()).await?));
            }
            // A letter that was withdrawn, perhaps by somebody who died before it was off the list.
            Some(record) if record.letter.attempts.is_empty() => self.letters.sweep(record).await?,
            Some(_) | None => {}
        }
        let earlier = self.earlier(about, record.as_ref()).await?;
        if let Some(earlier) = earlier.as_ref().filter(|earlier| is_letter(earlier)) {
            return Ok(Before::Settled(self.fail(about, earlier.clone()).await?));
        }
        let tried = record.as_ref().or(earlier.as_ref()).map_or(&[][..], |record| &record.letter.attempts);
        let failed_count = failed(tried).len();
        let vanished_count = tried.len() - failed_count;
        let given_up = failed_count >= self.attempts_max || vanished_count >= VANISHED_MAX;
        // Deliveries that were postponed leave no trace either. But whoever died of this order has been started since.
        let is_new = self.first_new.get().is_some_and(|first| delivery.id.sequence() >= *first);
        let silent_count = deliveries_before(delivery).saturating_sub(failed_count);
        let announced = silent_count >= SILENT_DELIVERIES_MAX && !is_new;
        if !given_up && !announced {
            return Ok(Before::Attempt(None));
        }

        let current = self.log.load_latest(&about.order_id).await?.map(|current| current.stands_since().0);
        // What was tried was tried at the order as it stood then.
        let before = record.as_ref().filter(|record| {
            current.is_none_or(|order_revision| order_revision == record.letter.order_revision)
        });
        if let Some(before) = before.filter(|_| given_up) {
            return Ok(Before::Settled(self.park(delivery, about, before.clone()).await?));
        }
        let Some(order_revision) = current.filter(|_| announced) else { return Ok(Before::Attempt(None)) };
        // One at a time, so that none is blamed for what another has done.
        let Ok(alone) = self.announced.try_lock() else {
            return Ok(Before::Settled(Fate::Again(pause(delivery))));
        };
        let mut attempts = before.map(|record| record.letter.attempts.clone()).unwrap_or_default();
        attempts.push(Attempt { time: Some(now()), error: String::new() });
        let letter = DeadLetter { order_revision, attempts, ..self.of_message(delivery) };
        self.store(&delivery.id, record.as_ref(), letter).await?;
        Ok(Before::Attempt(Some(alone)))
    }

    /// Takes note of a message that was never brought to anybody before.
    pub(crate) fn is_first(&self, message: Revision) {
        self.first_new.get_or_init(|| message);
    }

    /// After an attempt that came to an end and does not count: whatever was announced is taken back. What cannot be
    /// taken back counts as vanished, unless the next attempt has an end.
    pub(crate) async fn heard_of(&self, delivery: &Delivery<'_>) {
        if deliveries_before(delivery) < SILENT_DELIVERIES_MAX {
            return;
        }
        let taken_back = async {
            let Some(record) = self.record(delivery).await? else { return Ok(()) };
            let letter = &record.letter;
            if letter.state() != DeadLetterState::Unspecified || !letter.attempts.iter().any(is_open) {
                return Ok(());
            }
            let attempts = failed(&letter.attempts);
            if attempts.is_empty() {
                self.letters.forget(&record).await;
            } else {
                let letter = DeadLetter { attempts, ..letter.clone() };
                self.letters.replace(&record, letter).await?;
            }
            Ok::<_, ParkingError>(())
        };
        if let Err(error) = taken_back.await {
            warn!(step = self.step, dead_letter_id = %delivery.id, %error, "announced attempt not taken back");
        }
    }

    /// Counts an attempt that has failed on the order as it stood at `seen`, and gives up after the last one.
    pub(crate) async fn after_attempt(
        &self,
        delivery: &Delivery<'_>,
        about: &About,
        seen: Revision,
        error: &impl ToString,
    ) -> Result<Fate, ParkingError> {
        let record = self.record(delivery).await?;
        let earlier = self.earlier(about, record.as_ref()).await?;
        let mut attempts = match record.as_ref().or(earlier.as_ref()) {
            Some(record) if is_letter(record) => return self.fail(about, record.clone()).await,
            Some(record) if record.letter.order_revision == seen.0 => failed(&record.letter.attempts),
            Some(_) | None => Vec::new(),
        };
        attempts.push(Attempt { time: Some(now()), error: error_text(error) });
        let letter = DeadLetter { order_revision: seen.0, attempts, ..self.of_message(delivery) };
        let record = self.store(&delivery.id, record.as_ref(), letter).await?;
        let attempts = record.letter.attempts.len();
        if attempts < self.attempts_max {
            return Ok(Fate::Again(RETRY.after(attempts as u64)));
        }
        self.park(delivery, about, record).await
    }

    /// Gives up a message that cannot be decoded.
    pub(crate) async fn set_aside(
        &self,
        delivery: &Delivery<'_>,
        reason: &Undecodable,
    ) -> Result<Fate, ParkingError> {
        let record = self.record(delivery).await?;
        let state = record.as_ref().map_or(DeadLetterState::Unspecified, |record| record.letter.state());
        if state != DeadLetterState::Unspecified {
            return Ok(Fate::Terminate);
        }
        let error = error_text(reason);
        let letter = DeadLetter {
            order_id: subjects::parse(&delivery.message.subject)
                .map(|(_, id)| id.to_string())
                .unwrap_or_default(),
            fingerprint: fingerprint(self.step, DeadLetterReason::Undecodable, &error),
            trace_id: trace_of(delivery.message).unwrap_or_default(),
            attempts: vec![Attempt { time: Some(now()), error }],
            ..self.open(delivery, DeadLetterReason::Undecodable)
        };
        let stored = self.store(&delivery.id, record.as_ref(), letter).await?;
        metrics::given_up(self.step, &stored.letter.fingerprint);
        Ok(Fate::Terminate)
    }

    /// What is stored about the message so far.
    async fn record(&self, delivery: &Delivery<'_>) -> Result<Option<Kept>, ReadError> {
        let found = self.letters.find(&delivery.id).await?;
        Ok(found.map(|mut kept| {
            let letter = &kept.letter;
            let same = *letter.subject == *delivery.message.subject
                && letter.publish_time == Some(delivery.published);
            if !same {
                kept.letter = DeadLetter::default();
            }
            kept
        }))
    }

    /// What was tried at an order before it was carried, unless the message has a record of its own by now. It is kept by
    /// the event before, which may have been carried too, or by that which the order stands by. So no attempt is forgotten,
    /// and a letter parks its order, though its message may have expired.
    async fn earlier(&self, about: &About, record: Option<&Kept>) -> Result<Option<Kept>, ReadError> {
        let Some((since, before)) = about.carried.filter(|_| record.is_none()) else { return Ok(None) };
        for revision in [before, since] {
            let Ok(id) = LetterId::new(self.step, revision) else { continue };
            let found = self.letters.find(&id).await?.filter(|earlier| {
                let order = subjects::parse(&earlier.letter.subject).map(|(_, order)| order);
                order == Some(about.order_id) && earlier.letter.order_revision == since.0
            });
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    async fn store(
        &self,
        id: &LetterId,
        record: Option<&Kept>,
        letter: DeadLetter,
    ) -> Result<Kept, PutError> {
        match record {
            Some(record) => self.letters.replace(record, letter).await,
            None => self.letters.put(id, letter).await,
        }
    }

    /// Makes the record of all attempts a letter, and then the order FAILED.
    async fn park(&self, delivery: &Delivery<'_>, about: &About, record: Kept) -> Result<Fate, ParkingError> {
        let reason = DeadLetterReason::RetriesExhausted;
        let mut attempts = record.letter.attempts.clone();
        for attempt in attempts.iter_mut().filter(|attempt| is_open(attempt)) {
            attempt.error = VANISHED.to_owned();
        }
        let error = attempts.last().map_or("", |attempt| &attempt.error);
        let letter = DeadLetter {
            fingerprint: fingerprint(self.step, reason, error),
            order_id: about.order_id.to_string(),
            order_revision: record.letter.order_revision,
            attempts,
            trace_id: trace::current_trace_id(),
            previous_dead_letter_id: about.redriven_from.clone(),
            ..self.open(delivery, reason)
        };
        let open = self.letters.replace(&record, letter).await?;
        metrics::given_up(self.step, &open.letter.fingerprint);
        self.fail(about, open).await
    }

    /// Makes the order FAILED that the letter is about, unless it is so already or has gone on.
    async fn fail(&self, about: &About, kept: Kept) -> Result<Fate, ParkingError> {
        let (id, letter, dead_letter_id) = (about.order_id, &kept.letter, kept.id.to_string());
        let Some(mut current) = self.log.load_latest(&id).await? else {
            if letter.state() == DeadLetterState::Open {
                let reason = "the order is no longer kept";
                self.letters.resolve(&kept, DeadLetterState::Discarded, self.step, reason).await?;
            }
            return Ok(Fate::Terminate);
        };
        if current.order.dead_letter_id == dead_letter_id {
            return Ok(Fate::Terminate);
        }
        if current.stands_since().0 != letter.order_revision {
            // Parked once, and redriven or cancelled since?
            // Who answered may have been behind the letter.
            let least = current.revision().max(Revision(letter.order_revision));
            let history = self.log.history_reaching(&id, least).await?;
            let parked = history.iter().any(|event| event.parked_by() == Some(&dead_letter_id));
            return if parked { Ok(Fate::Terminate) } else { self.withdraw(&kept).await };
        }
        let failed = OrderFailed {
            reason: RETRIES_EXHAUSTED.to_owned(),
            message: last_error(letter).to_owned(),
            step: self.step.to_owned(),
            attempts: letter.attempt_count,
            dead_letter_id: dead_letter_id.clone(),
        };
        let attempts = letter.attempts.len();
        let deadline = Instant::now() + APPEND_TIMEOUT;
        let detail = Detail::Failed(failed);
        let appended = loop {
            match self.log.append(&current, detail.clone(), deadline).await {
                // It is only carried, and stands as it did.
                Ok(Appended::Overtaken(now)) if now.stands_since().0 == letter.order_revision => {
                    current = now
                }
                appended => break appended,
            }
        };
        match appended {
            Ok(Appended::Stored(parked)) => {
                let (step, revision) = (self.step, parked.order.revision);
                error!(step, order_id = %id, revision, dead_letter_id, attempts, "order parked");
                Ok(Fate::Terminate)
            }
            Ok(Appended::Overtaken(_)) => self.withdraw(&kept).await,
            // It has ended, and what the step could not take back is for an operator.
            Err(AppendError::Refused(refused)) => {
                error!(step = self.step, order_id = %id, dead_letter_id, %refused, "dead letter of an order that is not parked");
                Ok(Fate::Terminate)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the letter back: the order is no longer as it was when the attempts at it failed, and gets new ones.
    async fn withdraw(&self, kept: &Kept) -> Result<Fate, ParkingError> {
        let DeadLetter { subject, publish_time, .. } = kept.letter.clone();
        let record = DeadLetter { subject, publish_time, ..DeadLetter::default() };
        self.letters.replace(kept, record).await?;
        warn!(step = self.step, dead_letter_id = %kept.id, "dead letter withdrawn, the order has gone on");
        Ok(Fate::Again(RETRY.initial))
    }

    /// What every record about the message says.
    fn of_message(&self, delivery: &Delivery<'_>) -> DeadLetter {
        DeadLetter {
            subject: delivery.message.subject.to_string(),
            publish_time: Some(delivery.published),
            ..DeadLetter::default()
        }
    }

    /// What every open letter says.
    fn open(&self, delivery: &Delivery<'_>, reason: DeadLetterReason) -> DeadLetter {
        DeadLetter {
            state: DeadLetterState::Open.into(),
            reason: reason.into(),
            headers: headers_of(delivery.message.headers.as_ref()),
            payload: delivery.message.payload.to_vec(),
            create_time: Some(now()),
            ..self.of_message(delivery)
        }
    }
}

/// How long a message waits that failed through no fault of its order.
pub(crate) fn pause(delivery: &Delivery<'_>) -> Duration {
    RETRY.after(u64::try_from(delivery.deliveries).unwrap_or(1))
}

fn deliveries_before(delivery: &Delivery<'_>) -> usize {
    usize::try_from(delivery.deliveries - 1).unwrap_or_default()
}

/// Whether more was stored than a record of attempts.
fn is_letter(record: &Kept) -> bool {
    record.letter.state() != DeadLetterState::Unspecified
}

/// Whether the attempt was announced, and no more is known of it.
fn is_open(attempt: &Attempt) -> bool {
    attempt.error.is_empty()
}

/// The attempts whose error is known.
fn failed(attempts: &[Attempt]) -> Vec<Attempt> {
    attempts.iter().filter(|attempt| !is_open(attempt)).cloned().collect()
}

fn trace_of(message: &Message) -> Option<String> {
    Some(trace_headers::read(message.headers.as_ref()?)?.trace_id().to_string())
}

fn last_error(letter: &DeadLetter) -> &str {
    letter.attempts.last().map_or("", |attempt| &attempt.error)
}

fn now() -> Timestamp {
    SystemTime::now().into()
}
