//! Whether the broker has storage space. While it has none, an occasional write probes for space, and all others are
//! rejected without being sent.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use program::backoff::Backoff;
use program::metrics::{self, KeyValue};
use program::telemetry::LogThrottle;
use tokio::time::Instant;
use tracing::{error, info};

use crate::broker::streams::names::{DEAD_LETTERS, ORDERS};

/// Pauses between two probes for storage space. Free space is detected that late.
const PROBE: Backoff = Backoff { initial: Duration::from_millis(500), max: Duration::from_secs(5) };
/// How long a probe may take; no other write is sent meanwhile.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a result is valid. A program that stops writing no longer knows the state.
const SEEN_MAX: Duration = Duration::from_secs(60);
/// Pause between two lines of one condition.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// The streams that have no space, as this program's writes have found. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Storage(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Whether any stream has no space, so that a normal write takes no lock.
    is_any_full: AtomicBool,
    /// `None` for a stream that had no space and has some again.
    streams: Mutex<BTreeMap<&'static str, Option<FullStream>>>,
    /// Whether a write has gone unanswered, for longer than its caller waited.
    is_suspect: AtomicBool,
}

#[derive(Debug)]
struct FullStream {
    reason: String,
    since: Instant,
    /// When a write last found no space.
    seen: Instant,
    /// Writes that found no space.
    probes: u64,
    probe_at: Instant,
    /// Whether a probe is in flight.
    is_probed: bool,
    throttle: LogThrottle,
}

impl FullStream {
    fn holds(&self) -> bool {
        self.seen.elapsed() < SEEN_MAX
    }
}

impl Storage {
    /// Why there is no space for a write to this stream. If a probe is due, there may be some, and this caller's write
    /// is the probe.
    pub fn admit(&self, stream: &str) -> Result<(), String> {
        self.admit_at(stream, Instant::now())
    }

    fn admit_at(&self, stream: &str, now: Instant) -> Result<(), String> {
        if !self.0.is_any_full.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut streams = self.streams();
        let Some(Some(full)) = streams.get_mut(stream) else { return Ok(()) };
        if now >= full.probe_at {
            full.probe_at = now + PROBE_TIMEOUT;
            full.is_probed = true;
            return Ok(());
        }
        if let Some(left_out) = full.throttle.allow() {
            error!(stream, reason = full.reason, left_out, "no storage space; writes are rejected");
        }
        Err(full.reason.clone())
    }

    /// A write has found no space.
    pub fn found_full(&self, stream: &'static str, reason: &str) {
        self.found_full_at(stream, reason, Instant::now());
    }

    fn found_full_at(&self, stream: &'static str, reason: &str, now: Instant) {
        let mut streams = self.streams();
        let full = streams.entry(stream).or_default().get_or_insert_with(|| FullStream {
            reason: String::new(),
            since: now,
            seen: now,
            probes: 0,
            probe_at: now,
            is_probed: true,
            throttle: LogThrottle::every(LOG_INTERVAL),
        });
        // Many writes in flight fail at once; only the probe lengthens the pause.
        if std::mem::take(&mut full.is_probed) {
            full.probes += 1;
            full.probe_at = now + PROBE.after(full.probes);
        }
        full.seen = now;
        reason.clone_into(&mut full.reason);
        if let Some(left_out) = full.throttle.allow() {
            error!(stream, reason, left_out, "no storage space; writes are rejected");
        }
        self.0.is_any_full.store(true, Ordering::Relaxed);
    }

    /// A probe for storage space had no conclusive result. The next one follows after a backoff.
    pub fn found_nothing(&self, stream: &str) {
        if !self.0.is_any_full.load(Ordering::Relaxed) {
            return;
        }
        let now = Instant::now();
        if let Some(Some(full)) = self.streams().get_mut(stream)
            && std::mem::take(&mut full.is_probed)
        {
            full.probes += 1;
            full.probe_at = now + PROBE.after(full.probes);
            full.seen = now;
        }
    }

    /// A write was rejected because of an existing message, which does not show whether there is space. The next write
    /// is the probe.
    pub fn found_conflict(&self, stream: &str) {
        if !self.is_any_full() {
            return;
        }
        if let Some(Some(full)) = self.streams().get_mut(stream)
            && std::mem::take(&mut full.is_probed)
        {
            full.probe_at = Instant::now();
        }
    }

    /// A write was stored, or would probably be stored.
    pub fn found_space(&self, stream: &str) {
        if !self.0.is_any_full.load(Ordering::Relaxed) {
            return;
        }
        let mut streams = self.streams();
        if let Some(full) = streams.get_mut(stream).and_then(Option::take) {
            info!(stream, after = ?full.since.elapsed(), "storage space available again");
        }
        self.0.is_any_full.store(streams.values().any(Option::is_some), Ordering::Relaxed);
    }

    /// The broker may be another one: the next write is the probe.
    pub(crate) fn forget_pauses(&self) {
        let now = Instant::now();
        for full in self.streams().values_mut().flatten() {
            full.probe_at = now;
        }
    }

    /// Why the stream takes no writes, if it has no space.
    pub fn full(&self, stream: &str) -> Option<String> {
        if !self.0.is_any_full.load(Ordering::Relaxed) {
            return None;
        }
        let streams = self.streams();
        let full = streams.get(stream)?.as_ref().filter(|full| full.holds())?;
        Some(full.reason.clone())
    }

    /// Whether any stream has no space.
    pub fn is_any_full(&self) -> bool {
        self.0.is_any_full.load(Ordering::Relaxed)
    }

    /// Leaves the probe for storage space to the next write.
    pub(crate) fn assume_space(&self, stream: &str) {
        let mut streams = self.streams();
        streams.get_mut(stream).and_then(Option::take);
        self.0.is_any_full.store(streams.values().any(Option::is_some), Ordering::Relaxed);
    }

    /// A write went unanswered, and its caller does not wait to find out why.
    pub(crate) fn suspect(&self) {
        self.0.is_suspect.store(true, Ordering::Relaxed);
    }

    /// Whether a write went unanswered since the last call.
    pub(crate) fn take_suspicion(&self) -> bool {
        self.0.is_suspect.swap(false, Ordering::Relaxed)
    }

    /// When the next probe for storage space is due; `None` if there is space.
    pub(crate) fn probe_at(&self, stream: &str) -> Option<Instant> {
        Some(self.streams().get(stream)?.as_ref()?.probe_at)
    }

    pub(crate) fn measure(&self) {
        let storage = self.clone();
        metrics::gauge(
            "waybill.storage.full",
            "1 while the broker has no storage space for a stream.",
            move |gauge| {
                let mut states = BTreeMap::from([(ORDERS, false), (DEAD_LETTERS, false)]);
                states.extend(
                    storage
                        .streams()
                        .iter()
                        .map(|(stream, full)| (*stream, full.as_ref().is_some_and(FullStream::holds))),
                );
                for (stream, is_full) in states {
                    gauge.observe(is_full.into(), &[KeyValue::new("stream", stream)]);
                }
            },
        );
    }

    /// No holder panics, so a poisoned lock is used as it is.
    fn streams(&self) -> MutexGuard<'_, BTreeMap<&'static str, Option<FullStream>>> {
        self.0.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_write_probes_and_the_others_are_rejected() {
        let (storage, now) = (Storage::default(), Instant::now());
        assert_eq!(storage.admit_at(ORDERS, now), Ok(()));
        storage.found_full_at(ORDERS, "maximum bytes exceeded", now);
        // All writes in flight.
        for _ in 0..100 {
            storage.found_full_at(ORDERS, "maximum bytes exceeded", now);
        }
        assert_eq!(storage.admit_at(ORDERS, now), Err("maximum bytes exceeded".to_owned()));
        assert_eq!(storage.admit_at(DEAD_LETTERS, now), Ok(()), "another stream");
        let due = now + PROBE.initial;
        let admitted = (0..100).filter(|_| storage.admit_at(ORDERS, due).is_ok()).count();
        assert_eq!(admitted, 1);
        storage.found_full_at(ORDERS, "maximum bytes exceeded", due);
        assert!(storage.admit_at(ORDERS, due).is_err());
        storage.found_space(ORDERS);
        assert_eq!((storage.admit_at(ORDERS, due), storage.full(ORDERS)), (Ok(()), None));
    }

    #[test]
    fn pauses_grow_and_are_bounded() {
        let (storage, mut now) = (Storage::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..10 {
            storage.found_full_at(ORDERS, "full", now);
            let probe_at = storage.probe_at(ORDERS).unwrap();
            pauses.push(probe_at - now);
            now = probe_at;
            assert_eq!(storage.admit_at(ORDERS, now), Ok(()));
        }
        assert!(pauses[0] <= PROBE.initial && pauses.iter().all(|pause| *pause <= PROBE.max), "{pauses:?}");
        assert!(pauses[9] >= PROBE.max / 2, "{pauses:?}");
    }

    #[test]
    fn an_abandoned_probe_is_followed_by_another() {
        let (storage, now) = (Storage::default(), Instant::now());
        storage.found_full_at(ORDERS, "full", now);
        let due = now + PROBE.initial;
        assert_eq!(storage.admit_at(ORDERS, due), Ok(()));
        assert!(storage.admit_at(ORDERS, due + PROBE_TIMEOUT / 2).is_err());
        assert_eq!(storage.admit_at(ORDERS, due + PROBE_TIMEOUT), Ok(()));
    }

    #[test]
    fn after_a_reconnect_the_next_write_probes() {
        let (storage, now) = (Storage::default(), Instant::now());
        storage.found_full_at(ORDERS, "full", now);
        storage.forget_pauses();
        assert_eq!(storage.admit_at(ORDERS, Instant::now()), Ok(()));
        assert!(storage.full(ORDERS).is_some());
    }
}
