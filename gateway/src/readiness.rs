//! Whether this gateway can take orders: the stream is set up, the broker answers, and no drain has begun.

use std::time::Duration;

use backbone::log::OrderLog;
use backbone::stream::{ProvisionError, StreamConfig, provision};
use tokio::select;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

const PROBE_INTERVAL: Duration = Duration::from_millis(500);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// What stands between this gateway and the next order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing.
    Ready,
    /// The broker is away, or the stream does not answer; says what.
    BrokerAway(String),
    /// The gateway is about to stop.
    Draining,
}

/// The state, kept up to date by [`Readiness::keep`]. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Readiness {
    state: watch::Sender<State>,
    draining: CancellationToken,
}

impl Readiness {
    pub(crate) fn new() -> Self {
        let (state, _) = watch::channel(State::BrokerAway("not connected yet".to_owned()));
        Self { state, draining: CancellationToken::new() }
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

    /// Sets the stream up, then asks it for a sign of life again and again. Ends only when the stream cannot be
    /// set up, or never.
    pub(crate) async fn keep(self, log: OrderLog, config: StreamConfig) -> Result<(), ProvisionError> {
        let keeping = async {
            provision(log.connection(), &config).await?;
            loop {
                self.set(probe(&log).await);
                sleep(PROBE_INTERVAL).await;
            }
        };
        select! {
            ended = keeping => ended,
            () = self.draining.cancelled() => {
                self.set(State::Draining);
                std::future::pending().await
            }
        }
    }

    fn set(&self, state: State) {
        self.state.send_if_modified(|current| {
            if *current == state {
                return false;
            }
            match &state {
                State::Ready => info!("ready"),
                State::BrokerAway(reason) => warn!(reason, "not ready"),
                State::Draining => info!("not ready: draining"),
            }
            *current = state;
            true
        });
    }
}

async fn probe(log: &OrderLog) -> State {
    if !log.connection().is_up() {
        return State::BrokerAway("not connected to NATS".to_owned());
    }
    match timeout(PROBE_TIMEOUT, log.probe()).await {
        Ok(Ok(())) => State::Ready,
        Ok(Err(error)) => State::BrokerAway(error.to_string()),
        Err(_) => State::BrokerAway("the stream does not answer".to_owned()),
    }
}
