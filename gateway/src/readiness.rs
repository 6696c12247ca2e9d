//! Whether this gateway can take orders: the stream is set up, the broker answers, and no drain has begun.

use std::time::Duration;

use backbone::broker::direct_get::ReadError;
use backbone::broker::streams::{ORDERS, ProvisionError, StreamConfig, provision_with_deferrals};
use backbone::dead_letters::DeadLetters;
use backbone::log::{AppendError, LogInfo, OrderLog};
use program::ops::Health;
use stock::Presence;
use tokio::select;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::{info, warn};

use crate::durability::Monitors;
use crate::route_steps::RouteSteps;
use crate::streams::Streams;
use crate::{errors, losses};

const PROBE_INTERVAL: Duration = Duration::from_millis(500);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why this gateway cannot accept orders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing.
    Ready,
    /// The broker is unavailable, or the stream is missing or does not answer; with the reason.
    BrokerUnavailable(String),
    /// The durability is below the configured one; with the details.
    NotDurable(String),
    /// The broker has no storage space for orders; with its reason. Reads still work.
    StorageFull(String),
    /// The bucket with the stock existed and is missing, so no order can progress; says what to do.
    StockMissing(&'static str),
    /// The gateway is about to stop.
    Draining,
}

/// The state, kept up to date by [`Readiness::keep`]. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Readiness {
    state: watch::Sender<State>,
    streams: Streams,
    stock: Presence,
    steps: RouteSteps,
    leaving: CancellationToken,
    draining: CancellationToken,
}

impl Readiness {
    pub(crate) fn new(streams: Streams, stock: Presence, steps: RouteSteps) -> Self {
        let (state, _) = watch::channel(State::BrokerUnavailable("not connected yet".to_owned()));
        let (leaving, draining) = (CancellationToken::new(), CancellationToken::new());
        Self { state, streams, stock, steps, leaving, draining }
    }

    /// Reports that this gateway is about to stop. It still answers all calls.
    pub(crate) fn leave(&self) {
        self.leaving.cancel();
        self.set(State::Draining);
    }

    /// Cancelled when the drain begins.
    pub(crate) fn draining(&self) -> CancellationToken {
        self.draining.clone()
    }

    /// Follows the state.
    pub(crate) fn follow(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// The state at this moment.
    pub(crate) fn now(&self) -> State {
        self.state.borrow().clone()
    }

    /// Rejects a write unless it is as durable as configured.
    pub(crate) fn check_durability(&self) -> Result<(), Status> {
        self.streams.check_durability().map_err(|reason| errors::not_durable(&reason))
    }

    /// Rejects a call while the bucket with the stock is missing. For a missing bucket the gateway checks again.
    pub(crate) async fn check_stock(&self) -> Result<(), Status> {
        if self.stock.missing().is_some() {
            self.stock.look().await;
        }
        self.stock.missing().map_or(Ok(()), |lacking| Err(errors::stock_missing(lacking)))
    }

    /// After an append: the outcome is unknown if the broker may have restarted with less durability meanwhile.
    pub(crate) fn check_durability_after_append(&self) -> Result<(), AppendError> {
        self.streams.check_durability().map_err(AppendError::Unknown)
    }

    /// Sets up the stream, checks it periodically, and sets it up again when it is lost. Ends only when the stream
    /// cannot be set up.
    pub(crate) async fn keep(
        self,
        log: OrderLog,
        letters: DeadLetters,
        monitors: Option<Monitors>,
        config: StreamConfig,
    ) -> Result<(), ProvisionError> {
        let keeping = async {
            let waiting = |reason| {
                let full = full(&log).filter(|_| log.connection().is_up());
                self.set(full.unwrap_or(State::BrokerUnavailable(reason)));
            };
            provision_with_deferrals(log.connection(), &config, waiting).await?;
            // The durability must be known before the first report of the state.
            self.streams.refresh(&letters, monitors.as_ref()).await;
            let reprovisioning = async {
                loop {
                    self.until_lost(&log).await;
                    provision_with_deferrals(log.connection(), &config, waiting).await?;
                }
            };
            select! {
                ended = reprovisioning => ended,
                never = losses::compare(&log, &letters) => match never {},
            }
        };
        select! {
            ended = keeping => ended,
            () = self.streams.keep_refreshing(&letters, monitors.as_ref()) => Ok(()),
            () = log.keep_probing() => Ok(()),
            () = log.keep_quorum() => Ok(()),
            () = self.follow_quorum(&log) => Ok(()),
            never = log.watch_for_losses() => match never {},
            never = self.stock.keep() => match never {},
            never = self.steps.keep(&log) => match never {},
            () = self.leaving.cancelled() => {
                self.streams.clear();
                std::future::pending().await
            }
        }
    }

    /// Checks the stream periodically, until it is missing although the broker is available. Then the stream was
    /// deleted, or the broker returned without its data.
    async fn until_lost(&self, log: &OrderLog) {
        let mut lost = false;
        while !lost {
            let connects = self.streams.connects();
            match probe(log).await {
                Ok((extent, quorum)) => {
                    let kept = self.streams.record_orders(Some(extent.state), connects);
                    let state = match (quorum, kept, self.stock.missing()) {
                        (Err(reason), _, _) => State::BrokerUnavailable(reason),
                        (Ok(()), Err(reason), _) => State::NotDurable(reason),
                        (Ok(()), Ok(()), Some(reason)) => State::StockMissing(reason),
                        (Ok(()), Ok(()), None) => State::Ready,
                    };
                    self.set(full(log).unwrap_or(state));
                }
                Err(ProbeError { reason, is_missing }) => {
                    // In a cluster, silence does not mean a lost stream: its leader may be unreachable.
                    let connection = log.connection();
                    lost = connection.is_up() && (is_missing || !connection.is_clustered());
                    // The state of the log is unknown.
                    self.streams.record_orders(None, connects).ok();
                    // Full storage can be the cause: a leader without space steps down.
                    self.set(
                        full(log).filter(|_| connection.is_up()).unwrap_or(State::BrokerUnavailable(reason)),
                    );
                }
            }
            sleep(PROBE_INTERVAL).await;
        }
    }

    /// Becomes unready as soon as the quorum is lost: a probe would wait for an answer first. Only a probe makes it ready
    /// again. Never ends.
    async fn follow_quorum(&self, log: &OrderLog) {
        let mut quorum = log.follow_quorum();
        while quorum.changed().await.is_ok() {
            let lost = quorum.borrow_and_update().clone().err();
            if let Some(reason) = lost.filter(|_| self.now() == State::Ready) {
                self.set(full(log).unwrap_or(State::BrokerUnavailable(no_quorum(&reason))));
            }
        }
        // Unreachable: the log outlives this task.
        std::future::pending().await
    }

    fn set(&self, state: State) {
        self.state.send_if_modified(|current| {
            // Draining is final.
            if *current == state || *current == State::Draining {
                return false;
            }
            match &state {
                State::Ready => info!("ready"),
                State::BrokerUnavailable(reason) | State::NotDurable(reason) | State::StorageFull(reason) => {
                    warn!(reason, "not ready");
                }
                State::StockMissing(reason) => warn!(reason, "not ready"),
                State::Draining => info!("not ready: draining"),
            }
            *current = state;
            true
        });
    }
}

impl Health for Readiness {
    fn ready(&self) -> Result<String, String> {
        // A missing permission does not imply unreadiness: reads may work without the right to append, and vice versa.
        let refused = self.streams.missing_permissions();
        match self.now() {
            State::Ready => {
                let level = self.streams.level().map(|level| format!("durability: {level}"));
                let waiting = self.steps.without_consumer();
                Ok(level.into_iter().chain(waiting).chain(refused).map(|line| line + "\n").collect())
            }
            State::BrokerUnavailable(reason) | State::NotDurable(reason) | State::StorageFull(reason) => {
                // The connection may know a more specific reason than the last probe.
                let reason = self.streams.broker_unavailable().unwrap_or(reason);
                Err([reason].into_iter().chain(refused).collect::<Vec<_>>().join("\n"))
            }
            State::StockMissing(reason) => {
                Err([reason.to_owned()].into_iter().chain(refused).collect::<Vec<_>>().join("\n"))
            }
            State::Draining => Err("draining".to_owned()),
        }
    }

    /// NATS is connected and the stream answers.
    fn healthy(&self) -> Result<(), String> {
        match self.now() {
            State::Ready
            | State::NotDurable(_)
            | State::StorageFull(_)
            | State::StockMissing(_)
            | State::Draining => Ok(()),
            State::BrokerUnavailable(reason) => Err(self.streams.broker_unavailable().unwrap_or(reason)),
        }
    }
}

/// The state while the broker has no space for events.
fn full(log: &OrderLog) -> Option<State> {
    log.full().map(|reason| State::StorageFull(format!("no storage space for orders: {reason}")))
}

fn no_quorum(reason: &str) -> String {
    format!("stream {ORDERS}: {reason}")
}

/// The log did not answer.
struct ProbeError {
    reason: String,
    /// There is no such stream.
    is_missing: bool,
}

/// The state of the log, and whether a quorum of its servers commits: without one, a single server reports the state.
async fn probe(log: &OrderLog) -> Result<(LogInfo, Result<(), String>), ProbeError> {
    let silent = |reason| ProbeError { reason, is_missing: false };
    if !log.connection().is_up() {
        return Err(silent("not connected to NATS".to_owned()));
    }
    match timeout(PROBE_TIMEOUT, log.extent()).await {
        Ok(Ok(extent)) => {
            let quorum = extent.state.can_commit().and_then(|()| log.quorum());
            Ok((extent, quorum.map_err(|reason| no_quorum(&reason))))
        }
        Ok(Err(error)) => {
            let is_missing = matches!(error, ReadError::Broker(_));
            Err(ProbeError { reason: format!("stream {ORDERS}: {error}"), is_missing })
        }
        Err(_) => Err(silent(format!("stream {ORDERS} does not answer"))),
    }
}
