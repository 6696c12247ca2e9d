//! One message from its delivery to its end: acknowledged, to be delivered again later, or set aside.
//!
//! For each order: effect, then append, then acknowledge. A crash between any two of them leads to a
//! redelivery, which finds the effect and the event already there.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::jetstream::Message;
use backbone::backoff::Backoff;
use backbone::direct_get::ReadError;
use backbone::event::Recorded;
use backbone::ids::{OrderId, Revision};
use backbone::log::{AppendError, Appended, OrderLog, OrderState};
use backbone::trace::TraceContext;
use futures::FutureExt;
use thiserror::Error;
use tokio::select;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::config::ProcessorConfig;
use crate::step::{Step, StepError};

/// How long an append may take; the attempt is repeated afterwards.
const APPEND_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY: Backoff = Backoff { initial: Duration::from_millis(200), max: Duration::from_secs(30) };

/// What working on a message has shown of the step's dependencies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// They answered.
    Served,
    /// One of them is away.
    Away,
    /// Nothing.
    Nothing,
}

/// Why an order could not be finished this time; it is tried again later.
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
    #[error("the attempt took longer than {0:?}")]
    TimedOut(Duration),
    #[error("the attempt panicked")]
    Panicked,
}

impl Unfinished {
    /// Whether this is no fault of the order: it would have gone the same way with any other.
    fn is_away(&self) -> bool {
        match self {
            Self::Step(StepError::Unavailable(_)) | Self::Read(ReadError::NoAnswer(_)) => true,
            Self::Append(error) => match error {
                AppendError::Unavailable(_) | AppendError::Full | AppendError::Unknown(_) => true,
                AppendError::Refused(_) => false,
            },
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
    ack_wait: Duration,
    attempt_timeout: Duration,
    /// Cancelled when what still runs has to be given back.
    leave: CancellationToken,
}

impl<S: Step> Worker<S> {
    pub(crate) fn new(
        step: Arc<S>,
        log: OrderLog,
        config: &ProcessorConfig,
        leave: CancellationToken,
    ) -> Self {
        Self { step, log, ack_wait: config.ack_wait, attempt_timeout: config.attempt_timeout, leave }
    }

    /// Brings one message to its end.
    pub(crate) async fn handle(&self, message: Message) -> Found {
        let (sequence, deliveries) = match message.info() {
            Ok(info) => (Revision(info.stream_sequence), info.delivered),
            Err(error) => {
                error!(step = S::NAME, subject = %message.subject, %error, "not a message of a consumer");
                return Found::Nothing;
            }
        };
        let decoded =
            Recorded::decode(&message.subject, sequence, message.headers.as_ref(), message.payload.clone());
        let event = match decoded {
            Ok(event) => event,
            Err(reason) => {
                // Redelivering it would change nothing. It stays in the stream, where its sequence finds it.
                error!(step = S::NAME, sequence = sequence.0, subject = %message.subject, %reason, "undecodable message set aside");
                acknowledge::<S>(&message, AckKind::Term).await;
                return Found::Nothing;
            }
        };

        let (id, trace) =
            (event.id, event.trace.as_ref().map_or_else(TraceContext::root, TraceContext::child));
        // A step that panics has failed with this order, and goes on with others.
        let attempt = AssertUnwindSafe(self.attempt(event, deliveries, &trace)).catch_unwind();
        let attempt = timeout(self.attempt_timeout, attempt);
        let outcome = select! {
            biased;
            () = self.leave.cancelled() => {
                give_back::<S>(&message).await;
                return Found::Nothing;
            }
            outcome = self.keep_alive(&message, attempt) => match outcome {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) => Err(Unfinished::Panicked),
                Err(_) => Err(Unfinished::TimedOut(self.attempt_timeout)),
            },
        };
        match outcome {
            Ok(()) => {
                acknowledge::<S>(&message, AckKind::Ack).await;
                Found::Served
            }
            Err(reason) => {
                let delay = RETRY.after(u64::try_from(deliveries).unwrap_or(1));
                let trace_id = trace.trace_id();
                warn!(step = S::NAME, order_id = %id, trace_id, deliveries, %reason, ?delay, "order tried again later");
                acknowledge::<S>(&message, AckKind::Nak(Some(delay))).await;
                if reason.is_away() { Found::Away } else { Found::Nothing }
            }
        }
    }

    /// Tells the broker again and again that the message is being worked on, while it is.
    async fn keep_alive<T>(&self, message: &Message, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            select! {
                biased;
                done = &mut work => return done,
                () = sleep(self.ack_wait / 3) => acknowledge::<S>(message, AckKind::Progress).await,
            }
        }
    }

    /// One attempt at the order of `event`: effect, then append. Loses no effect to a race: when the order has
    /// changed in between, it is looked at again, and what is no longer wanted is compensated.
    async fn attempt(
        &self,
        event: Recorded,
        deliveries: i64,
        trace: &TraceContext,
    ) -> Result<(), Unfinished> {
        // Another worker may have been at it before; then the event tells less than the log.
        let redelivered = deliveries > 1;
        let mut current = if redelivered {
            self.log.load_latest(&event.id).await?.ok_or(Unfinished::Gone(event.id))?
        } else {
            OrderState::from(event)
        };
        // A worker that died may have acted for it, and not have lived to append.
        let mut acted = redelivered;
        loop {
            let fact = match self.step.handle(&current.order).await {
                Ok(Some(fact)) => fact,
                Ok(None) if acted => return Ok(self.step.compensate(&current.order).await?),
                Ok(None) => return Ok(()),
                Err(error) => error.into_rejection(S::NAME)?,
            };
            acted = true;
            match self.log.append(&current, fact, trace, Instant::now() + APPEND_TIMEOUT).await? {
                Appended::Stored(order) => {
                    let (order_id, revision) = (order.id, order.order.revision);
                    let status = order.order.status().as_str_name();
                    debug!(step = S::NAME, %order_id, trace_id = trace.trace_id(), revision, status, "done");
                    return Ok(());
                }
                Appended::Overtaken(now) => current = now,
            }
        }
    }
}

/// Sends the last word on a message. A word that is lost leads to a redelivery, which finds the work done.
async fn acknowledge<S: Step>(message: &Message, kind: AckKind) {
    if let Err(error) = message.ack_with(kind).await {
        warn!(step = S::NAME, %error, "acknowledgement not sent");
    }
}

/// Leaves a message that nobody works on to whoever is there next.
pub(crate) async fn give_back<S: Step>(message: &Message) {
    acknowledge::<S>(message, AckKind::Nak(Some(RETRY.initial))).await;
}
