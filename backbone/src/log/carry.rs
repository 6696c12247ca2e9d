//! Carrying unfinished orders: reads the log as far as it is due, and appends again the orders that have not ended.
//!
//! The log is read by sequence, so a message costs little, and only orders that do not end within the same piece are
//! examined one by one. Several programs may carry at once: the compare-and-set carries each order once.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use futures::{StreamExt, TryStreamExt, stream};
use program::telemetry::LogThrottle;
use program::trace::{self, FutureExt};
use proto::orders::v1::OrderCarried;
use proto::orders::v1::order_event::Detail;
use thiserror::Error;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error};

use super::read::decode_all;
use super::{AppendError, Appended, OrderLog, OrderState};
use crate::broker::direct_get::{self, ReadError, Stored, batch_from};
use crate::broker::streams::ORDERS;
use crate::log::carrying::{Candidate, Schedule, Window, groups, must_be_carried};
use crate::log::event::stored;
use crate::log::ids::{OrderId, Revision};
use crate::log::subjects::{self, EventSubject};

/// Messages read before their orders are examined.
const WINDOW_MESSAGES_MAX: usize = 2048;
const READ_MESSAGES_MAX: u32 = 256;
/// Orders that are carried side by side.
const CARRIES_AT_ONCE: usize = 64;
/// Orders that are read in one request. Few have more than 16 subjects, and the broker answers 1,024.
const READ_ORDERS_MAX: usize = 64;
/// Maximum bytes of their due events, so that large orders do not exceed what the broker buffers for a client (64 MiB).
const READ_BYTES_MAX: usize = 1024 * 1024;
/// Orders that are carried in a second, so that a million of them leave room for others.
const CARRIES_PER_SECOND_MAX: u32 = 1000;
// Throttled: one cause may affect many orders.
static NOT_CARRIED: LogThrottle = LogThrottle::every(Duration::from_secs(1));

const APPEND_TIMEOUT: Duration = Duration::from_secs(3);

/// The result for one piece of the log.
#[derive(Clone, Copy, Debug, Default)]
pub struct CarryProgress {
    /// Where the next piece begins.
    pub next: Revision,
    /// When the last message before it was stored, or the time up to which all is examined.
    pub until: Option<SystemTime>,
    /// Whether nothing more is due now.
    pub caught_up: bool,
    /// Orders examined one by one.
    pub looked_at: u64,
    /// Orders that were carried.
    pub carried: u64,
    /// Orders that the broker permanently rejects.
    pub refused: u64,
}

/// What the carrier has to know of the log.
#[derive(Clone, Copy, Debug)]
pub struct LogBounds {
    /// When the stream was made.
    pub created: SystemTime,
    /// Retention of its messages; zero is forever.
    pub retention: Duration,
    /// Its first sequence; earlier messages are gone.
    pub first: Revision,
    /// Its last sequence.
    pub last: Revision,
}

/// A piece of the log that was not walked to its end. It is walked again.
#[derive(Debug, Error)]
pub enum CarryError {
    /// The log could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// An order could not be written.
    #[error(transparent)]
    Append(#[from] AppendError),
}

enum Outcome {
    NotNeeded,
    Carried,
    Refused,
}

impl OrderLog {
    /// The retention, as the stream's leader reports it.
    pub async fn bounds(&self) -> Result<LogBounds, ReadError> {
        direct_get::reachable(&self.connection.client)?;
        let info = self.stream.get_info().await.map_err(|error| ReadError::NoAnswer(error.to_string()))?;
        let (first, last) = (Revision(info.state.first_sequence), Revision(info.state.last_sequence));
        Ok(LogBounds { created: info.created.into(), retention: info.config.max_age, first, last })
    }

    /// Reads the log from `from` on, as far as it is due and no farther than one piece, and carries the orders that have
    /// not ended.
    pub async fn carry_due(&self, from: Revision, schedule: &Schedule) -> Result<CarryProgress, CarryError> {
        let now = SystemTime::now();
        let mut walked = CarryProgress { next: from, ..CarryProgress::default() };
        let mut window = Window::default();
        let mut read = 0;
        'pieces: while read < WINDOW_MESSAGES_MAX {
            let client = &self.connection.client;
            let batch = batch_from(client, ORDERS, direct_get::ALL, walked.next, READ_MESSAGES_MAX).await?;
            let is_last = batch.remaining == 0;
            for message in batch.messages {
                // A message without a timestamp counts as old as the one before it.
                let time = stored(&message.headers).or(walked.until).unwrap_or(now);
                if !schedule.is_due(time, now) {
                    walked.caught_up = true;
                    break 'pieces;
                }
                window.observe(&message);
                walked.next = Revision(message.sequence.0 + 1);
                walked.until = Some(time);
                read += 1;
            }
            if is_last {
                walked.caught_up = true;
                break;
            }
        }
        self.carry_each(window.candidates(), &mut walked).await?;
        if walked.caught_up {
            walked.until = schedule.due_until(now);
        }
        Ok(walked)
    }

    async fn carry_each(
        &self,
        candidates: Vec<Candidate>,
        walked: &mut CarryProgress,
    ) -> Result<(), CarryError> {
        walked.looked_at = candidates.len() as u64;
        for some in groups(&candidates, READ_ORDERS_MAX, READ_BYTES_MAX) {
            let began = Instant::now();
            let mut events = self.last_events(some).await?;
            let carries: Vec<_> = some
                .iter()
                .map(|candidate| self.carry(*candidate, events.remove(&candidate.id).unwrap_or_default()))
                .collect();
            let carries = stream::iter(carries).buffer_unordered(CARRIES_AT_ONCE);
            let outcomes: Vec<_> = carries.try_collect().await?;
            let mut carried = 0;
            for outcome in outcomes {
                match outcome {
                    Outcome::NotNeeded => {}
                    Outcome::Carried => carried += 1,
                    Outcome::Refused => walked.refused += 1,
                }
            }
            walked.carried += u64::from(carried);
            sleep_until(began + Duration::from_secs(1) * carried / CARRIES_PER_SECOND_MAX).await;
        }
        Ok(())
    }

    /// The last event of each kind of these orders. Any replica may answer: the append detects a stale one, and an
    /// ended order stays ended.
    async fn last_events(
        &self,
        candidates: &[Candidate],
    ) -> Result<HashMap<OrderId, Vec<Stored>>, ReadError> {
        let filters: Vec<_> = candidates.iter().map(|candidate| subjects::order(&candidate.id)).collect();
        let client = &self.connection.client;
        let all = match direct_get::last_of_each(client, ORDERS, &filters).await {
            // The broker answers for at most 1,024 subjects, and foreign messages can use any number of them.
            Err(ReadError::Broker(error)) if candidates.len() > 1 => {
                debug!(error, "reading orders one by one");
                let mut all = Vec::new();
                for filter in filters {
                    all.extend(direct_get::last_of_each(client, ORDERS, &[filter]).await?);
                }
                all
            }
            all => all?,
        };
        let mut events = HashMap::<_, Vec<_>>::new();
        for stored in all {
            if let Some(EventSubject { id, .. }) = subjects::parse(&stored.subject) {
                events.entry(id).or_default().push(stored);
            }
        }
        Ok(events)
    }

    /// Carries an order whose last event of each kind was read as `stored`, if it has to be.
    async fn carry(
        &self,
        Candidate { id, created, due, .. }: Candidate,
        mut stored: Vec<Stored>,
    ) -> Result<Outcome, CarryError> {
        loop {
            let head = stored.last().map_or(Revision::NONE, |last| last.sequence);
            let events = decode_all(stored);
            let Some(last) = events.last() else { return Ok(Outcome::NotNeeded) };
            let current = OrderState { head, ..last.clone().into() };
            let latest = Some(current.revision()).filter(|_| current.is_carried());
            if !must_be_carried(&current.order, latest, due) {
                return Ok(Outcome::NotNeeded);
            }
            let detail = Detail::Carried(OrderCarried {
                created_revision: created.0,
                since_revision: current.stands_since().0,
            });
            // The order's trace goes on.
            let context = trace::remote(last.trace.clone().unwrap_or_else(trace::root));
            let appended = self.append(&current, detail, Instant::now() + APPEND_TIMEOUT);
            let appended = appended.with_context(context.clone()).await;
            {
                let _current = context.attach();
                match appended {
                    Ok(Appended::Stored(now)) => {
                        debug!(order_id = %id, revision = now.order.revision, "order carried");
                        return Ok(Outcome::Carried);
                    }
                    Ok(Appended::Overtaken(_)) => {}
                    // An error here would block all other orders.
                    Err(
                        error @ (AppendError::TooLarge(_)
                        | AppendError::Permanent(_)
                        | AppendError::Refused(_)),
                    ) => {
                        if let Some(left_out) = NOT_CARRIED.allow() {
                            let revision = current.order.revision;
                            error!(order_id = %id, revision, %error, left_out, "order not carried, it will expire");
                        }
                        return Ok(Outcome::Refused);
                    }
                    Err(AppendError::Gone) => {
                        if let Some(left_out) = NOT_CARRIED.allow() {
                            let revision = current.order.revision;
                            error!(order_id = %id, revision, left_out, "order expired before it was carried");
                        }
                        return Ok(Outcome::Refused);
                    }
                    Err(
                        error
                        @ (AppendError::Unavailable(_) | AppendError::Full(_) | AppendError::Unknown(_)),
                    ) => return Err(error.into()),
                }
            }
            stored =
                direct_get::last_of_each(&self.connection.client, ORDERS, &[subjects::order(&id)]).await?;
        }
    }
}
