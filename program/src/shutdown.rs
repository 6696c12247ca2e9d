//! When to stop: SIGTERM from an orchestrator, SIGINT from a terminal. Work in progress is then drained.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::select;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use tracing::{info, warn};

/// Signals that stop the program. Made before the program does anything that it has to clean up.
#[derive(Debug)]
pub struct Shutdown {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Shutdown {
    /// From now on the signals no longer end the program by themselves.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for one of the signals.
    pub async fn requested(&mut self) {
        let signal = select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        info!(signal, "stop requested, draining");
    }
}

/// Waits for work that is stopping, at most `limit`; `None` if it does not.
pub async fn drain<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    let drained = timeout(limit, work).await.ok();
    if drained.is_none() {
        warn!(?limit, "drain timed out, work left unfinished");
    }
    drained
}
