//! Whether this program can still reach a quorum of the log's servers. A server that is cut off from the others goes on to
//! answer, so the sign is a commit: what this program appends, or a barrier while it appends nothing.

use std::time::Duration;

use thiserror::Error;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::OrderLog;
use crate::backoff::Backoff;
use crate::direct_get::ReadError;
use crate::stream::StreamState;

/// How often it is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// How long a commit is a sign.
const COMMIT_AGE_MAX: Duration = Duration::from_secs(1);
/// How often it is looked at whether the server that answers reads lags.
const SHOW_INTERVAL: Duration = Duration::from_secs(2);
/// How long the server that answers reads may lag before another one is tried.
const LAGGING_MAX: Duration = Duration::from_secs(5);
/// How long there may be no quorum before another server is tried, and before the next one is.
const LEAVE: Backoff = Backoff { initial: Duration::from_secs(2), max: Duration::from_secs(30) };

impl OrderLog {
    /// Whether a quorum has lately committed what this program wrote; if not, why. Known only while
    /// [`OrderLog::keep_quorum`] runs.
    pub fn quorum(&self) -> Result<(), String> {
        self.quorum.borrow().clone()
    }

    /// Looks again and again whether there is a quorum, and connects to another server while there is none, or while the
    /// server that answers reads lags. Never ends.
    pub async fn keep_quorum(&self) {
        let mut shown_at = Instant::now();
        // Without a quorum: since when, and how often a server was left.
        let (mut lost_at, mut left) = (None, 0);
        let mut lags_since = None;
        loop {
            self.connection.up().await;
            let found = self.check(&mut shown_at).await;
            self.found(&found);
            let now = Instant::now();
            match found {
                Ok(()) => {
                    self.connection.stay();
                    (lost_at, left, lags_since) = (None, 0, None);
                }
                Err(Lost::Lags) => {
                    (lost_at, left) = (None, 0);
                    let since = *lags_since.get_or_insert(now);
                    // Reads of what is there go on, so a server that cannot be reached would be worse.
                    if now - since >= LAGGING_MAX && self.connection.knows_another().await {
                        self.connection.leave_server(&Lost::Lags).await;
                        lags_since = None;
                    }
                }
                // A stream that is missing is so at every server.
                Err(Lost::Quorum(ReadError::Broker(_))) => {}
                Err(lost @ Lost::Quorum(ReadError::NoAnswer(_))) => {
                    let since = *lost_at.get_or_insert(now);
                    let is_over = now - since >= LEAVE.after(left + 1) || self.connection.has_come_back();
                    if is_over && self.connection.is_up() {
                        self.connection.leave_server(&lost).await;
                        (lost_at, left) = (Some(now), left + 1);
                    }
                }
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    fn found(&self, found: &Result<(), Lost>) {
        // A server that lags takes orders all the same.
        let quorum = match found {
            Err(Lost::Quorum(error)) => Err(error.to_string()),
            Err(Lost::Lags) | Ok(()) => Ok(()),
        };
        let before = self.quorum.send_replace(quorum.clone());
        match (before, quorum) {
            (Ok(()), Err(reason)) => warn!(reason, "the order log commits nothing"),
            (Err(_), Ok(())) => info!("the order log commits again"),
            (Ok(()), Ok(())) | (Err(_), Err(_)) => {}
        }
    }

    async fn check(&self, shown_at: &mut Instant) -> Result<(), Lost> {
        if shown_at.elapsed() >= SHOW_INTERVAL {
            if !self.barrier.is_shown().await? {
                return Err(Lost::Lags);
            }
            *shown_at = Instant::now();
        } else if !self.barrier.has_committed_within(COMMIT_AGE_MAX) {
            self.barrier.pass().await?;
        }
        Ok(())
    }
}

/// What another server is looked for for.
#[derive(Debug, Error)]
enum Lost {
    #[error(transparent)]
    Quorum(#[from] ReadError),
    #[error("the server that answers reads lags behind")]
    Lags,
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
