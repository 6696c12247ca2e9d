//! The runtime of a step: a pool of workers, each of which takes one message, finishes it, and only then
//! asks for the next. So nothing waits in memory, and what a dying process held is redelivered.
//!
//! For each order: effect, then append, then acknowledge. A crash between any two of them leads to a
//! redelivery, which finds the effect and the event already there.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::pull::MessagesErrorKind;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use backbone::backoff::Backoff;
use backbone::event::Recorded;
use backbone::ids::Revision;
use backbone::log::{AppendError, Appended, OrderLog, OrderState};
use backbone::stream::ORDERS;
use backbone::subjects;
use backbone::trace::TraceContext;
use futures::StreamExt;
use thiserror::Error;
use tokio::select;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::config::ProcessorConfig;
use crate::step::{Step, StepError};

/// Messages delivered and not yet acknowledged, over all replicas of a step. Orders that wait for their retry
/// count among them, so this bounds how many may fail at once before the others have to wait.
const ACK_PENDING_MAX: i64 = 10_000;
/// How long one request for a message stands.
const PULL_EXPIRY: Duration = Duration::from_secs(30);
/// A broker silent for two of these while a request stands has lost it.
const PULL_HEARTBEAT: Duration = Duration::from_secs(5);
/// How long an append may take; the attempt is repeated afterwards.
const APPEND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a leaving worker waits for a message that is already on its way to it.
const LAST_MESSAGE_TIMEOUT: Duration = Duration::from_millis(100);

const RETRY: Backoff = Backoff { initial: Duration::from_millis(200), max: Duration::from_secs(30) };
const REOPEN: Backoff = Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(2) };

/// Works for `step` until `drain` is cancelled and every worker has finished what it holds.
pub(crate) async fn process<S: Step>(
    step: Arc<S>,
    log: OrderLog,
    config: &ProcessorConfig,
    drain: &CancellationToken,
) -> anyhow::Result<()> {
    let mut workers = JoinSet::new();
    let worker_pool_size = config.worker_pool_size.unwrap_or(S::WORKER_POOL_SIZE);
    for _ in 0..worker_pool_size {
        let worker = Worker {
            step: step.clone(),
            log: log.clone(),
            drain: drain.clone(),
            ack_wait: config.ack_wait,
            attempt_timeout: config.attempt_timeout,
        };
        workers.spawn(worker.run());
    }
    info!(step = S::NAME, workers = worker_pool_size, "processing");
    while let Some(ended) = workers.join_next().await {
        ended?;
    }
    Ok(())
}

/// Why an order could not be finished this time; it is tried again later.
#[derive(Debug, Error)]
enum Unfinished {
    #[error(transparent)]
    Step(#[from] StepError),
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error(transparent)]
    Read(#[from] backbone::direct_get::ReadError),
    #[error("order {0} is no longer kept")]
    Gone(backbone::ids::OrderId),
    #[error("the attempt took longer than {0:?}")]
    TimedOut(Duration),
}

struct Worker<S> {
    step: Arc<S>,
    log: OrderLog,
    drain: CancellationToken,
    ack_wait: Duration,
    attempt_timeout: Duration,
}

impl<S: Step> Worker<S> {
    async fn run(self) {
        let mut failures = 0;
        while !self.drain.is_cancelled() {
            match self.open().await {
                Ok(messages) => {
                    failures = 0;
                    self.consume(messages).await;
                }
                Err(error) => {
                    failures += 1;
                    warn!(step = S::NAME, %error, "consumer not open, tried again");
                }
            }
            select! {
                () = self.drain.cancelled() => {}
                () = sleep(REOPEN.after(failures)) => {}
            }
        }
    }

    /// Opens the step's durable consumer, which all its workers and replicas share, for one message at a time.
    async fn open(&self) -> Result<pull::Stream, async_nats::Error> {
        let jetstream = self.log.connection().jetstream();
        let durable = pull::Config {
            durable_name: Some(S::NAME.to_owned()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.ack_wait,
            max_ack_pending: ACK_PENDING_MAX,
            filter_subjects: S::EVENTS.iter().map(|kind| subjects::kind(*kind)).collect(),
            ..pull::Config::default()
        };
        let stream = jetstream.get_stream_no_info(ORDERS).await?;
        let consumer: PullConsumer = stream.create_consumer(durable).await?;
        let messages =
            consumer.stream().max_messages_per_batch(1).expires(PULL_EXPIRY).heartbeat(PULL_HEARTBEAT);
        Ok(messages.messages().await?)
    }

    /// Handles messages until the drain begins or the consumer has to be opened anew.
    async fn consume(&self, mut messages: pull::Stream) {
        loop {
            let message = select! {
                biased;
                () = self.drain.cancelled() => return give_back(messages).await,
                message = messages.next() => message,
            };
            match message {
                Some(Ok(message)) => self.handle(message).await,
                // The broker is away; the stream of messages goes on by itself when it is back.
                Some(Err(error)) if matches!(error.kind(), MessagesErrorKind::MissingHeartbeat) => {
                    debug!(step = S::NAME, "no heartbeat from the broker");
                }
                Some(Err(error)) => {
                    warn!(step = S::NAME, %error, "consumer lost, opened anew");
                    return;
                }
                None => return,
            }
        }
    }

    /// Brings one message to its end: acknowledged, to be redelivered later, or set aside.
    async fn handle(&self, message: Message) {
        let (sequence, deliveries) = match message.info() {
            Ok(info) => (Revision(info.stream_sequence), info.delivered),
            Err(error) => {
                error!(step = S::NAME, subject = %message.subject, %error, "not a message of a consumer");
                return;
            }
        };
        let decoded =
            Recorded::decode(&message.subject, sequence, message.headers.as_ref(), message.payload.clone());
        let event = match decoded {
            Ok(event) => event,
            Err(reason) => {
                // Redelivering it would change nothing. It stays in the stream, where its sequence finds it.
                error!(step = S::NAME, sequence = sequence.0, subject = %message.subject, %reason, "undecodable message set aside");
                return acknowledge::<S>(&message, AckKind::Term).await;
            }
        };

        let (id, trace) =
            (event.id, event.trace.as_ref().map_or_else(TraceContext::root, TraceContext::child));
        let attempt = timeout(self.attempt_timeout, self.attempt(event, deliveries, &trace));
        let outcome = self.keep_alive(&message, attempt).await;
        match outcome.unwrap_or(Err(Unfinished::TimedOut(self.attempt_timeout))) {
            Ok(()) => acknowledge::<S>(&message, AckKind::Ack).await,
            Err(reason) => {
                let delay = RETRY.after(u64::try_from(deliveries).unwrap_or(1));
                let trace_id = trace.trace_id();
                warn!(step = S::NAME, order_id = %id, trace_id, deliveries, %reason, ?delay, "order tried again later");
                acknowledge::<S>(&message, AckKind::Nak(Some(delay))).await;
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

/// A message may be on its way to a worker that leaves: give it back rather than let the others wait. Looks
/// once, because the look after a message asks the broker for the next one.
async fn give_back(mut messages: pull::Stream) {
    if let Ok(Some(Ok(message))) = timeout(LAST_MESSAGE_TIMEOUT, messages.next()).await
        && let Err(error) = message.ack_with(AckKind::Nak(Some(RETRY.initial))).await
    {
        warn!(%error, "message not given back");
    }
}
