//! One message from its delivery to its disposition: acknowledged, redelivered later, or dead-lettered.
//!
//! For each order: effect, then append, then acknowledge. A crash between any two of them leads to a redelivery, which
//! finds the existing effect and event.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::jetstream::{AckKind, Message};
use backbone::consumer::ConsumerTerms;
use backbone::dead_letters::DeadLetters;
use backbone::log::OrderLog;
use backbone::log::event::{Recorded, Undecodable};
use program::telemetry::LogThrottle;
use program::trace::{self, FutureExt, KeyValue, OpenTelemetrySpanExt, attribute};
use tokio::select;
use tokio::sync::MutexGuard as AsyncMutexGuard;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{Span, error, warn};

use crate::admission::DependencySignal;
use crate::attempt::{AttemptError, AttemptOutcome, Attempts};
use crate::config::ProcessorConfig;
use crate::dead_lettering::{BeforeAttempt, DeadLettering, DeadLetteringError, OrderContext, Outcome};
use crate::delivery::{Delivery, Disposition, RETRY, acknowledge};
use crate::metrics;
use crate::spans;
use crate::step::{Step, StepProfile};
use crate::suspects::{AttemptStart, OrderRef, Suspects};

// While the broker has no storage space, every order causes these lines.
static POSTPONED: LogThrottle = LogThrottle::every(Duration::from_secs(30));
static NOT_STORED: LogThrottle = LogThrottle::every(Duration::from_secs(30));

/// The disposition of a message.
struct MessageOutcome {
    disposition: Disposition,
    signal: DependencySignal,
    /// The label of metrics.
    outcome: &'static str,
}

/// A message for which an attempt may start.
struct Admitted<'a> {
    event: Recorded,
    about: OrderContext,
    /// Held during an announced attempt.
    _alone: Option<AsyncMutexGuard<'a, ()>>,
}

/// Works on messages for a step.
#[derive(Debug)]
pub(crate) struct Worker<S> {
    name: &'static str,
    log: OrderLog,
    attempts: Attempts<S>,
    dead_lettering: DeadLettering,
    suspects: Mutex<Suspects>,
    ack_wait: Duration,
    /// Cancelled when running attempts have to be nak'ed.
    leave: CancellationToken,
}

impl<S: Step> Worker<S> {
    pub(crate) fn new(
        profile: StepProfile,
        step: Arc<S>,
        log: OrderLog,
        dead_letters: DeadLetters,
        config: &ProcessorConfig,
        leave: CancellationToken,
    ) -> Self {
        let attempts = Attempts { profile, step, log: log.clone(), timeout: config.attempt_timeout };
        let dead_lettering =
            DeadLettering::new(dead_letters, log.clone(), profile.name, usize::from(config.max_attempts));
        Self {
            name: profile.name,
            log,
            attempts,
            dead_lettering,
            suspects: Mutex::default(),
            ack_wait: config.ack_wait,
            leave,
        }
    }

    /// Processes one message, or returns it to the broker when it has to stop.
    pub(crate) async fn handle(
        &self,
        message: Message,
        order_ref: OrderRef,
        terms: ConsumerTerms,
        stop: &CancellationToken,
    ) -> DependencySignal {
        let delivery = match Delivery::of(&message, self.name, terms) {
            Ok(delivery) => delivery,
            Err(error) => {
                error!(step = self.name, subject = %message.subject, error, "message without consumer metadata, skipped");
                return DependencySignal::Unknown;
            }
        };
        let began = Instant::now();
        if delivery.is_redelivery() {
            metrics::redelivered(self.name);
        } else {
            self.dead_lettering.record_first_delivery(order_ref.message);
        }
        let work = self.work(&delivery, order_ref);
        let MessageOutcome { disposition, signal, outcome } = select! {
            biased;
            () = stop.cancelled() => {
                self.return_to_broker(&delivery).await;
                metrics::attempted(self.name, "given_back", began.elapsed());
                return DependencySignal::Unknown;
            }
            ended = self.keep_alive(&message, terms.ack_wait, work) => ended,
        };
        metrics::attempted(self.name, outcome, began.elapsed());
        if !matches!(disposition, Disposition::Retry(_)) {
            self.suspects().forget(order_ref.message);
        }
        acknowledge(self.name, &message, disposition.ack()).with_context(delivery.context()).await;
        signal
    }

    /// The disposition of the message, and the observations on the way.
    async fn work(&self, delivery: &Delivery<'_>, order_ref: OrderRef) -> MessageOutcome {
        let (received, context) = spans::received(self.name, delivery);
        let admitted = self.admit(delivery, &received);
        let admitted = admitted.with_context(context.clone()).await;
        let Admitted { event, about, _alone } = match admitted {
            Ok(admitted) => admitted,
            Err(ended) => return ended,
        };
        let (span, context) = spans::processed(self.name, delivery, &context);
        // Exported before the attempt ends: if the process dies in it, the delivery is known.
        drop(received);
        spans::record_event(&span, &event);
        let tried = self.try_order(event, about, delivery, order_ref, &span);
        tried.with_context(context).await
    }

    /// Decides whether an attempt starts; otherwise returns the disposition of the message.
    async fn admit(&self, delivery: &Delivery<'_>, received: &Span) -> Result<Admitted<'_>, MessageOutcome> {
        let event = match delivery.decode() {
            Ok(event) => event,
            // Boxed, as below: the rare cases need most of the memory, and none of them is the first delivery of an order.
            Err(reason) => return Err(Box::pin(self.settle_undecodable(delivery, received, &reason)).await),
        };
        spans::record_event(received, &event);
        let about = OrderContext::of(&event);
        if !delivery.is_redelivery() {
            return Ok(Admitted { event, about, _alone: None });
        }
        match Box::pin(self.dead_lettering.before_attempt(delivery, &about)).await {
            Ok(BeforeAttempt::Attempt(alone)) => Ok(Admitted { event, about, _alone: alone }),
            Ok(BeforeAttempt::Settled(disposition)) => Err(MessageOutcome {
                disposition,
                signal: DependencySignal::Unknown,
                outcome: disposition.as_str(),
            }),
            Err(error) => {
                // Without storage space no record can be stored, for no order.
                let is_full = self.log.full().is_some();
                let signal = if is_full { DependencySignal::Unavailable } else { DependencySignal::Unknown };
                Err(MessageOutcome {
                    disposition: self.or_retry(delivery, Err(error)),
                    signal,
                    outcome: "read",
                })
            }
        }
    }

    /// Makes an attempt at the order, and decides the disposition of the message.
    async fn try_order(
        &self,
        event: Recorded,
        about: OrderContext,
        delivery: &Delivery<'_>,
        order_ref: OrderRef,
        span: &Span,
    ) -> MessageOutcome {
        if !span.is_disabled() {
            span.add_event("attempt", vec![KeyValue::new(attribute::DELIVERIES, delivery.deliveries)]);
        }
        let began = Instant::now();
        let start = self.suspects().begin(order_ref, began);
        let (outcome, seen) = self.attempts.run(event, delivery).await;
        match outcome {
            Ok(done) => {
                let served = done != AttemptOutcome::NothingToDo;
                if served {
                    self.suspects().served(order_ref, began);
                }
                let settled = self.dead_lettering.settle(delivery, Outcome::Finished).await;
                let signal = if served { DependencySignal::Served } else { DependencySignal::Unknown };
                MessageOutcome {
                    disposition: self.or_retry(delivery, settled),
                    signal,
                    outcome: done.as_str(),
                }
            }
            Err(reason) => {
                let counts = self.record_failure(order_ref, start, reason.is_away());
                // A suspect fails whether the dependency is available or not.
                let shows_outage = reason.is_away() && !self.suspects().is_suspect(order_ref, Instant::now());
                let end = if counts {
                    Outcome::Failed { about: &about, seen, error: &reason }
                } else {
                    Outcome::Postponed
                };
                let settled = self.dead_lettering.settle(delivery, end).await;
                let disposition = self.or_retry(delivery, settled);
                self.report_failure(delivery, &about, span, &reason, counts, disposition);
                let outcome =
                    if disposition == Disposition::Terminate { disposition.as_str() } else { reason.kind() };
                let signal =
                    if shows_outage { DependencySignal::Unavailable } else { DependencySignal::Unknown };
                MessageOutcome { disposition, signal, outcome }
            }
        }
    }

    /// The disposition of a message that cannot be decoded.
    async fn settle_undecodable(
        &self,
        delivery: &Delivery<'_>,
        received: &Span,
        reason: &Undecodable,
    ) -> MessageOutcome {
        if delivery.lacks_payload() {
            trace::fail(received, "left_out", reason);
            let disposition = Disposition::Retry(delivery.pause());
            return MessageOutcome { disposition, signal: DependencySignal::Unknown, outcome: "left_out" };
        }
        trace::fail(received, "undecodable", reason);
        let end = Outcome::Undecodable(reason);
        let settled = self.dead_lettering.settle(delivery, end).await;
        MessageOutcome {
            disposition: self.or_retry(delivery, settled),
            signal: DependencySignal::Unknown,
            outcome: "undecodable",
        }
    }

    /// Returns an unfinished message to the broker.
    async fn return_to_broker(&self, delivery: &Delivery<'_>) {
        // When the process stops, another one shall get the message soon.
        let delay = if self.leave.is_cancelled() { RETRY.initial } else { delivery.pause() };
        let returned = async {
            acknowledge(self.name, delivery.message, AckKind::Nak(Some(delay))).await;
            let settled = self.dead_lettering.settle(delivery, Outcome::Postponed).await;
            self.or_retry(delivery, settled);
        };
        returned.with_context(delivery.context()).await;
    }

    /// A message whose outcome could not be stored is redelivered.
    fn or_retry(
        &self,
        delivery: &Delivery<'_>,
        settled: Result<Disposition, DeadLetteringError>,
    ) -> Disposition {
        settled.unwrap_or_else(|error| {
            if let Some(left_out) = self.allow(&NOT_STORED) {
                warn!(step = self.name, dead_letter_id = %delivery.id, %error, left_out, "dead letter or its order not stored, retrying");
            }
            Disposition::Retry(delivery.pause())
        })
    }

    /// Reports a failed attempt and its disposition on the span and in the log.
    fn report_failure(
        &self,
        delivery: &Delivery<'_>,
        about: &OrderContext,
        span: &Span,
        reason: &AttemptError,
        counts: bool,
        disposition: Disposition,
    ) {
        trace::fail(span, reason.kind(), reason);
        if !span.is_disabled() {
            let error = KeyValue::new(attribute::ATTEMPT_ERROR, reason.to_string());
            span.add_event("attempt failed", vec![error, KeyValue::new(attribute::ATTEMPT_COUNTS, counts)]);
        }
        let Disposition::Retry(delay) = disposition else { return };
        span.record("waybill.attempt.delay", delay.as_secs_f64());
        let (order_id, deliveries, revision) =
            (about.order_id, delivery.deliveries, delivery.id.sequence().0);
        if let Some(left_out) = self.allow(&POSTPONED) {
            warn!(step = self.name, %order_id, revision, deliveries, counts, %reason, ?delay, left_out, "attempt failed, order retried");
        }
    }

    /// Whether a line about one order may be written. While the broker has no storage space, all orders cause the same line.
    fn allow(&self, throttle: &LogThrottle) -> Option<u64> {
        if self.log.connection().storage().is_any_full() { throttle.allow() } else { Some(0) }
    }

    /// Records a failed order. Returns whether the failure uses up an attempt.
    fn record_failure(&self, order_ref: OrderRef, start: AttemptStart, is_away: bool) -> bool {
        let now = Instant::now();
        if !is_away {
            self.suspects().failed_alone(order_ref, now);
            return true;
        }
        let alone = self.suspects().failed(order_ref, start, now);
        if alone {
            metrics::failed_alone(self.name);
        }
        alone
    }

    /// No holder panics, so a poisoned lock is used as it is.
    pub(crate) fn suspects(&self) -> MutexGuard<'_, Suspects> {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends progress acknowledgements to the broker while `work` runs.
    async fn keep_alive<T>(&self, message: &Message, ack_wait: Duration, work: impl Future<Output = T>) -> T {
        let interval = self.ack_wait.min(ack_wait) / 3;
        tokio::pin!(work);
        loop {
            select! {
                biased;
                done = &mut work => return done,
                () = sleep(interval) => acknowledge(self.name, message, AckKind::Progress).await,
            }
        }
    }
}

/// Returns a message to the broker without an attempt.
pub(crate) async fn postpone(step: &'static str, message: &Message, delay: Duration, reason: &'static str) {
    metrics::postponed(step, reason);
    acknowledge(step, message, AckKind::Nak(Some(delay))).await;
}
