//! Appending events: publish with an expectation, and never treat a missing acknowledgement as a failure.
//!
//! A publish without an acknowledgement may have been stored, or may still be stored. So it is retried with the same
//! event id until the broker answers. If the event was already stored, the retry finds it.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use program::backoff::Backoff;
use program::metrics::{self, Histogram, seconds};
use program::trace::{self, FutureExt, KeyValue, OpenTelemetrySpanExt, attribute};
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Order, OrderCreated, OrderStatus, Route};
use thiserror::Error;
use tokio::time::{Instant, sleep};
use tracing::field::Empty;
use tracing::{Span, debug, info_span};

use super::read::Latest;
use super::{OrderLog, OrderState, carried_since, known_losses};
use crate::broker::direct_get::ReadError;
use crate::broker::publish::{Outcome, publish};
use crate::broker::streams;
use crate::log::event::{Draft, now};
use crate::log::ids::{OrderId, Revision};
use crate::log::lifecycle::{self, Refused};
use crate::log::subjects::{self, EventKind};

const RETRY: Backoff = Backoff { initial: Duration::from_millis(20), max: Duration::from_millis(500) };

static APPENDS: LazyLock<Histogram<f64>> = LazyLock::new(|| {
    metrics::call_duration(
        "waybill.append.duration",
        "One append to the order log, from its first publish to the broker's decision, repeats included.",
    )
});
static ORDERS: LazyLock<Histogram<f64>> = LazyLock::new(|| {
    metrics::order_duration("waybill.order.duration", "From an order's creation to its terminal event.")
});

/// The outcome of an append that the broker decided.
#[derive(Debug)]
pub enum Appended {
    /// The event is in the log; this is the order after it.
    Stored(OrderState),
    /// Another writer was first, and the event is not in the log; this is the order now.
    Overtaken(OrderState),
}

/// An append that did not succeed.
#[derive(Debug, Error)]
pub enum AppendError {
    /// The lifecycle does not allow the event; nothing was sent.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The event is not in the log and never will be: the broker is unavailable, or has no leader.
    #[error("the event was not stored: {0}")]
    Unavailable(String),
    /// The event is not in the log: the broker has no storage space.
    #[error("no storage space: {0}")]
    Full(String),
    /// The event is not in the log, and never will be: it is larger than the broker takes.
    #[error("the event was not stored: {0}")]
    TooLarge(String),
    /// The event is not in the log, and never will be.
    #[error("the broker rejected the event: {0}")]
    Permanent(String),
    /// The event is not in the log: the order has no events any more.
    #[error("the order is no longer in the log")]
    Gone,
    /// The outcome is unknown. Only a retry can tell.
    #[error("outcome unknown, the event was not acknowledged in time: {0}")]
    Unknown(String),
}

impl AppendError {
    /// Whether an immediate retry is useless.
    fn is_final(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Full(_) | Self::TooLarge(_) | Self::Permanent(_) | Self::Gone => true,
            Self::Unavailable(_) | Self::Unknown(_) => false,
        }
    }

    /// Whether any other event would have failed in the same way at this moment.
    pub fn is_away(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::Full(_) | Self::Unknown(_) => true,
            Self::Refused(_) | Self::TooLarge(_) | Self::Permanent(_) | Self::Gone => false,
        }
    }

    /// The error in one word.
    fn kind(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::Unavailable(_) => "unavailable",
            Self::Full(_) => "full",
            Self::TooLarge(_) => "too_large",
            Self::Permanent(_) => "permanent",
            Self::Gone => "gone",
            Self::Unknown(_) => "unknown",
        }
    }
}

/// An event that is to be appended, and the order with it.
struct NextEvent {
    id: OrderId,
    /// The order's latest event.
    previous: Revision,
    /// The latest message on the order's subjects, which may be a foreign one.
    expected: Revision,
    order: Order,
    unknown_fields: Bytes,
    detail: Detail,
}

/// The cause of a failed append.
enum ConflictOutcome {
    /// The event itself, stored by an earlier try.
    Mine(Revision),
    /// Another writer's event.
    Overtaken(Box<OrderState>),
    /// Nothing: the order existed before, and has expired.
    Gone,
    /// No event: foreign messages up to here are stored where the order's first event belongs.
    Vacant(Revision),
}

impl OrderLog {
    /// Appends an order's first event, in a span of its own. The order takes `route`.
    pub async fn create(
        &self,
        id: OrderId,
        created: OrderCreated,
        route: Route,
        deadline: Instant,
    ) -> Result<Appended, AppendError> {
        let order = lifecycle::create(&created, route, now())?;
        let (previous, expected) = (Revision::NONE, Revision::NONE);
        let detail = Detail::Created(created);
        let next = NextEvent { id, previous, expected, order, unknown_fields: Bytes::new(), detail };
        self.append_next(next, deadline).await
    }

    /// Appends what happened to the order in `current`, provided that nothing else happened to it since, in a span of
    /// its own.
    pub async fn append(
        &self,
        current: &OrderState,
        detail: Detail,
        deadline: Instant,
    ) -> Result<Appended, AppendError> {
        let order = lifecycle::apply(&current.order, self.writer.step, &detail, now())?;
        let (previous, expected) = (current.revision(), current.head);
        let unknown_fields = current.unknown_fields.clone();
        let next = NextEvent { id: current.id, previous, expected, order, unknown_fields, detail };
        self.append_next(next, deadline).await
    }

    async fn append_next(&self, next: NextEvent, deadline: Instant) -> Result<Appended, AppendError> {
        let kind = EventKind::of(&next.detail);
        let mut timer = AppendTimer { kind, began: Instant::now(), outcome: "unknown" };
        let span = info_span!(
            "publish",
            otel.name = format!("publish {}", subjects::kind(kind)),
            otel.kind = "producer",
            messaging.system = "nats",
            messaging.operation.name = "publish",
            messaging.operation.type = "send",
            messaging.destination.name = subjects::event(kind, &next.id, lifecycle::next(&next.order)),
            messaging.destination.template = subjects::kind(kind),
            messaging.message.id = Empty,
            messaging.message.body.size = Empty,
            waybill.order.id = %next.id,
            waybill.order.revision = Empty,
            waybill.outcome = Empty,
        );
        let appended =
            self.publish_until_decided(next, deadline, &span).with_context(trace::within(&span)).await;
        timer.outcome = match &appended {
            Ok(Appended::Stored(_)) => "acked",
            Ok(Appended::Overtaken(_)) => "conflict",
            Err(error) => error.kind(),
        };
        if let Ok(Appended::Stored(stored)) = &appended {
            known_losses::appended(stored.revision());
            if stored.order.status() == OrderStatus::Fulfilled
                || matches!(kind, EventKind::Rejected | EventKind::Cancelled)
            {
                ended(&stored.order);
            }
        }
        appended
    }

    async fn publish_until_decided(
        &self,
        next: NextEvent,
        deadline: Instant,
        span: &Span,
    ) -> Result<Appended, AppendError> {
        let NextEvent { id, previous, mut expected, mut order, unknown_fields, detail } = next;
        let carried_since = carried_since(&detail);
        let draft = Draft::new(&id, previous, &mut order, &unknown_fields, detail, self.writer);
        span.record("messaging.message.id", &*draft.event_id);
        span.record("messaging.message.body.size", count(draft.payload.len() as u64));
        let stored = |order: Order, revision: Revision| {
            let since = carried_since.unwrap_or(revision);
            span.record("waybill.outcome", "stored").record("waybill.order.revision", count(revision.0));
            let order = Order { revision: revision.0, ..order };
            let (event_id, unknown_fields) = (draft.event_id.clone(), unknown_fields.clone());
            Appended::Stored(OrderState { id, order, head: revision, since, event_id, unknown_fields })
        };

        // Set once a publish got no reply. After that, no error proves that the event is not stored.
        let mut unknown: Option<String> = None;
        for attempts in 1.. {
            let (subject, payload) = (draft.subject.clone(), draft.payload.clone());
            let expectation = Some((subjects::order(&id), expected));
            let connects = *self.connection.connects().borrow();
            let published = publish(
                &self.connection,
                streams::ORDERS,
                subject,
                draft.headers(),
                payload,
                expectation,
                deadline,
            );
            let error = match published.await {
                Outcome::Stored(revision) => {
                    self.barrier.committed(connects);
                    return Ok(stored(order, revision));
                }
                // Without space, too, an event that is already stored is found, so a retry finds its order.
                outcome @ (Outcome::Conflict | Outcome::Full(_)) => {
                    let full = if let Outcome::Full(reason) = outcome { Some(reason) } else { None };
                    let resolved =
                        self.resolve_conflict(&id, previous, &draft.event_id, unknown.is_some()).await;
                    match (resolved, full) {
                        (Ok(ConflictOutcome::Mine(revision)), _) => return Ok(stored(order, revision)),
                        (Ok(ConflictOutcome::Overtaken(current)), Some(reason))
                            if current.revision() == previous =>
                        {
                            AppendError::Full(reason)
                        }
                        (Ok(ConflictOutcome::Overtaken(current)), _) => {
                            span.record("waybill.outcome", "overtaken");
                            return Ok(Appended::Overtaken(*current));
                        }
                        (Ok(ConflictOutcome::Vacant(_) | ConflictOutcome::Gone) | Err(_), Some(reason)) => {
                            AppendError::Full(reason)
                        }
                        (Ok(ConflictOutcome::Gone), None) => AppendError::Gone,
                        (Ok(ConflictOutcome::Vacant(head)), None) => {
                            expected = head;
                            AppendError::Unavailable(format!(
                                "foreign messages up to {head} on the order's subjects"
                            ))
                        }
                        // The broker has decided, but the decision cannot be read now.
                        (Err(error), None) => AppendError::Unknown(error.to_string()),
                    }
                }
                Outcome::Unavailable(error) => AppendError::Unavailable(error),
                Outcome::TooLarge(error) => AppendError::TooLarge(error),
                Outcome::Permanent(error) => AppendError::Permanent(error),
                Outcome::Unknown(error) => AppendError::Unknown(error),
            };
            if let AppendError::Unknown(reason) = &error {
                unknown.get_or_insert_with(|| reason.clone());
            }
            let pause = RETRY.after(attempts);
            let gives_up = error.is_final() || Instant::now() + pause >= deadline;
            if gives_up || (unknown.is_none() && !self.connection.is_up()) {
                let error = unknown.map_or(error, AppendError::Unknown);
                trace::fail(span, error.kind(), &error);
                return Err(error);
            }
            debug!(order_id = %id, attempts, %error, "append retried");
            span.add_event("append retried", vec![KeyValue::new(attribute::ERROR_TYPE, error.kind())]);
            sleep(pause).await;
        }
        Err(AppendError::Unknown("retries exhausted".to_owned()))
    }

    /// The cause of a conflict.
    async fn resolve_conflict(
        &self,
        id: &OrderId,
        previous: Revision,
        event_id: &str,
        retried: bool,
    ) -> Result<ConflictOutcome, ReadError> {
        let current = match self.latest(id).await? {
            Latest::Order(current) => current,
            Latest::Vacant(head) if previous == Revision::NONE => return Ok(ConflictOutcome::Vacant(head)),
            Latest::Vacant(_) => return Ok(ConflictOutcome::Gone),
        };
        if current.event_id == event_id {
            return Ok(ConflictOutcome::Mine(current.revision()));
        }
        let history = if retried { self.history_reaching(id, current.revision()).await? } else { Vec::new() };
        let mine = history.iter().find(|event| event.event_id == event_id);
        Ok(mine.map_or(ConflictOutcome::Overtaken(current), |event| ConflictOutcome::Mine(event.revision)))
    }
}

/// An append in progress. If its caller stops waiting, the outcome is unknown.
struct AppendTimer {
    kind: EventKind,
    began: Instant,
    outcome: &'static str,
}

impl Drop for AppendTimer {
    fn drop(&mut self) {
        let labels = [KeyValue::new("event", self.kind.as_str()), KeyValue::new("outcome", self.outcome)];
        APPENDS.record(seconds(self.began.elapsed()), &labels);
    }
}

/// The order has ended: records its duration, by the clocks of the writers of its first and last event.
fn ended(order: &Order) {
    let time = |time: Option<prost_types::Timestamp>| SystemTime::try_from(time?).ok();
    let (Some(created), Some(ended)) = (time(order.create_time), time(order.update_time)) else { return };
    let status = order.status().as_str_name().trim_start_matches("ORDER_STATUS_");
    let took = ended.duration_since(created).unwrap_or_default();
    ORDERS.record(seconds(took), &[KeyValue::new("status", status)]);
}

/// A number as attributes take it.
fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
