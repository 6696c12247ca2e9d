//! Makes the leader of the step's consumer step down while it lags behind the log. The broker then reports another
//! leader to the reader, which reopens the consumer.

use std::time::Duration;

use backbone::consumer::lag::LaggingLeader;
use backbone::log::{OrderLog, StepDown};
use program::backoff::Backoff;
use tokio::time::Instant;
use tracing::{error, warn};

use crate::metrics;

/// Pauses between two requests of this process. Replicas of the step need no coordination: all request the same successor,
/// and a server that is the leader already does not step down.
const PAUSE: Backoff = Backoff { initial: Duration::from_secs(30), max: Duration::from_secs(5 * 60) };

/// The step-downs requested so far.
#[derive(Debug, Default)]
pub(crate) struct Leadership {
    /// Requests since the consumer last kept up.
    requests: u64,
    /// Earliest time of the next request.
    next: Option<Instant>,
}

impl Leadership {
    /// The consumer keeps up with the log.
    pub(crate) fn keeps_up(&mut self) {
        self.requests = 0;
    }

    /// The consumer's leader lags: requests that it step down, unless it did so a moment ago.
    pub(crate) async fn lags(&mut self, step: &'static str, log: &OrderLog, behind: &LaggingLeader) {
        let now = Instant::now();
        if self.next.is_some_and(|next| now < next) {
            return;
        }
        self.requests += 1;
        self.next = Some(now + PAUSE.after(self.requests));
        let LaggingLeader { leader, messages: lag, successor } = behind;
        let Some(successor) = successor else {
            error!(step, leader, lag, "consumer leader lags behind the log, no replica keeps up");
            return;
        };
        let outcome = match log.step_down(step, successor).await {
            Ok(StepDown::Done) => {
                warn!(step, leader, lag, successor, "consumer leader lags behind the log, stepped down");
                "done"
            }
            Ok(StepDown::NotAllowed(needed)) => {
                error!(
                    step,
                    leader, lag, needed, "consumer leader lags behind the log, step-down not permitted"
                );
                "not_allowed"
            }
            // An election may be in progress, or another replica of the step was first.
            Err(error) => {
                warn!(step, leader, lag, successor, %error, "consumer leader lags behind the log, step-down failed");
                "failed"
            }
        };
        metrics::stepped_down(step, outcome);
    }
}
