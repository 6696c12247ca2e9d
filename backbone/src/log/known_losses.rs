//! The event losses that this process knows of, and how the stream's metadata records them.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_nats::jetstream::stream::Config;
use prost_types::Timestamp;
use tokio::sync::watch;
use tracing::{error, info};

use super::ids::Revision;
use super::loss::Loss;

/// In the stream's metadata: how many events are lost and when the loss was detected, as `<events>@<RFC 3339 time>`.
pub(super) const LOST: &str = "waybill_lost_events";
/// And when an operator has acknowledged it.
pub(super) const ACKNOWLEDGED: &str = "waybill_loss_acknowledged";

/// What this process knows of lost events. There is one log, however many have it open.
pub(super) static LOSSES: LazyLock<Losses> = LazyLock::new(Losses::default);

#[derive(Debug, Default)]
pub(super) struct Losses {
    /// Lost events that no operator has acknowledged, and when the latest of these losses was detected.
    pub(super) unacknowledged: Mutex<Option<LossMark>>,
    /// Events that the log held at the last sample, and the sequence of the last one.
    pub(super) held: AtomicU64,
    pub(super) last: AtomicU64,
    /// The highest sequence that this process has appended since the log was made.
    pub(super) appended: AtomicU64,
    pub(super) counts: watch::Sender<LossCounts>,
    /// When an operator has last acknowledged losses.
    pub(super) acknowledged: Mutex<Option<SystemTime>>,
}

/// How often events were found to be lost since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LossCounts {
    /// The stream was another one: revisions start over, whether or not it held events.
    pub replaced: u64,
    /// Events were lost, so or otherwise.
    pub all: u64,
}

/// A loss as the stream's metadata have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LossMark {
    pub(super) events: u64,
    pub(super) at: SystemTime,
}

impl fmt::Display for LossMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.events, rfc3339(self.at))
    }
}

impl Losses {
    /// Logs it once, and notifies all waiting tasks.
    pub(super) fn report(&self, loss: &Loss, at: SystemTime) {
        let Loss { cause, events, sequences: (from, to), times: (from_time, to_time) } = loss;
        error!(
            events,
            from_sequence = from,
            to_sequence = to,
            from_time = rfc3339(*from_time),
            to_time = rfc3339(*to_time),
            cause = cause.as_str(),
            "the order log has lost events; orders may be lost"
        );
        let mut unacknowledged = self.unacknowledged();
        let before = unacknowledged.map_or(0, |mark| mark.events);
        *unacknowledged = Some(LossMark { events: before + events, at });
        drop(unacknowledged);
        self.counts.send_modify(|counts| counts.all += 1);
    }

    /// Forgets losses that were detected before `acknowledged`.
    pub(super) fn acknowledge(&self, acknowledged: SystemTime) {
        *self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner) = Some(acknowledged);
        if self.unacknowledged().take_if(|mark| mark.at <= acknowledged).is_some() {
            info!("loss of events acknowledged");
        }
    }

    /// No holder panics, so a poisoned lock is used as it is.
    pub(super) fn unacknowledged(&self) -> MutexGuard<'_, Option<LossMark>> {
        self.unacknowledged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// This process has stored an event at `sequence`.
pub(super) fn appended(Revision(sequence): Revision) {
    LOSSES.appended.fetch_max(sequence, Ordering::Relaxed);
}

/// The metadata of a stream that this process creates in place of one that held events. It is set from the start. So a
/// process that starts before the next sample knows that the stream is not the first.
pub(crate) fn mark_of_successor() -> Option<(String, String)> {
    let appended = LOSSES.appended.load(Ordering::Relaxed);
    let unseen = appended.saturating_sub(LOSSES.last.load(Ordering::Relaxed));
    let events = LOSSES.held.load(Ordering::Relaxed) + unseen;
    (events > 0).then(|| (LOST.to_owned(), LossMark { events, at: SystemTime::now() }.to_string()))
}

/// When an operator has last acknowledged losses, as far as this process has seen.
pub fn loss_acknowledged() -> Option<SystemTime> {
    *LOSSES.acknowledged.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn unacknowledged(config: &Config) -> Option<LossMark> {
    let acknowledged = time_in(config, ACKNOWLEDGED);
    mark_in(config).filter(|mark| acknowledged.is_none_or(|acknowledged| mark.at > acknowledged))
}

pub(super) fn mark_in(config: &Config) -> Option<LossMark> {
    let (events, at) = config.metadata.get(LOST)?.split_once('@')?;
    Some(LossMark { events: events.parse().ok()?, at: time_of(at)? })
}

pub(super) fn time_in(config: &Config, key: &str) -> Option<SystemTime> {
    time_of(config.metadata.get(key)?)
}

pub(super) fn time_of(text: &str) -> Option<SystemTime> {
    text.parse::<Timestamp>().ok()?.try_into().ok()
}

pub(super) fn rfc3339(time: SystemTime) -> String {
    Timestamp::from(time).to_string()
}
