//! The state of a processor, for probes and metrics.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use backbone::broker::connection::Connection;
use backbone::broker::streams::PROVISION;
use backbone::consumer::lag::{Lag, LaggingLeader};
use backbone::log::{Backlog, OrderLog};
use program::metrics::{age, gauge, seconds};
use program::ops::Health;
use tokio::join;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

use crate::breaker::BreakerState;
use crate::leadership::Leadership;
use crate::metrics::of;

/// How often the backlog is read.
const BACKLOG_INTERVAL: Duration = Duration::from_secs(15);
/// Retry interval after a failure.
const BACKLOG_RETRY_INTERVAL: Duration = Duration::from_secs(1);
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the lag of the consumer's leader is checked. The broker answers from memory.
const LAG_INTERVAL: Duration = Duration::from_secs(3);

/// The state of a step's consumer, and of the work at its messages. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Status(Arc<Inner>);

/// The state of a processor: of its step's consumer, and of the consumer of carried orders, if it has one.
#[derive(Clone, Debug)]
pub(crate) struct ProcessorStatus {
    pub(crate) step: Status,
    pub(crate) carried: Option<Status>,
}

/// Reports the missing dependency of the step, if any.
type MissingDependency = Box<dyn Fn() -> Option<&'static str> + Send + Sync>;

struct Inner {
    consumer: &'static str,
    connection: Connection,
    /// Why the consumer is not open; `None` while it is.
    closed: Mutex<Option<String>>,
    /// Whether the start-up is over: the consumer was opened, or could not be.
    is_started: AtomicBool,
    /// Wrong settings of the consumer that this user may not change.
    wrong_settings: Mutex<Option<String>>,
    /// Set once the step is open.
    lacks: OnceLock<MissingDependency>,
    is_draining: AtomicBool,
    workers: AtomicUsize,
    in_flight: AtomicUsize,
    breaker: AtomicU8,
    last_delivery: Mutex<Instant>,
    /// `None` while it cannot be read: missing rather than old.
    backlog: Mutex<Option<Backlog>>,
    /// How far the consumer's leader lags behind the log. `None` as above.
    lag: Mutex<Option<LeaderLag>>,
}

/// `None` if the leader keeps up.
type LeaderLag = Option<LaggingLeader>;

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("consumer", &self.consumer).finish_non_exhaustive()
    }
}

impl Status {
    pub(crate) fn new(consumer: &'static str, connection: Connection) -> Self {
        let status = Self(Arc::new(Inner {
            consumer,
            connection,
            closed: Mutex::new(Some("step is starting".to_owned())),
            is_started: AtomicBool::new(false),
            wrong_settings: Mutex::new(None),
            lacks: OnceLock::new(),
            is_draining: AtomicBool::new(false),
            workers: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            breaker: AtomicU8::new(BreakerState::Closed as u8),
            last_delivery: Mutex::new(Instant::now()),
            backlog: Mutex::new(None),
            lag: Mutex::new(None),
        }));
        status.measure();
        status
    }

    /// The name of the consumer.
    pub(crate) fn consumer(&self) -> &'static str {
        self.0.consumer
    }

    /// The consumer is open, perhaps with wrong settings.
    pub(crate) fn opened(&self, wrong: Option<&str>) {
        info!(consumer = self.0.consumer, "consumer open");
        *lock(&self.0.wrong_settings) = wrong.map(str::to_owned);
        *lock(&self.0.closed) = None;
        self.0.is_started.store(true, Ordering::Relaxed);
    }

    /// The step is open, and `lacks` reports what it lacks. Only the first call counts.
    pub(crate) fn set_dependency_check(
        &self,
        lacks: impl Fn() -> Option<&'static str> + Send + Sync + 'static,
    ) {
        self.0.lacks.get_or_init(|| Box::new(lacks));
    }

    /// The consumer is not open, for this reason.
    pub(crate) fn closed(&self, reason: String) {
        *lock(&self.0.closed) = Some(reason);
        self.0.is_started.store(true, Ordering::Relaxed);
    }

    /// The consumer is not opened yet, for this reason.
    pub(crate) fn waits(&self, reason: String) {
        *lock(&self.0.closed) = Some(reason);
    }

    fn set_draining(&self) {
        self.0.is_draining.store(true, Ordering::Relaxed);
        *lock(&self.0.backlog) = None;
        *lock(&self.0.lag) = None;
    }

    /// Sets the limit of messages in progress.
    pub(crate) fn set_workers(&self, workers: usize) {
        self.0.workers.store(workers, Ordering::Relaxed);
    }

    /// Sets the number of messages in progress, and the breaker's state.
    pub(crate) fn set_in_flight(&self, in_flight: usize, breaker: BreakerState) {
        self.0.in_flight.store(in_flight, Ordering::Relaxed);
        self.0.breaker.store(breaker as u8, Ordering::Relaxed);
    }

    /// A message was delivered.
    pub(crate) fn record_delivery(&self) {
        *lock(&self.0.last_delivery) = Instant::now();
    }

    /// Checks the backlog and the lag of the consumer's leader periodically.
    async fn monitor(&self, log: &OrderLog) {
        join!(self.monitor_backlog(log), self.monitor_leader(log));
    }

    async fn monitor_backlog(&self, log: &OrderLog) {
        loop {
            let lags = self.behind().flatten().is_some();
            let backlog = match timeout(READ_TIMEOUT, log.backlog_of(self.0.consumer, lags)).await {
                Ok(Ok(backlog)) => Some(backlog),
                Ok(Err(error)) => {
                    debug!(consumer = self.0.consumer, %error, "backlog not read");
                    None
                }
                Err(_) => None,
            };
            *lock(&self.0.backlog) = backlog;
            sleep(if backlog.is_some() { BACKLOG_INTERVAL } else { BACKLOG_RETRY_INTERVAL }).await;
        }
    }

    async fn monitor_leader(&self, log: &OrderLog) {
        let (consumer, mut lag, mut leadership) = (self.0.consumer, Lag::default(), Leadership::default());
        loop {
            let behind = match timeout(READ_TIMEOUT, log.lag_of(consumer, &mut lag)).await {
                Ok(Ok(behind)) => Some(behind),
                Ok(Err(error)) => {
                    debug!(consumer, %error, "lag of the consumer leader not read");
                    None
                }
                Err(_) => None,
            };
            lock(&self.0.lag).clone_from(&behind);
            match behind {
                Some(Some(behind)) => leadership.lags(consumer, log, &behind).await,
                Some(None) => leadership.keeps_up(),
                None => {}
            }
            sleep(LAG_INTERVAL).await;
        }
    }

    fn backlog(&self) -> Option<Backlog> {
        // After the connection is lost, the last value may be outdated.
        lock(&self.0.backlog).filter(|_| self.0.connection.is_up())
    }

    fn behind(&self) -> Option<LeaderLag> {
        lock(&self.0.lag).clone().filter(|_| self.0.connection.is_up())
    }

    fn measure(&self) {
        let step = of(self.0.consumer);
        let (status, label) = (self.clone(), [step.clone()]);
        gauge("waybill.step.in_flight", "Messages in flight.", move |gauge| {
            gauge.observe(status.0.in_flight.load(Ordering::Relaxed) as u64, &label);
        });
        let (status, label) = (self.clone(), [step.clone()]);
        gauge("waybill.step.workers", "Limit of messages in flight.", move |gauge| {
            gauge.observe(status.0.workers.load(Ordering::Relaxed) as u64, &label);
        });
        let (status, label) = (self.clone(), [step.clone()]);
        gauge(
            "waybill.step.breaker.state",
            "0: closed, 1: half open, 2: open because a dependency is unavailable.",
            move |gauge| gauge.observe(status.0.breaker.load(Ordering::Relaxed).into(), &label),
        );
        let (status, label) = (self.clone(), [step.clone()]);
        gauge(
            "waybill.step.pending",
            "Messages of the log that no replica has received yet.",
            move |gauge| {
                if let Some(backlog) = status.backlog() {
                    gauge.observe(backlog.pending, &label);
                }
            },
        );
        let (status, label) = (self.clone(), [step.clone()]);
        gauge(
            "waybill.step.ack_pending",
            "Messages that a replica has received, and none has acknowledged.",
            move |gauge| {
                if let Some(backlog) = status.backlog() {
                    gauge.observe(backlog.ack_pending, &label);
                }
            },
        );
        let (status, label) = (self.clone(), [step.clone()]);
        age(
            "waybill.step.oldest_unprocessed_age",
            "Age of the oldest message that the step has not acknowledged; 0 if there is none.",
            move |gauge| {
                if let Some(backlog) = status.backlog() {
                    gauge.observe(seconds(since(backlog.oldest)), &label);
                }
            },
        );
        let (status, label) = (self.clone(), [step.clone()]);
        gauge(
            "waybill.step.consumer.lag",
            "Messages of the log that the consumer's leader has not received; 0 if it keeps up.",
            move |gauge| {
                if let Some(behind) = status.behind() {
                    gauge.observe(behind.map_or(0, |behind| behind.messages), &label);
                }
            },
        );
        let (status, label) = (self.clone(), [step.clone()]);
        gauge(
            "waybill.step.consumer.edited",
            "1 while the consumer has wrong settings that the step's user may not change.",
            move |gauge| gauge.observe(lock(&status.0.wrong_settings).is_some().into(), &label),
        );
        let (status, label) = (self.clone(), [step.clone()]);
        gauge(
            "waybill.step.consumer.open",
            "1 while the consumer is open, 0 while it cannot be opened although the broker is available.",
            move |gauge| {
                if status.0.connection.is_up() && status.0.is_started.load(Ordering::Relaxed) {
                    gauge.observe(status.is_open().into(), &label);
                }
            },
        );
        let (status, label) = (self.clone(), [step]);
        age(
            "waybill.step.last_delivery_age",
            "Time since this process last received a message, or else since its start.",
            move |gauge| gauge.observe(seconds(lock(&status.0.last_delivery).elapsed()), &label),
        );
    }

    fn is_open(&self) -> bool {
        lock(&self.0.closed).is_none()
    }

    /// The faults of the consumer. With some of them the step works as far as possible, and being unready would not help.
    fn faults(&self) -> Vec<String> {
        let closed = lock(&self.0.closed).as_ref().map(|reason| format!("consumer not open: {reason}"));
        let wrong = lock(&self.0.wrong_settings).clone();
        let wrong = wrong.map(|wrong| format!("consumer was edited: {wrong}: {PROVISION}"));
        let behind = self.behind().flatten().map(|behind| {
            let LaggingLeader { leader, messages, .. } = behind;
            format!("consumer leader {leader} lags {messages} messages behind the log")
        });
        [closed, wrong, behind].into_iter().flatten().collect()
    }
}

impl ProcessorStatus {
    /// The drain has begun.
    pub(crate) fn set_draining(&self) {
        self.step.set_draining();
        if let Some(carried) = &self.carried {
            carried.set_draining();
        }
    }

    /// Checks both consumers periodically.
    pub(crate) async fn monitor(&self, log: &OrderLog) {
        let carried = async {
            if let Some(carried) = &self.carried {
                carried.monitor(log).await;
            }
        };
        join!(self.step.monitor(log), carried);
    }

    fn lacking(&self) -> Option<&'static str> {
        self.step.0.lacks.get().and_then(|lacks| lacks())
    }
}

impl Health for ProcessorStatus {
    fn ready(&self) -> Result<String, String> {
        if self.step.0.is_draining.load(Ordering::Relaxed) {
            return Err("draining".to_owned());
        }
        self.healthy()?;
        let lacking = self.lacking();
        let mut lines: Vec<_> = lacking.map(str::to_owned).into_iter().chain(self.step.faults()).collect();
        let mut is_ready = lacking.is_none() && self.step.is_open();
        if let Some(carried) = &self.carried
            && self.step.is_open()
        {
            is_ready &= carried.is_open();
            lines.extend(carried.faults().iter().map(|fault| format!("{}: {fault}", carried.consumer())));
        }
        lines.extend(self.step.0.connection.refused());
        if is_ready {
            Ok(lines.iter().map(|line| format!("{line}\n")).collect())
        } else {
            Err(lines.join("\n"))
        }
    }

    fn healthy(&self) -> Result<(), String> {
        let connection = &self.step.0.connection;
        if connection.is_up() { Ok(()) } else { Err(connection.away()) }
    }
}

/// The age of a message; 0 if clocks disagree.
fn since(oldest: Option<SystemTime>) -> Duration {
    oldest.and_then(|oldest| oldest.elapsed().ok()).unwrap_or_default()
}

/// No holder panics, so a poisoned lock is used as it is.
fn lock<T>(known: &Mutex<T>) -> MutexGuard<'_, T> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}
