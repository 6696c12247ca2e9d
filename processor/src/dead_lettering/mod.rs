//! Dead-lettering: counts failed attempts, and stores messages that a step gives up for an operator.
//!
//! First the dead letter is stored, then the order becomes FAILED, and only then is the message terminated. Each is
//! safe to retry: a message that is redelivered after a crash finds the completed part.

mod letter;
mod order_context;
mod park;

use std::sync::OnceLock;

use backbone::broker::direct_get::ReadError;
use backbone::dead_letters::{DeadLetters, LetterId, PutError, StoredDeadLetter};
use backbone::log::event::Undecodable;
use backbone::log::ids::Revision;
use backbone::log::{AppendError, OrderLog};
use proto::operations::v1::DeadLetter;
use thiserror::Error;
use tokio::sync::{Mutex, MutexGuard};
use tracing::{error, warn};

pub(crate) use self::order_context::OrderContext;

pub(crate) use self::letter::RETRIES_EXHAUSTED;
use self::letter::{is_letter, is_open};
use crate::attempt::AttemptError;
use crate::delivery::{Delivery, Disposition, RETRY};
use crate::metrics;

/// Deliveries of a message without a result before further attempts are announced: so a step that is killed once costs
/// its orders no write.
const SILENT_DELIVERIES_MAX: usize = 3;
/// Announced attempts in a row without a result. Then the order counts as one that kills the step.
const NO_RESULT_MAX: usize = 10;

/// The disposition of a redelivered message.
#[derive(Debug)]
pub(crate) enum BeforeAttempt<'a> {
    /// Start an attempt. The guard is held during an announced one.
    Attempt(Option<MutexGuard<'a, ()>>),
    /// Start no attempt.
    Settled(Disposition),
}

/// How the work on a message ended.
#[derive(Debug)]
pub(crate) enum Outcome<'a> {
    /// The order needs nothing more.
    Finished,
    /// The attempt was stopped, or a dependency was unavailable: the message is redelivered with backoff.
    Postponed,
    /// An attempt at the order, in the status that it has had since `seen`, has failed and counts.
    Failed { about: &'a OrderContext, seen: Revision, error: &'a AttemptError },
    /// The message cannot be decoded. Delivering it again would change nothing.
    Undecodable(&'a Undecodable),
}

/// The dead letter was not stored, or its outcome is unknown: the message has to be redelivered.
#[derive(Debug, Error)]
pub(crate) enum DeadLetteringError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Put(#[from] PutError),
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// Counts failed attempts, and parks the order after the last one.
#[derive(Debug)]
pub(crate) struct DeadLettering {
    letters: DeadLetters,
    log: OrderLog,
    step: &'static str,
    attempts_max: usize,
    /// Held during an announced attempt.
    announced: Mutex<()>,
    /// The first message that this process received as its first delivery. Later messages were not delivered before
    /// this process ran, so no earlier process can have died of them.
    first_new: OnceLock<Revision>,
}

impl DeadLettering {
    pub(crate) fn new(letters: DeadLetters, log: OrderLog, step: &'static str, attempts_max: usize) -> Self {
        Self { letters, log, step, attempts_max, announced: Mutex::default(), first_new: OnceLock::new() }
    }

    /// Records a first delivery of a message.
    pub(crate) fn record_first_delivery(&self, message: Revision) {
        self.first_new.get_or_init(|| message);
    }

    /// Before an attempt at a redelivered message: whether to start it. If the message has been delivered several times
    /// without a result, the attempt is announced: it leaves a record even if the process dies.
    pub(crate) async fn before_attempt(
        &self,
        delivery: &Delivery<'_>,
        about: &OrderContext,
    ) -> Result<BeforeAttempt<'_>, DeadLetteringError> {
        let record = self.record(delivery).await?;
        match &record {
            Some(record) if is_letter(record) => {
                return Ok(BeforeAttempt::Settled(self.fail(about, record.clone()).await?));
            }
            // A withdrawn letter: its writer may have died before it removed the entry of open letters.
            Some(record) if record.letter.attempts.is_empty() => self.letters.sweep(record).await?,
            Some(_) | None => {}
        }
        let earlier = self.earlier(about, record.as_ref()).await?;
        if let Some(earlier) = earlier.as_ref().filter(|earlier| is_letter(earlier)) {
            return Ok(BeforeAttempt::Settled(self.fail(about, earlier.clone()).await?));
        }
        let tried = record.as_ref().or(earlier.as_ref()).map_or(&[][..], |record| &record.letter.attempts);
        let failed_count = letter::failed_of(tried).len();
        let no_result_count = tried.len() - failed_count;
        let given_up = failed_count >= self.attempts_max || no_result_count >= NO_RESULT_MAX;
        // Postponed deliveries leave no record either. A message from `first_new` on cannot have killed an earlier process.
        let is_new = self.first_new.get().is_some_and(|first| delivery.id.sequence() >= *first);
        let silent_count = delivery.deliveries_before().saturating_sub(failed_count);
        let announced = silent_count >= SILENT_DELIVERIES_MAX && !is_new;
        if !given_up && !announced {
            return Ok(BeforeAttempt::Attempt(None));
        }

        let current = self.log.load_latest(&about.order_id).await?.map(|current| current.stands_since().0);
        // Recorded attempts count only while the order has the status that they were made at.
        let before = record.as_ref().filter(|record| {
            current.is_none_or(|order_revision| order_revision == record.letter.order_revision)
        });
        if let Some(before) = before.filter(|_| given_up) {
            return Ok(BeforeAttempt::Settled(self.park(delivery, about, before.clone()).await?));
        }
        let Some(order_revision) = current.filter(|_| announced) else {
            return Ok(BeforeAttempt::Attempt(None));
        };
        // One announced attempt at a time: when the process dies, the order at fault is known.
        let Ok(alone) = self.announced.try_lock() else {
            return Ok(BeforeAttempt::Settled(Disposition::Retry(delivery.pause())));
        };
        let mut attempts = before.map(|record| record.letter.attempts.clone()).unwrap_or_default();
        attempts.push(letter::announced());
        let letter = letter::record(delivery, order_revision, attempts);
        self.store(&delivery.id, record.as_ref(), letter).await?;
        Ok(BeforeAttempt::Attempt(Some(alone)))
    }

    /// Stores the outcome of a message where necessary, and returns the disposition.
    pub(crate) async fn settle(
        &self,
        delivery: &Delivery<'_>,
        end: Outcome<'_>,
    ) -> Result<Disposition, DeadLetteringError> {
        match end {
            Outcome::Finished => {
                self.clear_announcement(delivery).await;
                Ok(Disposition::Acknowledge)
            }
            Outcome::Postponed => {
                self.clear_announcement(delivery).await;
                Ok(Disposition::Retry(delivery.pause()))
            }
            Outcome::Failed { about, seen, error } => {
                Box::pin(self.count(delivery, about, seen, error)).await
            }
            Outcome::Undecodable(reason) => {
                let disposition = self.store_undecodable(delivery, reason).await?;
                let (sequence, subject) = (delivery.id.sequence().0, &delivery.message.subject);
                error!(step = self.step, sequence, %subject, %reason, "undecodable message, stored as dead letter");
                Ok(disposition)
            }
        }
    }

    /// Removes the announcement of an attempt that ended and does not count. One that cannot be removed counts as without
    /// a result, unless the next attempt ends.
    async fn clear_announcement(&self, delivery: &Delivery<'_>) {
        if delivery.deliveries_before() < SILENT_DELIVERIES_MAX {
            return;
        }
        let cleared = async {
            let Some(record) = self.record(delivery).await? else { return Ok(()) };
            if is_letter(&record) || !record.letter.attempts.iter().any(is_open) {
                return Ok(());
            }
            let attempts = letter::failed_of(&record.letter.attempts);
            if attempts.is_empty() {
                self.letters.forget(&record).await;
            } else {
                let letter = DeadLetter { attempts, ..record.letter.clone() };
                self.letters.replace(&record, letter).await?;
            }
            Ok::<_, DeadLetteringError>(())
        };
        if let Err(error) = cleared.await {
            warn!(step = self.step, dead_letter_id = %delivery.id, %error, "announced attempt not removed");
        }
    }

    /// Counts a failed attempt at the order, in the status that it has had since `seen`, and parks it after the last one.
    async fn count(
        &self,
        delivery: &Delivery<'_>,
        about: &OrderContext,
        seen: Revision,
        error: &AttemptError,
    ) -> Result<Disposition, DeadLetteringError> {
        let record = self.record(delivery).await?;
        let earlier = self.earlier(about, record.as_ref()).await?;
        let mut attempts = match record.as_ref().or(earlier.as_ref()) {
            Some(record) if is_letter(record) => return self.fail(about, record.clone()).await,
            Some(record) if record.letter.order_revision == seen.0 => {
                letter::failed_of(&record.letter.attempts)
            }
            Some(_) | None => Vec::new(),
        };
        attempts.push(letter::failed(error));
        let letter = letter::record(delivery, seen.0, attempts);
        let record = self.store(&delivery.id, record.as_ref(), letter).await?;
        let attempts = record.letter.attempts.len();
        if attempts < self.attempts_max {
            return Ok(Disposition::Retry(RETRY.after(attempts as u64)));
        }
        self.park(delivery, about, record).await
    }

    /// Gives up a message that cannot be decoded.
    async fn store_undecodable(
        &self,
        delivery: &Delivery<'_>,
        reason: &Undecodable,
    ) -> Result<Disposition, DeadLetteringError> {
        let record = self.record(delivery).await?;
        if record.as_ref().is_some_and(is_letter) {
            return Ok(Disposition::Terminate);
        }
        let letter = letter::undecodable(self.step, delivery, reason);
        let stored = self.store(&delivery.id, record.as_ref(), letter).await?;
        metrics::given_up(self.step, &stored.letter.fingerprint);
        Ok(Disposition::Terminate)
    }

    /// The stored record of the message.
    async fn record(&self, delivery: &Delivery<'_>) -> Result<Option<StoredDeadLetter>, ReadError> {
        let found = self.letters.find(&delivery.id).await?;
        Ok(found.map(|mut kept| {
            if !letter::is_about(&kept.letter, delivery) {
                kept.letter = DeadLetter::default();
            }
            kept
        }))
    }

    /// The attempts at an order before it was carried, unless the message has a record of its own by now. They belong
    /// to the previous event, which may be a `carried` too, or to the event that set the order's status. So no attempt
    /// is forgotten, and a dead letter parks its order even if its message has expired.
    async fn earlier(
        &self,
        about: &OrderContext,
        record: Option<&StoredDeadLetter>,
    ) -> Result<Option<StoredDeadLetter>, ReadError> {
        let Some((since, before)) = about.carried.filter(|_| record.is_none()) else { return Ok(None) };
        for revision in [before, since] {
            let Ok(id) = LetterId::new(self.step, revision) else { continue };
            let found = self.letters.find(&id).await?;
            if let Some(earlier) = found.filter(|earlier| letter::is_of_order(&earlier.letter, about, since))
            {
                return Ok(Some(earlier));
            }
        }
        Ok(None)
    }

    async fn store(
        &self,
        id: &LetterId,
        record: Option<&StoredDeadLetter>,
        letter: DeadLetter,
    ) -> Result<StoredDeadLetter, PutError> {
        match record {
            Some(record) => self.letters.replace(record, letter).await,
            None => self.letters.put(id, letter).await,
        }
    }
}
