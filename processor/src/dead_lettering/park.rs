//! Parking an order: its dead letter is stored first, and then the order becomes FAILED.

use std::time::Duration;

use backbone::dead_letters::StoredDeadLetter;
use backbone::log::ids::Revision;
use backbone::log::{AppendError, Appended};
use proto::operations::v1::DeadLetterState;
use proto::orders::v1::order_event::Detail;
use tokio::time::Instant;
use tracing::{error, warn};

use super::{DeadLettering, DeadLetteringError, OrderContext, letter};
use crate::delivery::{Delivery, Disposition, RETRY};
use crate::metrics;

/// Deadline of the append of `failed`; it is retried when the message is redelivered.
const APPEND_TIMEOUT: Duration = Duration::from_secs(10);

impl DeadLettering {
    /// Makes the record of all attempts a dead letter, and then the order FAILED.
    pub(super) async fn park(
        &self,
        delivery: &Delivery<'_>,
        about: &OrderContext,
        record: StoredDeadLetter,
    ) -> Result<Disposition, DeadLetteringError> {
        let letter = letter::exhausted(self.step, delivery, about, &record.letter);
        let open = self.letters.replace(&record, letter).await?;
        metrics::given_up(self.step, &open.letter.fingerprint);
        self.fail(about, open).await
    }

    /// Makes the order of the dead letter FAILED, unless it already is or has moved on.
    pub(super) async fn fail(
        &self,
        about: &OrderContext,
        kept: StoredDeadLetter,
    ) -> Result<Disposition, DeadLetteringError> {
        let (id, parking, dead_letter_id) = (about.order_id, &kept.letter, kept.id.to_string());
        let Some(mut current) = self.log.load_latest(&id).await? else {
            if parking.state() == DeadLetterState::Open {
                let reason = "the order is no longer in the log";
                self.letters.resolve(&kept, DeadLetterState::Discarded, self.step, reason).await?;
            }
            return Ok(Disposition::Terminate);
        };
        let attempts = parking.attempts.len();
        let deadline = Instant::now() + APPEND_TIMEOUT;
        let detail = Detail::Failed(letter::order_failed(&kept));
        // Bounded: each lost race is an event of another writer, and the append has a deadline.
        loop {
            // Another replica may have parked it by the same letter.
            if current.order.dead_letter_id == dead_letter_id {
                return Ok(Disposition::Terminate);
            }
            if current.stands_since().0 != parking.order_revision {
                // The order may have been parked by this letter, and redriven or cancelled since. The server that answered may
                // lag behind the letter.
                let least = current.revision().max(Revision(parking.order_revision));
                let history = self.log.history_reaching(&id, least).await?;
                let parked = history.iter().any(|event| event.parked_by() == Some(&dead_letter_id));
                return if parked { Ok(Disposition::Terminate) } else { self.withdraw(&kept).await };
            }
            match self.log.append(&current, detail.clone(), deadline).await {
                Ok(Appended::Stored(parked)) => {
                    let (step, revision) = (self.step, parked.order.revision);
                    error!(step, order_id = %id, revision, dead_letter_id, attempts, "order parked");
                    return Ok(Disposition::Terminate);
                }
                Ok(Appended::Overtaken(now)) => current = now,
                // The order has ended. The effect that the step could not compensate is left to an operator.
                Err(AppendError::Refused(refused)) => {
                    error!(step = self.step, order_id = %id, dead_letter_id, %refused, "dead letter stored, order not parked");
                    return Ok(Disposition::Terminate);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Withdraws the dead letter: the order has moved on since its attempts failed, and gets new ones.
    async fn withdraw(&self, kept: &StoredDeadLetter) -> Result<Disposition, DeadLetteringError> {
        self.letters.replace(kept, letter::withdrawn(&kept.letter)).await?;
        warn!(step = self.step, dead_letter_id = %kept.id, "dead letter withdrawn, order has moved on");
        Ok(Disposition::Retry(RETRY.initial))
    }
}
