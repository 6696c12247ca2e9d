//! Redriving parked orders.

use std::collections::VecDeque;
use std::time::Duration;

use backbone::dead_letters::{DeadLetters, LetterId, PutError, StoredDeadLetter};
use backbone::log::ids::OrderId;
use backbone::log::lifecycle::{is_called_off, is_finished};
use backbone::log::{AppendError, Appended, OrderLog, OrderState, WatchError};
use program::trace::{self, Context, FutureExt, KeyValue, OpenTelemetrySpanExt, attribute};
use proto::operations::v1::{DeadLetterReason, DeadLetterState, RedriveDeadLettersResponse, RedriveOutcome};
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{OrderRedriven, OrderStatus};
use tokio::time::{Instant, Interval, timeout};
use tonic::Status;
use tracing::{Span, info, info_span, warn};

use crate::{broker_errors, errors};

/// How long the canary's order may take to its end.
const CANARY_TIMEOUT: Duration = Duration::from_secs(600);

/// The redrive of one call, one dead letter at a time. May be dropped at any moment: a retry is safe.
pub(super) struct Redrive {
    pub(super) log: OrderLog,
    pub(super) letters: DeadLetters,
    pub(super) ids: VecDeque<LetterId>,
    pub(super) pace: Interval,
    pub(super) dry_run: bool,
    pub(super) operator: String,
    /// Deadline for one dead letter.
    pub(super) timeout: Duration,
    pub(super) canary: Canary,
}

/// The order that goes before the others.
pub(super) enum Canary {
    /// There is none, or it has passed.
    Done,
    /// The next that can be redriven.
    Next,
    /// It was redriven. `called_off`: its order was cancelled or rejected before, and finishes by compensation.
    Redriven { letter: LetterId, order: OrderId, called_off: bool },
}

type Answer = Result<RedriveDeadLettersResponse, Status>;

impl Redrive {
    /// Processes the next dead letter. An error is the last answer.
    pub(super) async fn next(&mut self) -> Option<Answer> {
        let answer = match &self.canary {
            Canary::Redriven { letter, order, called_off } => {
                let (letter, order, called_off) = (letter.clone(), *order, *called_off);
                self.canary = Canary::Done;
                self.follow(letter, order, called_off).await
            }
            Canary::Done | Canary::Next => {
                let id = self.ids.pop_front()?;
                if !self.dry_run {
                    self.pace.tick().await;
                }
                let deadline = Instant::now() + self.timeout;
                match timeout(self.timeout, self.redrive(&id, deadline)).await {
                    Ok(answer) => answer,
                    Err(_) => Err(errors::letter_unknown(&id)),
                }
            }
        };
        if answer.is_err() {
            self.ids.clear();
        }
        Some(answer)
    }

    async fn redrive(&mut self, id: &LetterId, deadline: Instant) -> Answer {
        use RedriveOutcome::{AlreadyResolved, NotRedrivable};
        let Some(kept) = self.letters.find_proven(id).await.map_err(|error| broker_errors::read(&error))?
        else {
            return Ok(answer(id, "", AlreadyResolved, "the dead letter no longer exists"));
        };
        let order_id = kept.letter.order_id.clone();
        let say = |outcome, message: &str| Ok(answer(id, &order_id, outcome, message));
        match kept.letter.state() {
            DeadLetterState::Open => {}
            state @ (DeadLetterState::Redriven
            | DeadLetterState::Discarded
            | DeadLetterState::Unspecified) => {
                if !self.dry_run {
                    self.letters.sweep(&kept).await.map_err(|error| broker_errors::read(&error))?;
                }
                if state == DeadLetterState::Unspecified {
                    return say(NotRedrivable, "the dead letter was withdrawn: the order has moved on");
                }
                return say(AlreadyResolved, "the dead letter is already resolved");
            }
        }
        if kept.letter.reason() == DeadLetterReason::Undecodable {
            return say(NotRedrivable, errors::UNDECODABLE);
        }
        let Ok(order) = order_id.parse::<OrderId>() else {
            return say(NotRedrivable, "the dead letter names no order; discard it");
        };

        if self.dry_run {
            return self.redrive_order(id, &kept, order, deadline).await;
        }
        let (_span, context) = self.redriving(&kept);
        let redriven = self.redrive_order(id, &kept, order, deadline);
        redriven.with_context(context).await
    }

    async fn redrive_order(
        &mut self,
        id: &LetterId,
        kept: &StoredDeadLetter,
        order: OrderId,
        deadline: Instant,
    ) -> Answer {
        use RedriveOutcome::{AlreadyResolved, NotRedrivable, OrderWentOn, Redriven, WouldRedrive};
        let order_id = kept.letter.order_id.clone();
        let say = |outcome, message: &str| Ok(answer(id, &order_id, outcome, message));
        let letter = id.to_string();
        let mut found = self.log.load_proven(&order).await.map_err(|error| broker_errors::read(&error))?;
        // Bounded: each lost race is an event of another writer, and a parked order can only be cancelled or redriven.
        while let Some(current) = found.take_if(|current| current.order.dead_letter_id == letter) {
            if self.dry_run {
                return say(WouldRedrive, "the order is parked and would be redriven");
            }
            match self.append(&current, &letter, deadline).await? {
                Appended::Stored(now) => {
                    self.resolve(kept, DeadLetterState::Redriven, "redriven").await;
                    let revision = now.order.revision;
                    info!(order_id = %order, revision, dead_letter_id = letter, operator = self.operator, "order redriven");
                    if matches!(self.canary, Canary::Next) {
                        let called_off = is_called_off(&now.order);
                        self.canary = Canary::Redriven { letter: id.clone(), order, called_off };
                    }
                    let status = status_name(now.order.status());
                    return say(Redriven, &format!("the order is {status} again"));
                }
                Appended::Overtaken(now) => found = Some(now),
            }
        }
        let Some(current) = found else {
            self.resolve(kept, DeadLetterState::Discarded, "the order is no longer in the log").await;
            return say(OrderWentOn, "the order is no longer in the log");
        };

        let history = self
            .log
            .history_reaching(&order, current.revision())
            .await
            .map_err(|error| broker_errors::read(&error))?;
        let status = status_name(current.order.status());
        if history.iter().any(|event| event.redriven_from() == Some(&letter)) {
            self.resolve(kept, DeadLetterState::Redriven, "redriven by an earlier request").await;
            return say(AlreadyResolved, "the order was redriven by an earlier request");
        }
        if history.last().is_some_and(|event| event.parked_by() == Some(&letter)) {
            return say(NotRedrivable, "the step has just parked the order; try again in a moment");
        }
        // Not parked, but finished by another worker with the same message: the step may never process the message again.
        let is_other = current.stands_since().0 != kept.letter.order_revision;
        // The events about the letter may have expired, and its message with them: no step processes it any more.
        let is_past = history.iter().all(|event| event.revision.0 > kept.letter.sequence);
        let went_on = is_other && (is_finished(&current.order) || is_past);
        if went_on || history.iter().any(|event| event.parked_by() == Some(&letter)) {
            let message = format!("the order has moved on: it is {status}");
            self.resolve(kept, DeadLetterState::Discarded, &message).await;
            return say(OrderWentOn, &message);
        }
        if is_finished(&current.order) {
            let message = format!(
                "the order is {status}, and the step could not compensate its effect; compensate it by hand, and \
                 discard the dead letter"
            );
            return say(NotRedrivable, &message);
        }
        say(NotRedrivable, "the step has not parked the order yet; try again in a moment")
    }

    /// The order continues in its own trace: that of its dead letter, not that of the operator's call, which may
    /// redrive many.
    fn redriving(&self, kept: &StoredDeadLetter) -> (Span, Context) {
        let span = info_span!(
            "redrive",
            otel.kind = "internal",
            waybill.dead_letter.id = %kept.id,
            waybill.order.id = kept.letter.order_id,
            waybill.keep = true,
        );
        let Some(letter) = kept.trace.clone() else { return (span, Context::current()) };
        let call = trace::current();
        let context = trace::continue_in(&span, Some(letter.clone()));
        if let Some((call, redrive)) = call.zip(trace::of(&context)).filter(|_| !span.is_disabled()) {
            let id = || KeyValue::new(attribute::DEAD_LETTER_ID, kept.id.to_string());
            span.add_link_with_attributes(letter, vec![id()]);
            span.add_link(call);
            let order_id = KeyValue::new(attribute::ORDER_ID, kept.letter.order_id.clone());
            trace::with_current(|call| call.add_link(redrive, vec![id(), order_id]));
        }
        (span, context)
    }

    async fn append(
        &self,
        current: &OrderState,
        letter: &str,
        deadline: Instant,
    ) -> Result<Appended, Status> {
        let redriven = OrderRedriven { operator: self.operator.clone(), dead_letter_id: letter.to_owned() };
        let appended = self.log.append(current, Detail::Redriven(redriven), deadline).await;
        appended.map_err(|error| match error {
            AppendError::Refused(_)
            | AppendError::Unavailable(_)
            | AppendError::Full(_)
            | AppendError::TooLarge(_)
            | AppendError::Permanent(_)
            | AppendError::Gone
            | AppendError::Unknown(_) => broker_errors::append(&current.id, &error),
        })
    }

    /// The order decides; a dead letter that could not be resolved is resolved at the next read.
    async fn resolve(&self, open: &StoredDeadLetter, state: DeadLetterState, reason: &str) {
        if self.dry_run {
            return;
        }
        match self.letters.resolve(open, state, &self.operator, reason).await {
            Ok(_) | Err(PutError::Conflict) => {}
            Err(error @ (PutError::Unavailable(_) | PutError::Permanent(_) | PutError::Unknown(_))) => {
                warn!(dead_letter_id = %open.id, %error, "dead letter not resolved yet");
            }
        }
    }

    /// Waits for the end of the canary's order. Unless the order finishes, nothing else is redriven.
    async fn follow(&mut self, letter: LetterId, order: OrderId, called_off: bool) -> Answer {
        let (passed, message) = match timeout(CANARY_TIMEOUT, self.end_of(&order)).await {
            Ok(Ok(OrderStatus::Failed)) => {
                (false, "the order has failed again; nothing else is redriven".to_owned())
            }
            Ok(Ok(OrderStatus::Cancelled)) if !called_off => {
                self.canary = Canary::Next;
                let message =
                    "the order was cancelled meanwhile, which proves nothing; the next one is the canary";
                return Ok(answer(&letter, &order.to_string(), RedriveOutcome::OrderWentOn, message));
            }
            Ok(Ok(status)) => (true, format!("the order is {} and finished", status_name(status))),
            Ok(Err(status)) => return Err(status),
            Err(_) => (
                false,
                format!("the order did not finish within {CANARY_TIMEOUT:?}; nothing else is redriven"),
            ),
        };
        if !passed {
            self.ids.clear();
        }
        let outcome = if passed { RedriveOutcome::CanaryPassed } else { RedriveOutcome::CanaryFailed };
        Ok(answer(&letter, &order.to_string(), outcome, &message))
    }

    /// The status with which the order is finished, or FAILED.
    async fn end_of(&self, order: &OrderId) -> Result<OrderStatus, Status> {
        let current = self.log.load_proven(order).await.map_err(|error| broker_errors::read(&error))?;
        let current = current.ok_or_else(|| errors::not_found(order))?;
        let (mut status, revision) = (current.order.status(), current.revision());
        if status == OrderStatus::Failed {
            return Ok(status);
        }
        let mut watch = self.log.watch(current, revision).await.map_err(|error| match error {
            WatchError::Beyond { last } => errors::beyond(last),
            WatchError::Read(error) => broker_errors::read(&error),
        })?;
        while let Some(event) = watch.next().await.map_err(|_| errors::events_lost())? {
            status = event.order.status();
            if status == OrderStatus::Failed {
                break;
            }
        }
        Ok(status)
    }
}

fn answer(
    id: &LetterId,
    order_id: &str,
    outcome: RedriveOutcome,
    message: &str,
) -> RedriveDeadLettersResponse {
    RedriveDeadLettersResponse {
        dead_letter_id: id.to_string(),
        order_id: order_id.to_owned(),
        outcome: outcome.into(),
        message: message.to_owned(),
    }
}

fn status_name(status: OrderStatus) -> &'static str {
    status.as_str_name().trim_start_matches("ORDER_STATUS_")
}
