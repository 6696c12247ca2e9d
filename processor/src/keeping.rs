//! Renewing the effects of carried orders, for a step whose effects expire. A `carried` event wakes only the step whose
//! turn it is, so such a step has a second consumer, of every `carried` event.
//!
//! A renewal that fails is retried until it succeeds: an order is carried long before its effects expire.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{AckKind, Message};
use backbone::broker::connection::Connection;
use backbone::consumer::{Consumer, ConsumerConfig, ConsumerError};
use backbone::log::event::Recorded;
use backbone::log::ids::Revision;
use backbone::log::lifecycle::is_finished;
use program::telemetry::LogThrottle;
use tokio::select;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::breaker::BreakerState;
use crate::config::ProcessorConfig;
use crate::delivery::{RETRY, acknowledge};
use crate::metrics;
use crate::runtime::REOPEN;
use crate::status::Status;
use crate::step::{Step, StepProfile, for_step};

/// Renewals in progress.
const RENEWALS_MAX: usize = 64;
/// How long renewals may take after the drain has begun; the broker redelivers the others.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

static NOT_RENEWED: LogThrottle = LogThrottle::every(Duration::from_secs(30));

/// Renews the effects of carried orders until `drain` is cancelled.
pub(crate) async fn keep<S: Step>(
    profile: StepProfile,
    step: Arc<S>,
    connection: &Connection,
    config: &ProcessorConfig,
    status: &Status,
    drain: &CancellationToken,
) {
    let consumer = ConsumerConfig::of_carried(status.consumer(), config.ack_wait);
    metrics::start_consumer(status.consumer());
    status.set_workers(RENEWALS_MAX);
    let mut renewals = JoinSet::new();
    let (mut failures, mut floor) = (0, None);
    while !drain.is_cancelled() {
        let opened = select! {
            () = drain.cancelled() => break,
            opened = Consumer::open(connection, &consumer, floor.as_ref()) => opened,
        };
        match opened {
            Ok(mut open) => {
                let opened_at = Instant::now();
                status.opened(open.wrong());
                let ended = renew_all(
                    profile,
                    &step,
                    &mut open,
                    &mut renewals,
                    config.attempt_timeout,
                    status,
                    drain,
                )
                .await;
                let reason = ended.as_ref().err().map(ToString::to_string);
                status.closed(reason.unwrap_or_else(|| "draining".to_owned()));
                floor = Some(open.floor().clone());
                failures = if opened_at.elapsed() > REOPEN.max { 0 } else { failures + 1 };
                if let Err(reason) = ended {
                    metrics::reopened(status.consumer(), &reason);
                    warn!(consumer = consumer.name, %reason, "consumer lost, reopened");
                }
            }
            Err(error) => {
                failures += 1;
                status.closed(error.to_string());
                warn!(consumer = consumer.name, %error, "consumer not opened, retrying");
            }
        }
        select! {
            () = drain.cancelled() => {}
            () = sleep(REOPEN.after(failures)) => {}
        }
    }
    let finished = timeout(DRAIN_TIMEOUT, async { while renewals.join_next().await.is_some() {} }).await;
    if finished.is_err() {
        debug!(
            consumer = consumer.name,
            unfinished = renewals.len(),
            "drain timeout reached, renewals abandoned"
        );
    }
}

/// Renews until the drain begins or the consumer is lost.
async fn renew_all<S: Step>(
    profile: StepProfile,
    step: &Arc<S>,
    consumer: &mut Consumer,
    renewals: &mut JoinSet<()>,
    limit: Duration,
    status: &Status,
    drain: &CancellationToken,
) -> Result<(), ConsumerError> {
    loop {
        status.set_in_flight(renewals.len(), BreakerState::Closed);
        let wanted = RENEWALS_MAX.saturating_sub(renewals.len());
        select! {
            biased;
            () = drain.cancelled() => return Ok(()),
            Some(ended) = renewals.join_next() => {
                if let Err(error) = ended {
                    error!(step = profile.name, %error, "renewal panicked");
                }
            }
            message = consumer.next(wanted), if wanted > 0 || consumer.standing() > 0 => {
                let message = message?;
                status.record_delivery();
                renewals.spawn(renew(profile, step.clone(), message, limit));
            }
        }
    }
}

/// Renews the effects of one order, and acknowledges its message.
async fn renew<S: Step>(profile: StepProfile, step: Arc<S>, message: Message, limit: Duration) {
    let (sequence, deliveries) = message
        .info()
        .map_or((0, 1), |info| (info.stream_sequence, u64::try_from(info.delivered).unwrap_or(1)));
    let payload = message.payload.clone();
    let event = match Recorded::decode(
        &message.subject,
        Revision(sequence),
        message.headers.as_ref(),
        payload,
    ) {
        Ok(event) => event,
        Err(error) => {
            warn!(step = profile.name, sequence, subject = %message.subject, %error, "foreign message, skipped");
            return acknowledge(profile.name, &message, AckKind::Ack).await;
        }
    };
    let order_id = event.id;
    let failure = if is_finished(&event.order) {
        None
    } else {
        match timeout(limit, step.keep(&for_step(profile, &event.order))).await {
            Ok(kept) => kept.err().map(|error| error.to_string()),
            Err(_) => Some(format!("took longer than {limit:?}")),
        }
    };
    let kind = match failure {
        None => AckKind::Ack,
        Some(error) => {
            if let Some(left_out) = NOT_RENEWED.allow() {
                warn!(step = profile.name, %order_id, error, left_out, "effect of a carried order not renewed, retrying");
            }
            AckKind::Nak(Some(RETRY.after(deliveries)))
        }
    };
    acknowledge(profile.name, &message, kind).await;
}
