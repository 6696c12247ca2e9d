//! The signals that stop `dev`: Ctrl-C, SIGTERM, and the terminal going away.

use std::io;

use tokio::select;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Made before the command starts anything that a stop has to clean up.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// From now on the signals no longer end this process by themselves.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal, and names it. None is lost when the wait is dropped.
    pub(super) async fn next(&mut self) -> &'static str {
        select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}
