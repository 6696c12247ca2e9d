//! One attempt at an order: effect, then append.
//!
//! A crash between any two of effect, append and acknowledgement leads to a redelivery, which finds the existing effect
//! and event.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backbone::broker::direct_get::ReadError;
use backbone::log::deferral::deferred_until;
use backbone::log::event::Recorded;
use backbone::log::ids::{OrderId, Revision};
use backbone::log::lifecycle;
use backbone::log::subjects::EventKind;
use backbone::log::{AppendError, Appended, OrderLog, OrderState};
use futures::FutureExt;
use proto::orders::v1::order_event::Detail;
use thiserror::Error;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, error};

use crate::delivery::Delivery;
use crate::metrics;
use crate::step::{Step, StepError, StepProfile, for_step};

/// Deadline of an append; the attempt is retried afterwards.
const APPEND_TIMEOUT: Duration = Duration::from_secs(10);
/// The parts of an attempt: reading the order, the step's work, which may take half of it, and the append. So an
/// unavailable dependency is detected before the attempt is cut off, which would count against the order.
const READ_PART: f64 = 0.2;
const APPEND_PART: f64 = 0.9;

/// The result of a successful attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AttemptOutcome {
    /// The order needed nothing from the step.
    NothingToDo,
    /// The step appended its event.
    Done,
    /// The step rejected the order.
    Rejected,
}

impl AttemptOutcome {
    /// The label of metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::NothingToDo => "nothing_to_do",
            Self::Done => "done",
            Self::Rejected => "rejected",
        }
    }
}

/// Why an attempt failed.
#[derive(Debug, Error)]
pub(crate) enum AttemptError {
    #[error(transparent)]
    Step(#[from] StepError),
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("order {0} is no longer in the log")]
    Gone(OrderId),
    #[error("too little time left {0:?} after the attempt began")]
    Late(Duration),
    #[error("the attempt took longer than {0:?}")]
    TimedOut(Duration),
    #[error("the attempt panicked")]
    Panicked,
}

impl AttemptError {
    /// The label of metrics.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Step(StepError::Rejected { .. }) => "rejected",
            Self::Step(StepError::Unavailable(_)) => "unavailable",
            Self::Step(StepError::Unexpected(_)) => "unexpected",
            Self::Append(_) => "append",
            Self::Read(_) => "read",
            Self::Gone(_) => "gone",
            Self::Late(_) => "late",
            Self::TimedOut(_) => "timeout",
            Self::Panicked => "panic",
        }
    }

    /// Whether a dependency is unavailable, so that the attempt would have failed for any other order too.
    pub(crate) fn is_away(&self) -> bool {
        match self {
            Self::Step(StepError::Unavailable(_)) | Self::Read(ReadError::NoAnswer(_)) | Self::Late(_) => {
                true
            }
            Self::Append(error) => error.is_away(),
            Self::Step(StepError::Rejected { .. } | StepError::Unexpected(_))
            | Self::Read(ReadError::Broker(_))
            | Self::Gone(_)
            | Self::TimedOut(_)
            | Self::Panicked => false,
        }
    }
}

/// Makes attempts for a step.
#[derive(Debug)]
pub(crate) struct Attempts<S> {
    pub(crate) profile: StepProfile,
    pub(crate) step: Arc<S>,
    pub(crate) log: OrderLog,
    /// Deadline of one attempt.
    pub(crate) timeout: Duration,
}

impl<S: Step> Attempts<S> {
    /// Makes one attempt at the order of `event`. Also returns the revision at which the order got the status that the
    /// attempt saw last.
    pub(crate) async fn run(
        &self,
        event: Recorded,
        delivery: &Delivery<'_>,
    ) -> (Result<AttemptOutcome, AttemptError>, Revision) {
        let seen = AtomicU64::new(event.stands_since().0);
        // A panic fails this attempt only; the process continues with other orders.
        let attempt = AssertUnwindSafe(self.attempt(event, delivery, &seen)).catch_unwind();
        let outcome = match timeout(self.timeout, attempt).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(AttemptError::Panicked),
            Err(_) => Err(AttemptError::TimedOut(self.timeout)),
        };
        (outcome, Revision(seen.into_inner()))
    }

    /// One attempt at the order of `event`: effect, then append. A race loses no effect: when the order has changed in
    /// between, it is read again, and an effect that is no longer wanted is compensated. Returns whether the step had
    /// anything to do. `seen` is set to the revision at
    /// which the order got its current status.
    async fn attempt(
        &self,
        event: Recorded,
        delivery: &Delivery<'_>,
        seen: &AtomicU64,
    ) -> Result<AttemptOutcome, AttemptError> {
        let began = Instant::now();
        let read_by = began + self.timeout.mul_f64(READ_PART);
        let append_by = began + self.timeout.mul_f64(APPEND_PART);
        // Another worker may have processed the message before: the event may be older than the log.
        let redelivered = delivery.is_redelivery();
        // A worker that died may have performed the effect without appending. After an event that rejected or cancelled
        // the order, it can only have compensated.
        // An earlier message of a carried order may be in progress at another worker.
        let is_carried = event.kind() == EventKind::Carried;
        let mut acted = (redelivered || is_carried) && !lifecycle::is_called_off(&event.order);
        let (id, revision) = (event.id, event.revision);
        let read = if redelivered {
            Some(in_time(read_by, self.log.load_latest(&id)).await?.ok_or(AttemptError::Gone(id))?)
        } else if !delivery.is_fresh {
            Some(in_time(read_by, self.log.load(&id)).await?.ok_or(AttemptError::Gone(id))?)
        } else {
            None
        };
        // The server that answered may lag behind the event; its state must not hide the work to do.
        let read = read.filter(|read| read.revision() >= event.revision);
        let mut current = read.unwrap_or_else(|| OrderState::from(event));
        // The message of the later `carried` does the remaining work, so that an order has no two messages in redelivery.
        // A first delivery is attempted nevertheless: after an outage the first messages are all of this kind, and without
        // a success of theirs the breaker would stay open.
        if redelivered && current.is_carried() && current.revision() > revision {
            return Ok(AttemptOutcome::NothingToDo);
        }
        let mut done = AttemptOutcome::NothingToDo;
        loop {
            seen.store(current.stands_since().0, Ordering::Relaxed);
            if Instant::now() > read_by {
                return Err(AttemptError::Late(began.elapsed()));
            }
            let Some(fact) = self.next_fact(&current, acted, delivery.attempt()).await? else {
                return Ok(done);
            };
            acted = true;
            let said = if let Detail::Completed(completed) = &fact { Some(completed.clone()) } else { None };
            done = if matches!(fact, Detail::Rejected(_)) {
                AttemptOutcome::Rejected
            } else {
                AttemptOutcome::Done
            };
            let deadline = append_by.min(Instant::now() + APPEND_TIMEOUT);
            let appended = timeout_at(append_by, self.log.append(&current, fact, deadline)).await;
            let no_answer = || AppendError::Unknown("no answer in time".to_owned());
            match appended.unwrap_or_else(|_| Err(no_answer()))? {
                Appended::Stored(order) => {
                    let (order_id, revision) = (order.id, order.order.revision);
                    let status = order.order.status().as_str_name();
                    debug!(step = self.profile.name, %order_id, revision, status, "event appended");
                    return Ok(done);
                }
                Appended::Overtaken(now) => {
                    if said.is_some_and(|said| lifecycle::contradicts(&now.order, self.profile.name, &said)) {
                        metrics::contradicted(self.profile.name);
                        error!(step = self.profile.name, order_id = %id, "step completed twice with different attributes, the first ones are kept");
                    }
                    current = now;
                }
            }
        }
    }

    /// Performs the work that the order needs from the step, and returns the event to append. `None` if there is none: the
    /// order needs nothing, or not yet, or an effect was compensated before the step's turn.
    async fn next_fact(
        &self,
        current: &OrderState,
        acted: bool,
        attempt: u64,
    ) -> Result<Option<Detail>, AttemptError> {
        let order = &*for_step(self.profile, &current.order);
        if lifecycle::waits_for(order, self.profile.name) {
            // Only `resumed` ends a deferral, by the broker's clock.
            if let Some(until) = deferred_until(order) {
                self.log.set_timer(self.profile.name, &current.id, until).await?;
                return Ok(None);
            }
            let done = self.step.act(order, attempt).await;
            return Ok(Some(done.or_else(StepError::into_rejection)?));
        }
        let owes = lifecycle::owes(order, self.profile.name);
        let may_owe =
            acted && lifecycle::is_called_off(order) && lifecycle::compensates(order, self.profile.name);
        if owes || may_owe {
            let undone = self
                .step
                .compensate(order, lifecycle::has_completed(order, self.profile.name), attempt)
                .await?;
            return Ok(owes.then_some(undone));
        }
        Ok(None)
    }
}

/// Limits a read to a deadline.
async fn in_time<T>(by: Instant, read: impl Future<Output = Result<T, ReadError>>) -> Result<T, ReadError> {
    let no_answer = |_| Err(ReadError::NoAnswer("no answer in time".to_owned()));
    timeout_at(by, read).await.unwrap_or_else(no_answer)
}
