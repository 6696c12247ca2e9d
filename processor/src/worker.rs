//! One message from its delivery to its end: acknowledged, to be delivered again later, or set aside.
//!
//! For each order: effect, then append, then acknowledge. A crash between any two of them leads to a
//! redelivery, which finds the effect and the event already there.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_nats::jetstream::AckKind;
use async_nats::jetstream::Message;
use backbone::carrying;
use backbone::consumer::Terms;
use backbone::dead_letters::{DeadLetters, LetterId};
use backbone::direct_get::ReadError;
use backbone::event::Recorded;
use backbone::ids::{OrderId, Revision};
use backbone::lifecycle;
use backbone::log::{AppendError, Appended, OrderLog, OrderState};
use backbone::subjects::EventKind;
use backbone::telemetry::Seldom;
use backbone::trace::{KeyValue, SpanKind, TraceContext, attribute};
use futures::FutureExt;
use prost_types::Timestamp;
use proto::orders::v1::order_event::Detail;
use thiserror::Error;
use tokio::select;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::admission::Found;
use crate::config::ProcessorConfig;
use crate::metrics;
use crate::parking::{About, Before, Delivery, Fate, Parking, ParkingError, RETRY, pause};
use crate::spans::{about_delivery, about_event, origin, received, template};
use crate::step::{Step, StepError};
use crate::suspects::{Begun, Subject, Suspects};

/// How old an event may be and still be taken for the order as it stands. What waited for longer, behind others or
/// for a step that was away, has perhaps been cancelled meanwhile, and who cancels in time is not to be charged first.
/// Nor is one taken for that which is older than the step's consumer: it may have been delivered before.
const NEWS_AGE_MAX: Duration = Duration::from_secs(10);
/// How long an append may take; the attempt is repeated afterwards.
const APPEND_TIMEOUT: Duration = Duration::from_secs(10);
/// The parts of an attempt: reading the order, the step's work, which may take half of it, and the append. So whoever
/// does not answer has been found to be away before the attempt is cut off, which would count against the order.
const READ_PART: f64 = 0.2;
const APPEND_PART: f64 = 0.9;

/// Deliveries after which a message without its payload is taken to have none. By then somebody has looked at the
/// consumer, and if it had been edited to leave payloads out, that is over.
const LEFT_OUT_DELIVERIES_MAX: i64 = 10;

// Lines that each order brings about while the broker has no space.
static POSTPONED: Seldom = Seldom::every(Duration::from_secs(30));
static NOT_STORED: Seldom = Seldom::every(Duration::from_secs(30));

/// What has become of a message.
struct Ended {
    /// `None` if it is done with.
    fate: Option<Fate>,
    found: Found,
    /// The same for metrics, in one word.
    outcome: &'static str,
}

/// What an attempt that went well has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    /// The order needed nothing.
    Nothing,
    /// What the order needed.
    Work,
    /// The business said no, which is an answer.
    Rejected,
}

/// Why an order could not be finished this time.
#[derive(Debug, Error)]
enum Unfinished {
    #[error(transparent)]
    Step(#[from] StepError),
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("order {0} is no longer kept")]
    Gone(OrderId),
    #[error("too little time is left to go on, {0:?} after the attempt began")]
    Late(Duration),
    #[error("the attempt took longer than {0:?}")]
    TimedOut(Duration),
    #[error("the attempt panicked")]
    Panicked,
}

impl Unfinished {
    /// The same in one word.
    fn kind(&self) -> &'static str {
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

    /// Whether this is no fault of the order: it would have gone the same way with any other.
    fn is_away(&self) -> bool {
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

/// Works on messages for a step.
#[derive(Debug)]
pub(crate) struct Worker<S> {
    step: Arc<S>,
    log: OrderLog,
    parking: Parking,
    suspects: Mutex<Suspects>,
    ack_wait: Duration,
    attempt_timeout: Duration,
    /// Cancelled when what still runs has to be given back.
    leave: CancellationToken,
}

impl<S: Step> Worker<S> {
    pub(crate) fn new(
        step: Arc<S>,
        log: OrderLog,
        dead_letters: DeadLetters,
        config: &ProcessorConfig,
        leave: CancellationToken,
    ) -> Self {
        let attempts_max = usize::from(config.max_attempts);
        let parking = Parking {
            letters: dead_letters,
            log: log.clone(),
            step: S::NAME,
            attempts_max,
            announced: tokio::sync::Mutex::default(),
            first_new: std::sync::OnceLock::new(),
        };
        let (ack_wait, attempt_timeout) = (config.ack_wait, config.attempt_timeout);
        Self { step, log, parking, suspects: Mutex::default(), ack_wait, attempt_timeout, leave }
    }

    /// Brings one message to its end, or gives it back when it has to stop.
    pub(crate) async fn handle(
        &self,
        message: Message,
        subject: Subject,
        terms: Terms,
        stop: &CancellationToken,
    ) -> Found {
        let delivery = match delivery::<S>(&message, terms) {
            Ok(delivery) => delivery,
            Err(error) => {
                error!(step = S::NAME, subject = %message.subject, error, "not a message of a consumer");
                return Found::Nothing;
            }
        };
        let began = Instant::now();
        if delivery.deliveries > 1 {
            metrics::redelivered(S::NAME);
        } else {
            self.parking.is_first(subject.message);
        }
        let work = self.work(&delivery, subject);
        let Ended { fate, found, outcome } = select! {
            biased;
            () = stop.cancelled() => {
                // One that the process leaves behind is for whoever is there next.
                let delay = if self.leave.is_cancelled() { RETRY.initial } else { pause(&delivery) };
                acknowledge::<S>(&message, AckKind::Nak(Some(delay))).await;
                self.parking.heard_of(&delivery, &origin(&message)).await;
                metrics::attempted(S::NAME, "given_back", began.elapsed());
                return Found::Nothing;
            }
            ended = self.keep_alive(&message, terms.ack_wait, work) => ended,
        };
        metrics::attempted(S::NAME, outcome, began.elapsed());
        if !matches!(fate, Some(Fate::Again(_))) {
            self.suspects().forget(subject.message);
        }
        let kind = match fate {
            None => AckKind::Ack,
            Some(Fate::Terminate) => AckKind::Term,
            Some(Fate::Again(delay)) => AckKind::Nak(Some(delay)),
        };
        acknowledge::<S>(&message, kind).await;
        found
    }

    /// What becomes of the message, and what was found out on the way.
    async fn work(&self, delivery: &Delivery<'_>, subject: Subject) -> Ended {
        let ended = |fate, found, outcome| Ended { fate, found, outcome };
        let (message, sequence) = (delivery.message, delivery.id.sequence());
        let received = received::<S>(delivery);
        let decoded =
            Recorded::decode(&message.subject, sequence, message.headers.as_ref(), message.payload.clone());
        let event = match decoded {
            Ok(event) => event,
            Err(reason) if is_left_out(message) && delivery.deliveries <= LEFT_OUT_DELIVERIES_MAX => {
                received.fail("left_out", &reason);
                return ended(Some(Fate::Again(pause(delivery))), Found::Nothing, "left_out");
            }
            Err(reason) => {
                // Redelivering it would change nothing.
                received.fail("undecodable", &reason);
                let fate = self.parking.set_aside(delivery, &reason, received.context()).await;
                if fate.is_ok() {
                    error!(step = S::NAME, sequence = sequence.0, subject = %message.subject, %reason, "undecodable message set aside");
                }
                return ended(Some(self.or_again(delivery, fate)), Found::Nothing, "undecodable");
            }
        };
        received.set(|| about_event(&event));
        let redriven_from = event.redriven_from().unwrap_or_default().to_owned();
        let stands_since = event.stands_since();
        let carried = (stands_since < event.revision).then_some((stands_since, event.previous));
        let about = About { order_id: event.id, trace: received.context(), redriven_from, carried };
        let mut _alone = None;
        if delivery.deliveries > 1 {
            match self.parking.before_attempt(delivery, &about).await {
                Ok(Before::Attempt(alone)) => _alone = alone,
                Ok(Before::Settled(fate)) => return ended(Some(fate), Found::Nothing, fate.as_str()),
                Err(error) => {
                    // Where nothing can be stored, a letter cannot; others would meet the same.
                    let found = if self.log.full().is_some() { Found::Away } else { Found::Nothing };
                    return ended(Some(self.or_again(delivery, Err(error))), found, "read");
                }
            }
        }

        let span = received.child(SpanKind::Consumer, || format!("process {}", template(message)).into());
        let about = About { trace: span.context(), ..about };
        // Sent before the attempt ends, so that of a process that dies in it this much is known.
        drop(received);
        span.set(|| about_delivery::<S>(delivery, "process"));
        span.set(|| about_event(&event));
        span.event("attempt", || [KeyValue::new(attribute::DELIVERIES, delivery.deliveries)]);
        let trace = span.context();
        let (seen, began) = (AtomicU64::new(stands_since.0), Instant::now());
        let begun = self.suspects().begin(subject, began);
        // A step that panics has failed with this order, and goes on with others.
        let attempt = span.scope(self.attempt(event, delivery, trace, &seen));
        let attempt = AssertUnwindSafe(attempt).catch_unwind();
        let outcome = match timeout(self.attempt_timeout, attempt).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Unfinished::Panicked),
            Err(_) => Err(Unfinished::TimedOut(self.attempt_timeout)),
        };
        if outcome.is_ok() {
            self.parking.heard_of(delivery, trace).await;
        }
        let reason = match outcome {
            Ok(Done::Nothing) => return ended(None, Found::Nothing, "nothing_to_do"),
            Ok(done @ (Done::Work | Done::Rejected)) => {
                self.suspects().served(subject, began);
                let outcome = if done == Done::Rejected { "rejected" } else { "done" };
                return ended(None, Found::Served, outcome);
            }
            Err(reason) => reason,
        };
        let is_away = reason.is_away();
        let counts = self.failed(subject, begun, is_away);
        // A suspect fails whether the dependency is there or not.
        let shows_outage = is_away && !self.suspects().is_suspect(subject, Instant::now());
        let fate = if counts {
            let seen = Revision(seen.into_inner());
            self.parking.after_attempt(delivery, &about, seen, &reason).await
        } else {
            self.parking.heard_of(delivery, trace).await;
            Ok(Fate::Again(pause(delivery)))
        };
        let fate = self.or_again(delivery, fate);
        span.fail(reason.kind(), &reason);
        span.event("attempt failed", || {
            [
                KeyValue::new(attribute::ATTEMPT_ERROR, reason.to_string()),
                KeyValue::new(attribute::ATTEMPT_COUNTS, counts),
            ]
        });
        if let Fate::Again(delay) = fate {
            span.set(|| [KeyValue::new(attribute::ATTEMPT_DELAY, delay.as_secs_f64())]);
            let (order_id, deliveries) = (about.order_id, delivery.deliveries);
            let (trace_id, span_id) = (trace.trace_id(), trace.span_id());
            let revision = sequence.0;
            if let Some(left_out) = self.may_tell(&POSTPONED) {
                warn!(step = S::NAME, %order_id, trace_id, span_id, revision, deliveries, counts, %reason, ?delay, left_out, "order tried again later");
            }
        }
        let outcome = if fate == Fate::Terminate { fate.as_str() } else { reason.kind() };
        ended(Some(fate), if shows_outage { Found::Away } else { Found::Nothing }, outcome)
    }

    /// What could not be given up comes again.
    fn or_again(&self, delivery: &Delivery<'_>, fate: Result<Fate, ParkingError>) -> Fate {
        fate.unwrap_or_else(|error| {
            if let Some(left_out) = self.may_tell(&NOT_STORED) {
                warn!(step = S::NAME, dead_letter_id = %delivery.id, %error, left_out, "dead letter or its order not stored yet");
            }
            Fate::Again(pause(delivery))
        })
    }

    /// Whether a line about one order may be written. While the broker has no space, it is the same for all of them.
    fn may_tell(&self, seldom: &Seldom) -> Option<u64> {
        if self.log.connection().storage().is_any_full() { seldom.may_tell() } else { Some(0) }
    }

    /// Takes note of an order that failed. Tells whether that uses up an attempt.
    fn failed(&self, subject: Subject, begun: Begun, is_away: bool) -> bool {
        let now = Instant::now();
        if !is_away {
            self.suspects().failed_alone(subject, now);
            return true;
        }
        let alone = self.suspects().failed(subject, begun, now);
        if alone {
            metrics::failed_alone(S::NAME);
        }
        alone
    }

    /// Nothing panics while it is held, so poison would mean nothing.
    pub(crate) fn suspects(&self) -> MutexGuard<'_, Suspects> {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the broker again and again that the message is being worked on, while it is.
    async fn keep_alive<T>(&self, message: &Message, ack_wait: Duration, work: impl Future<Output = T>) -> T {
        let interval = self.ack_wait.min(ack_wait) / 3;
        tokio::pin!(work);
        loop {
            select! {
                biased;
                done = &mut work => return done,
                () = sleep(interval) => acknowledge::<S>(message, AckKind::Progress).await,
            }
        }
    }

    /// Does what the order, as it stands, needs of the step, and says what happened. `None` if it needs nothing, though
    /// what was done before in vain may have been taken back. What the order owes in the log is appended.
    async fn next_fact(
        &self,
        current: &OrderState,
        acted: bool,
        read_by: Instant,
    ) -> Result<Option<Detail>, Unfinished> {
        let order = &current.order;
        if lifecycle::waits_for(order, S::DOES) {
            let done = self.step.act(order).await;
            return Ok(Some(done.or_else(|error| error.into_rejection(S::NAME))?));
        }
        let owes = S::UNDOES.is_some_and(|undo| lifecycle::owes(order, undo));
        if owes || (acted && lifecycle::is_called_off(order)) {
            let history = self.log.history_reaching(&current.id, current.revision());
            let history = in_time(read_by, history).await?;
            let done = carrying::has_happened(S::DOES, &history);
            let undone = self.step.undo(order, done).await?;
            return Ok(undone.filter(|_| owes));
        }
        Ok(None)
    }

    /// One attempt at the order of `event`: effect, then append. Loses no effect to a race: when the order has
    /// changed in between, it is looked at again, and what is no longer wanted is taken back. Tells whether the step
    /// had anything to do. `seen` is since when the order stands as it was worked on last.
    async fn attempt(
        &self,
        event: Recorded,
        delivery: &Delivery<'_>,
        trace: &TraceContext,
        seen: &AtomicU64,
    ) -> Result<Done, Unfinished> {
        let began = Instant::now();
        let read_by = began + self.attempt_timeout.mul_f64(READ_PART);
        let append_by = began + self.attempt_timeout.mul_f64(APPEND_PART);
        // Another worker may have been at it before; then the event tells less than the log.
        let redelivered = delivery.deliveries > 1;
        // A worker that died may have acted for the order, and not have lived to append. But after an event that called
        // the order off, all that anybody can have done is to undo.
        // Of an order that is carried, an earlier message may be in the hands of another worker.
        let is_carried = event.kind() == EventKind::Carried;
        let mut acted = (redelivered || is_carried) && !lifecycle::is_called_off(&event.order);
        let (id, revision) = (event.id, event.revision);
        let read = if redelivered {
            Some(in_time(read_by, self.log.load_latest(&id)).await?.ok_or(Unfinished::Gone(id))?)
        } else if !delivery.is_news {
            Some(in_time(read_by, self.log.load(&id)).await?.ok_or(Unfinished::Gone(id))?)
        } else {
            None
        };
        // Whoever answered may be behind the event itself, and then say that there is nothing to do yet.
        let read = read.filter(|read| read.revision() >= event.revision);
        let mut current = read.unwrap_or_else(|| OrderState::from(event));
        // The message of that event does all that is left to do, so that no two come again and again for one order. One that
        // comes for the first time shows all the same whether the dependency is there: after an outage, all that come first
        // are such, and none of them would close the breaker.
        if redelivered && delivery.brings_carried && current.is_carried() && current.revision() > revision {
            return Ok(Done::Nothing);
        }
        if is_carried && !lifecycle::is_finished(&current.order) {
            self.step.keep(&current.order).await?;
        }
        let mut done = Done::Nothing;
        loop {
            seen.store(current.stands_since().0, Ordering::Relaxed);
            if Instant::now() > read_by {
                return Err(Unfinished::Late(began.elapsed()));
            }
            let Some(fact) = self.next_fact(&current, acted, read_by).await? else { return Ok(done) };
            acted = true;
            done = if matches!(fact, Detail::Rejected(_)) { Done::Rejected } else { Done::Work };
            let deadline = append_by.min(Instant::now() + APPEND_TIMEOUT);
            let appended = timeout_at(append_by, self.log.append(&current, fact, trace, deadline)).await;
            let no_answer = || AppendError::Unknown("no answer in time".to_owned());
            match appended.unwrap_or_else(|_| Err(no_answer()))? {
                Appended::Stored(order) => {
                    let (order_id, revision) = (order.id, order.order.revision);
                    let status = order.order.status().as_str_name();
                    let (trace_id, span_id) = (trace.trace_id(), trace.span_id());
                    debug!(step = S::NAME, %order_id, trace_id, span_id, revision, status, "done");
                    return Ok(done);
                }
                Appended::Overtaken(now) => current = now,
            }
        }
    }
}

/// A read that has no answer by then has none at all.
async fn in_time<T>(by: Instant, read: impl Future<Output = Result<T, ReadError>>) -> Result<T, ReadError> {
    let no_answer = |_| Err(ReadError::NoAnswer("no answer in time".to_owned()));
    timeout_at(by, read).await.unwrap_or_else(no_answer)
}

/// Whether the broker says that it has left the payload out (`headers_only`).
fn is_left_out(message: &Message) -> bool {
    let size = message.headers.as_ref().and_then(|headers| headers.get_last("Nats-Msg-Size"));
    message.payload.is_empty() && size.is_some_and(|size| size.as_str() != "0")
}

/// How long ago that was; nothing, if clocks disagree.
fn age(published: &Timestamp) -> Duration {
    let published = SystemTime::try_from(*published).ok();
    published.and_then(|published| published.elapsed().ok()).unwrap_or_default()
}

/// What the broker says of a message.
fn delivery<S: Step>(message: &Message, terms: Terms) -> Result<Delivery<'_>, String> {
    let info = message.info().map_err(|error| error.to_string())?;
    let id = LetterId::new(S::NAME, Revision(info.stream_sequence)).map_err(|error| error.to_string())?;
    let (seconds, nanos) = (info.published.unix_timestamp(), info.published.nanosecond());
    let published = Timestamp { seconds, nanos: i32::try_from(nanos).unwrap_or_default() };
    let is_news = age(&published) <= NEWS_AGE_MAX && SystemTime::from(info.published) >= terms.since;
    let brings_carried = terms.brings_carried;
    Ok(Delivery { message, id, deliveries: info.delivered, published, is_news, brings_carried })
}

/// Sends the last word on a message. A word that is lost leads to a redelivery, which finds the work done.
async fn acknowledge<S: Step>(message: &Message, kind: AckKind) {
    if let AckKind::Nak(delay) = kind {
        debug!(step = S::NAME, subject = %message.subject, ?delay, "redelivery requested");
    }
    if let Err(error) = message.ack_with(kind).await {
        warn!(step = S::NAME, %error, "acknowledgement not sent");
    }
}

/// Leaves a message that nobody works on to whoever is there when it comes again.
pub(crate) async fn postpone<S: Step>(message: &Message, delay: Duration, reason: &'static str) {
    metrics::postponed(S::NAME, reason);
    acknowledge::<S>(message, AckKind::Nak(Some(delay))).await;
}
