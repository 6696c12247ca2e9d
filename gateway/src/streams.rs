//! The state of the two streams: for metrics, and for the durability of orders.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backbone::broker::connection::Connection;
use backbone::broker::streams::{DEAD_LETTERS, ORDERS, StreamConfig, StreamState};
use backbone::dead_letters::{Contents, DeadLetters};
use program::metrics::{self, AsyncInstrument, KeyValue};
use tokio::join;
use tokio::sync::Notify;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::durability::{DurabilityLevel, Monitors, RequiredDurability};
use crate::lost_letters::LostLetters;

/// How often slowly changing state is read: the dead letters, and the servers' monitoring.
const REFRESH_INTERVAL: Duration = Duration::from_secs(15);
const REFRESH_TIMEOUT: Duration = Duration::from_secs(5);
/// Steps whose open dead letters are counted one by one; those of others are counted together.
const STEPS_MAX: usize = 32;
const OTHER: &str = "other";

/// The last known state of the streams. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Streams {
    known: Arc<Mutex<StreamsState>>,
    /// Requests a read of the slowly changing state now.
    refresh_now: Arc<Notify>,
    connection: Connection,
    wanted: RequiredDurability,
    /// Configured replicas.
    replicas: Option<u8>,
}

/// A value that cannot be read is unknown, and missing rather than old.
#[derive(Debug, Default)]
struct StreamsState {
    orders: Option<StreamState>,
    letters: Option<StreamState>,
    /// Open dead letters by step. A step that had some stays, with 0.
    open_letters: Option<BTreeMap<String, u64>>,
    lost_letters: LostLetters,
    /// Servers by name, and whether they sync every write.
    fsyncs: HashMap<String, bool>,
    /// The connection (by its number) on which they were read.
    fsyncs_at: u64,
    level: Option<DurabilityLevel>,
    /// The connection (by its number) on which the level was read: after a reconnect it may be another broker.
    found_at: u64,
}

impl Streams {
    pub(crate) fn new(connection: Connection, wanted: RequiredDurability, config: &StreamConfig) -> Self {
        let streams = Self {
            known: Arc::default(),
            refresh_now: Arc::default(),
            connection,
            wanted,
            replicas: config.orders_replicas,
        };
        streams.measure();
        streams
    }

    /// Records the state of the order log, or that it could not be read. Returns why it cannot keep orders, if so.
    pub(crate) fn record_orders(&self, orders: Option<StreamState>, connects: u64) -> Result<(), String> {
        let mut known = self.known();
        known.orders = orders;
        // What servers reported holds until they restart. This connection may notice a restart only by a log that does not
        // answer.
        let perhaps_restarted = known.fsyncs_at != connects || known.orders.is_none();
        if perhaps_restarted && !known.fsyncs.is_empty() {
            known.fsyncs.clear();
            self.refresh_now.notify_one();
        }
        known.found_at = connects;
        let Some(orders) = &known.orders else {
            known.level = None;
            return Ok(());
        };
        let level = DurabilityLevel::of(orders, &known.fsyncs);
        let (replicas, is_enough) = (orders.replicas, level.satisfies(self.wanted));
        if known.level.replace(level) != Some(level) {
            if is_enough {
                info!(level = level.as_str(), replicas, "durability of stream {ORDERS}: {level}");
            } else {
                warn!(
                    level = level.as_str(),
                    replicas, "durability of stream {ORDERS} below DURABILITY: {level}"
                );
            }
        }
        if is_enough { Ok(()) } else { Err(below_strict(level)) }
    }

    /// Clears the state when reading ends.
    pub(crate) fn clear(&self) {
        let mut known = self.known();
        known.orders = None;
        known.letters = None;
        known.open_letters = None;
    }

    /// Whether writes are as durable as configured; if not, why.
    pub(crate) fn check_durability(&self) -> Result<(), String> {
        if self.wanted == RequiredDurability::Any {
            return Ok(());
        }
        let known = self.known();
        match known.level {
            Some(level) if known.found_at == self.connects() => {
                if level.satisfies(self.wanted) {
                    Ok(())
                } else {
                    Err(below_strict(level))
                }
            }
            Some(_) | None => Err("durability is not known yet".to_owned()),
        }
    }

    /// The durability, if known.
    pub(crate) fn level(&self) -> Option<DurabilityLevel> {
        self.known().level
    }

    /// Why the broker is unavailable, if it is.
    pub(crate) fn broker_unavailable(&self) -> Option<String> {
        (!self.connection.is_up()).then(|| self.connection.away())
    }

    /// The missing permissions at the broker, if any.
    pub(crate) fn missing_permissions(&self) -> Option<String> {
        self.connection.refused()
    }

    /// How often the connection to the broker has come up.
    pub(crate) fn connects(&self) -> u64 {
        *self.connection.connects().borrow()
    }

    /// Reads the slowly changing state periodically.
    pub(crate) async fn keep_refreshing(&self, letters: &DeadLetters, monitors: Option<&Monitors>) {
        loop {
            // The timeout is the regular case.
            timeout(REFRESH_INTERVAL, self.refresh_now.notified()).await.ok();
            self.refresh(letters, monitors).await;
        }
    }

    /// Reads the slowly changing state once.
    pub(crate) async fn refresh(&self, letters: &DeadLetters, monitors: Option<&Monitors>) {
        let fsyncs = async {
            match monitors {
                Some(monitors) => monitors.ask().await,
                None => Vec::new(),
            }
        };
        let connects = self.connects();
        let (found, fsyncs) = join!(timeout(REFRESH_TIMEOUT, letters.contents()), fsyncs);
        // A program that needs the stream recreates it at once. Without one, it is missing at two checks in a row.
        let is_missing = !matches!(found, Ok(Ok(_))) && self.known().lost_letters.not_found();
        if is_missing {
            timeout(REFRESH_TIMEOUT, letters.restore()).await.ok();
        }
        let mut known = self.known();
        // A server that does not answer keeps its last value.
        known.fsyncs.extend(fsyncs);
        known.fsyncs_at = connects;
        let found = match found {
            Ok(Ok(found)) => Some(found),
            Ok(Err(error)) => {
                debug!(%error, "stream {DEAD_LETTERS} not read");
                None
            }
            Err(_) => None,
        };
        let Some(Contents { stream, open, is_empty }) = found else {
            known.letters = None;
            known.open_letters = None;
            return;
        };
        known.lost_letters.found(stream.created, open.values().sum(), is_empty);
        known.letters = Some(stream);
        let counts = known.open_letters.get_or_insert_default();
        counts.values_mut().for_each(|letters| *letters = 0);
        for (step, letters) in open {
            let is_named = counts.contains_key(&step) || counts.len() < STEPS_MAX;
            let step = if is_named && !step.is_empty() { step } else { OTHER.to_owned() };
            *counts.entry(step).or_default() += letters;
        }
    }

    fn measure(&self) {
        self.of_streams("waybill.stream.messages", "Messages of a stream.", |state, _| state.messages);
        self.of_streams("waybill.stream.bytes", "Bytes of the messages of a stream.", |state, _| state.bytes);
        self.of_streams("waybill.stream.bytes.max", "Byte limit of a stream; 0: no limit.", |state, _| {
            state.bytes_max.unwrap_or(0)
        });
        self.of_streams("waybill.stream.replicas", "Replicas of a stream.", |state, _| state.replicas as u64);
        self.of_streams(
            "waybill.stream.replicas.current",
            "Replicas of a stream that are up to date.",
            |state, _| state.replicas_current as u64,
        );
        self.of_streams(
            "waybill.stream.replicas.wanted",
            "Replicas of a stream that were configured.",
            |state, wanted| wanted.map_or(state.replicas as u64, u64::from),
        );
        let streams = self.clone();
        metrics::gauge("waybill.durability", "1 for the durability level of stream ORDERS.", move |gauge| {
            let Some(level) = streams.known_level() else { return };
            for each in DurabilityLevel::ALL {
                gauge.observe(u64::from(each == level), &[KeyValue::new("level", each.as_str())]);
            }
        });
        let streams = self.clone();
        metrics::gauge(
            "waybill.durability.below_wanted",
            "1 while the durability is below DURABILITY.",
            move |gauge| {
                if let Some(level) = streams.known_level() {
                    gauge.observe(u64::from(!level.satisfies(streams.wanted)), &[]);
                }
            },
        );
        let streams = self.clone();
        metrics::gauge(
            "waybill.dead_letters.lost",
            "Open dead letters that were lost with their stream and that no operator has acknowledged.",
            move |gauge| gauge.observe(streams.known().lost_letters.unacknowledged(), &[]),
        );
        let streams = self.clone();
        metrics::gauge("waybill.dead_letters.open", "Open dead letters.", move |gauge| {
            for (step, letters) in streams.known().open_letters.iter().flatten() {
                gauge.observe(*letters, &[KeyValue::new("step", step.clone())]);
            }
        });
    }

    fn of_streams(
        &self,
        name: &'static str,
        description: &'static str,
        number: impl Fn(&StreamState, Option<u8>) -> u64 + Send + Sync + 'static,
    ) {
        let streams = self.clone();
        metrics::gauge(name, description, move |gauge: &dyn AsyncInstrument<u64>| {
            let known = streams.known();
            for (stream, state) in [(ORDERS, &known.orders), (DEAD_LETTERS, &known.letters)] {
                if let Some(state) = state {
                    gauge.observe(number(state, streams.replicas), &[KeyValue::new("stream", stream)]);
                }
            }
        });
    }

    /// The level, while the stream can be read.
    fn known_level(&self) -> Option<DurabilityLevel> {
        let known = self.known();
        known.level.filter(|_| known.orders.is_some())
    }

    /// No holder panics, so a poisoned lock is used as it is.
    fn known(&self) -> MutexGuard<'_, StreamsState> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn below_strict(level: DurabilityLevel) -> String {
    let seen = match level {
        // A server may sync every write without the gateway knowing.
        DurabilityLevel::Process => {
            "; only NATS_MONITOR_URL shows whether a server syncs every write (sync_interval: always)"
        }
        DurabilityLevel::Memory | DurabilityLevel::Fsync | DurabilityLevel::Replicated => "",
    };
    format!("durability is below DURABILITY=strict ({level}{seen})")
}
