//! When to stop: SIGTERM from an orchestrator, SIGINT from a terminal.

use std::io;

use tokio::select;
use tokio::signal::unix::{SignalKind, signal};

/// Signals that ask the program to stop. Made before the program does anything that a stop has to undo.
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

    /// Waits for one of the signals, and names it.
    pub async fn requested(&mut self) -> &'static str {
        select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
