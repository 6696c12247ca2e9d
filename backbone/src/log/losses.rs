//! Detecting that the log has lost events, and reporting it until an operator acknowledges it.
//!
//! Every program samples the stream once a second and compares the sample with the last one (`loss.rs`). It logs a loss
//! once, and counts it in a gauge. It also writes the loss to the stream's metadata, if its NATS user may do that. So
//! later processes know it too, until `waybill provision --acknowledge-loss`.

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{Config, Info};
use program::metrics;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, error, info};

use super::OrderLog;
use super::known_losses::{
    ACKNOWLEDGED, LOSSES, LOST, LossCounts, LossMark, mark_in, rfc3339, time_in, time_of, unacknowledged,
};
use super::loss::{EXPIRY_MARGIN, LogSample, Loss, LossCause, UnexpiredRange};
use crate::broker::connection::Connection;
use crate::broker::direct_get::{self, ReadError};
use crate::broker::streams::{ORDERS, PROVISION};
use crate::log::subjects::ORDER_BARRIER;

const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Until the first sample, which all others are compared with.
const FIRST_CHECK_INTERVAL: Duration = Duration::from_millis(50);
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// A sequence that has gone back is a loss only when it stays there for so long: a leader that was deposed and does not
/// know it yet answers from an older state.
const ROLLED_BACK_AFTER: Duration = Duration::from_secs(30);
/// Losses that are closer together than this are one loss, detected by several processes.
const SAME_LOSS: Duration = Duration::from_secs(60);
/// The answer to STREAM.INFO, with the broker's time.
#[derive(Clone)]
struct StreamAnswer {
    ts: String,
    info: Info,
    /// How many of the stream's messages are barriers, counted a moment later than the messages.
    barriers: u64,
}

/// The loss detector of one process.
struct LossDetector<'a> {
    log: &'a OrderLog,
    before: Option<LogSample>,
    /// The last sample before the sequence went back, and since when it has.
    rolled_back: Option<(LogSample, Instant)>,
}

impl OrderLog {
    /// Changes when events are found to be lost.
    pub fn losses(&self) -> watch::Receiver<LossCounts> {
        LOSSES.counts.subscribe()
    }

    /// Checks the stream periodically; never ends. Called once in a process.
    pub async fn watch_for_losses(&self) -> Infallible {
        metrics::gauge(
            "waybill.log.lost_events",
            "Events that the order log has lost and no operator has acknowledged.",
            move |gauge| gauge.observe(LOSSES.unacknowledged().map_or(0, |mark| mark.events), &[]),
        );
        let mut detector = LossDetector { log: self, before: None, rolled_back: None };
        loop {
            match timeout(CHECK_TIMEOUT, detector.check()).await {
                Ok(Ok(())) => {}
                // The broker is unavailable or the stream is missing: the next answer shows which.
                Ok(Err(error)) => debug!(%error, "order log not checked"),
                Err(_) => debug!("order log not checked: no answer in time"),
            }
            let is_first = detector.before.is_none();
            sleep(if is_first { FIRST_CHECK_INTERVAL } else { CHECK_INTERVAL }).await;
        }
    }

    /// Compares the log with records outside of it that name events up to `sequence`, the latest of them written at
    /// `at`. Reports a loss, and returns whether there is one. A loss that an operator has acknowledged does not count.
    pub async fn compare_with(&self, sequence: u64, at: SystemTime) -> Result<bool, ReadError> {
        let mut answer = ask(&self.connection).await?;
        if sequence > answer.info.state.last_sequence && answer.info.config.num_replicas > 1 {
            // The leader that answered may have been replaced.
            sleep(ROLLED_BACK_AFTER).await;
            answer = ask(&self.connection).await?;
        }
        let last = answer.info.state.last_sequence;
        let acknowledged = time_in(&answer.info.config, ACKNOWLEDGED);
        if sequence <= last || acknowledged.is_some_and(|acknowledged| acknowledged >= at) {
            return Ok(false);
        }
        let times = (answer.info.created.into(), at);
        let loss = Loss {
            cause: LossCause::Missing,
            events: sequence - last,
            sequences: (last + 1, sequence),
            times,
        };
        // A loss that was detected directly has more details.
        if LOSSES.unacknowledged().is_none() {
            LOSSES.report(&loss, SystemTime::now());
        }
        Ok(true)
    }
}

impl LossDetector<'_> {
    async fn check(&mut self) -> Result<(), ReadError> {
        let connection = &self.log.connection;
        let counted = ask(connection).await?;
        let answer =
            if counted.info.config.num_replicas > 1 { ask(connection).await? } else { counted.clone() };
        let mut sample = sample_of(&answer, barriers_max(&counted, &answer))?;
        if let Some(acknowledged) = time_in(&answer.info.config, ACKNOWLEDGED) {
            LOSSES.acknowledge(acknowledged);
        }
        sample.unexpired = self.unexpired_range(&sample).await;
        if self.before.is_none() {
            self.report_known(&answer.info.config);
        }
        if let Some(loss) = self.loss(&sample).await? {
            LOSSES.report(&loss, sample.at);
            record(connection, &answer.info.config, LossMark { events: loss.events, at: sample.at }).await;
        }
        // Until it is clear which answer is right, the later state stays the reference.
        if self.rolled_back.is_none() {
            LOSSES.held.store(sample.events(), Ordering::Relaxed);
            LOSSES.last.store(sample.last, Ordering::Relaxed);
            self.before = Some(sample);
        }
        Ok(())
    }

    /// The loss since the last sample.
    async fn loss(&mut self, sample: &LogSample) -> Result<Option<Loss>, ReadError> {
        let Some(before) = &self.before else { return Ok(None) };
        if sample.created != before.created {
            self.rolled_back = None;
            let appended = LOSSES.appended.swap(0, Ordering::Relaxed);
            let lost = sample.lost_since(&before.with_append(appended, sample.at));
            // Revisions restart, even if no loss is known.
            LOSSES.counts.send_modify(|counts| counts.replaced += 1);
            return Ok(lost);
        }
        if sample.last >= before.last && self.rolled_back.is_none() {
            return Ok(sample.lost_since(before));
        }
        let (before, since) =
            self.rolled_back.get_or_insert_with(|| (before.clone(), Instant::now())).clone();
        if sample.last >= before.last {
            self.rolled_back = None;
            // Other events may have taken the sequences of the lost ones. An expired barrier is not a loss.
            if self.log.stored_at(before.last).await?.is_none_or(|stored| stored == before.last_time) {
                return Ok(sample.lost_since(&before));
            }
        } else if since.elapsed() < ROLLED_BACK_AFTER {
            return Ok(None);
        }
        self.rolled_back = None;
        let first_lost = sample.last.min(before.last) + 1;
        Ok(Some(Loss {
            cause: LossCause::RolledBack,
            events: (before.last + 1).saturating_sub(first_lost).max(1),
            sequences: (first_lost.min(before.last), before.last),
            times: (sample.last_time.min(before.last_time), before.last_time),
        }))
    }

    /// Range of messages that cannot expire soon. Read occasionally, and only while messages can expire.
    async fn unexpired_range(&self, sample: &LogSample) -> Option<UnexpiredRange> {
        let margin = EXPIRY_MARGIN.min(sample.max_age / 2);
        let known = self.before.as_ref().filter(|before| before.created == sample.created);
        let known = known.and_then(|before| before.unexpired);
        if let Some(unexpired) = known.filter(|unexpired| sample.at + margin / 2 < unexpired.until) {
            return Some(unexpired);
        }
        let until = sample.at + margin;
        if !sample.expires_within(margin) {
            return Some(UnexpiredRange { from: sample.first, until });
        }
        let from = sample.at.checked_sub(sample.max_age)? + margin;
        match direct_get::first_since(&self.log.connection.client, ORDERS, from).await {
            Ok(first) => Some(UnexpiredRange { from: first.map_or(sample.last + 1, |first| first.0), until }),
            Err(error) => {
                debug!(%error, "expiring events not determined");
                known
            }
        }
    }

    /// A loss that an earlier process detected, and that no operator has acknowledged.
    fn report_known(&self, config: &Config) {
        let Some(mark) = unacknowledged(config) else { return };
        let LossMark { events, at } = mark;
        error!(
            events,
            noticed_at = rfc3339(at),
            "the order log has lost events; loss not acknowledged yet (waybill provision --acknowledge-loss)"
        );
        LOSSES.unacknowledged().get_or_insert(mark);
    }
}

/// Has every program forget the losses that were detected so far.
pub async fn acknowledge_loss(connection: &Connection) -> Result<(), ReadError> {
    let mut config = ask(connection).await?.info.config;
    config.metadata.remove(LOST);
    config.metadata.insert(ACKNOWLEDGED.to_owned(), rfc3339(SystemTime::now()));
    update(connection, config).await
}

/// Whether the log has ever lost events, acknowledged or not, or stands in for a log that was lost.
pub async fn has_ever_lost_events(connection: &Connection) -> Result<bool, ReadError> {
    let config = ask(connection).await?.info.config;
    Ok([LOST, ACKNOWLEDGED].iter().any(|key| config.metadata.contains_key(*key)))
}

/// Writes the loss to the stream's metadata, unless another process has done so.
async fn record(connection: &Connection, config: &Config, mark: LossMark) {
    let mut config = config.clone();
    let recorded = mark_in(&config);
    if recorded.is_some_and(|recorded| distance(recorded.at, mark.at) < SAME_LOSS) {
        return;
    }
    let events = mark.events + unacknowledged(&config).map_or(0, |mark| mark.events);
    config.metadata.insert(LOST.to_owned(), LossMark { events, ..mark }.to_string());
    if let Err(error) = update(connection, config).await {
        // The gauge reports the loss while this process runs.
        info!(%error, "loss not recorded in the stream's metadata");
    }
}

async fn update(connection: &Connection, config: Config) -> Result<(), ReadError> {
    let updating = connection.jetstream.update_stream(config);
    match connection.if_allowed(&format!("$JS.API.STREAM.UPDATE.{ORDERS}"), updating).await {
        Some(Ok(_)) => Ok(()),
        Some(Err(error)) => Err(ReadError::NoAnswer(error.to_string())),
        None => Err(ReadError::Broker(PROVISION.to_owned())),
    }
}

async fn ask(connection: &Connection) -> Result<StreamAnswer, ReadError> {
    direct_get::reachable(&connection.client)?;
    let asked: Result<Response<Value>, _> = connection
        .jetstream
        .request(format!("STREAM.INFO.{ORDERS}"), &json!({ "subjects_filter": ORDER_BARRIER }))
        .await;
    match asked {
        Ok(Response::Ok(answer)) => answer_of(answer),
        Ok(Response::Err { error }) => Err(ReadError::NoAnswer(error.to_string())),
        Err(error) => Err(ReadError::NoAnswer(error.to_string())),
    }
}

fn answer_of(answer: Value) -> Result<StreamAnswer, ReadError> {
    let barriers = answer["state"]["subjects"][ORDER_BARRIER].as_u64().unwrap_or_default();
    let ts = answer["ts"].as_str().unwrap_or_default().to_owned();
    let info = serde_json::from_value(answer).map_err(|error| ReadError::Broker(error.to_string()))?;
    Ok(StreamAnswer { ts, info, barriers })
}

/// How many of the messages of `answer` are barriers, at the most. The broker counts messages first and barriers then, and a
/// barrier that expires in between would pass for an event. So those that were counted before hold, with all that was written
/// since.
fn barriers_max(counted: &StreamAnswer, answer: &StreamAnswer) -> u64 {
    if counted.info.created != answer.info.created {
        return answer.barriers;
    }
    let written = answer.info.state.last_sequence.saturating_sub(counted.info.state.last_sequence);
    (counted.barriers + written).max(answer.barriers)
}

fn sample_of(StreamAnswer { ts, info, .. }: &StreamAnswer, barriers: u64) -> Result<LogSample, ReadError> {
    let at = time_of(ts).ok_or_else(|| ReadError::Broker(format!("the time {ts}")))?;
    let (config, state) = (&info.config, &info.state);
    Ok(LogSample {
        at,
        created: info.created.into(),
        max_age: config.max_age,
        messages: state.messages,
        barriers,
        first: state.first_sequence,
        last: state.last_sequence,
        first_time: state.first_timestamp.into(),
        last_time: state.last_timestamp.into(),
        unexpired: None,
    })
}

fn distance(one: SystemTime, other: SystemTime) -> Duration {
    one.duration_since(other).or_else(|_| other.duration_since(one)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(messages: u64, last: u64, barriers: u64) -> StreamAnswer {
        let time = "2026-11-30T10:00:00Z";
        let answer = json!({
            "ts": time,
            "created": time,
            "config": { "name": ORDERS, "subjects": [], "retention": "limits", "max_consumers": -1, "max_msgs": -1,
                "max_bytes": -1, "max_age": 0, "max_msgs_per_subject": -1, "max_msg_size": -1, "discard": "old",
                "storage": "file", "num_replicas": 3 },
            "state": { "messages": messages, "bytes": 0, "first_seq": 1, "first_ts": time, "last_seq": last,
                "last_ts": time, "consumer_count": 0, "subjects": { ORDER_BARRIER: barriers } },
        });
        answer_of(answer).unwrap()
    }

    /// The broker says that there are 100 messages, then eight barriers expire, and then it counts two of them.
    #[test]
    fn a_barrier_that_expires_while_the_broker_counts_is_no_event() {
        let (counted, racing) = (answer(99, 99, 9), answer(100, 100, 2));
        let before = sample_of(&racing, barriers_max(&counted, &racing)).unwrap();
        let after = sample_of(&answer(93, 101, 3), 3).unwrap();
        assert_eq!(after.lost_since(&before), None);
        assert!(after.lost_since(&sample_of(&racing, racing.barriers).unwrap()).is_some());
    }
}
