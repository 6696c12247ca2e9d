//! Whether this program can still reach a quorum of the log's servers. A server that is partitioned from the others
//! still answers, so only a commit proves a quorum. The commit is that of an append, or of a barrier while this program
//! appends nothing.

use std::time::Duration;

use program::backoff::Backoff;
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::OrderLog;
use crate::broker::direct_get::ReadError;
use crate::broker::streams::{ORDERS, StreamState};

/// How often the quorum is checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// How long a commit proves a quorum.
const COMMIT_AGE_MAX: Duration = Duration::from_secs(1);
/// How long the next commit may take, including commits that other callers wait for.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long there may be no quorum before the program tries another server, and then the next one.
const LEAVE: Backoff = Backoff { initial: Duration::from_secs(2), max: Duration::from_secs(30) };

impl OrderLog {
    /// Whether a quorum has recently committed a write of this program; if not, why. Known only while
    /// [`OrderLog::keep_quorum`] runs.
    pub fn quorum(&self) -> Result<(), String> {
        self.quorum.borrow().clone()
    }

    /// Changes with [`OrderLog::quorum`].
    pub fn follow_quorum(&self) -> Receiver<Result<(), String>> {
        self.quorum.subscribe()
    }

    /// Checks the quorum periodically, and connects to another server while there is none. Never ends.
    pub async fn keep_quorum(&self) {
        // While there is no quorum: since when, on which connection, and how many servers were left.
        let (mut lost, mut left) = (None, 0);
        loop {
            self.connection.up().await;
            let found = self.has_committed().await;
            self.report(&found);
            match found {
                Ok(()) => {
                    self.connection.stay();
                    (lost, left) = (None, 0);
                }
                // A missing stream is missing at every server.
                Err(ReadError::Broker(_)) => {}
                Err(error @ ReadError::NoAnswer(_)) => {
                    let (now, connects) = (Instant::now(), *self.connection.connects().borrow());
                    // Each server gets time to find the others again.
                    let since = match lost {
                        Some((since, by)) if by == connects => since,
                        Some(_) | None => now,
                    };
                    lost = Some((since, connects));
                    let is_over = now - since >= LEAVE.after(left + 1) || self.connection.has_come_back();
                    if is_over && self.connection.is_up() {
                        self.connection.leave_server(&error).await;
                        left += 1;
                    }
                }
            }
            sleep(CHECK_INTERVAL).await;
        }
    }

    fn report(&self, found: &Result<(), ReadError>) {
        let quorum = found.as_ref().copied().map_err(ToString::to_string);
        let before = self.quorum.send_replace(quorum.clone());
        match (before, quorum) {
            (Ok(()), Err(reason)) => warn!(reason, "write path unavailable, order log does not commit"),
            (Err(_), Ok(())) => {
                info!("write path available, order log commits again");
                self.regained.send_modify(|times| *times += 1);
            }
            (Ok(()), Ok(())) | (Err(_), Err(_)) => {}
        }
    }

    async fn has_committed(&self) -> Result<(), ReadError> {
        if !self.barrier.has_committed_within(COMMIT_AGE_MAX) {
            let late = |_| ReadError::NoAnswer(format!("stream {ORDERS} does not commit in time"));
            timeout(COMMIT_TIMEOUT, self.barrier.pass()).await.map_err(late)??;
        }
        Ok(())
    }
}

impl StreamState {
    /// Whether the stream could commit, as far as the server knows that answered; if not, why.
    pub fn can_commit(&self) -> Result<(), String> {
        if self.replicas > 1 && !self.has_leader {
            return Err("has no leader".to_owned());
        }
        if 2 * self.replicas_current <= self.replicas {
            let Self { replicas, replicas_current, .. } = self;
            return Err(format!("{replicas_current} of {replicas} replicas are current"));
        }
        Ok(())
    }
}
