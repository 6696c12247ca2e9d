//! The carrier: appends unfinished orders again before their events expire, so that retention counts from an order's
//! end.
//!
//! It runs in the gateway, without which there are no orders, so that it needs no step. Of several gateways one
//! carries: the owner of the progress record. Another one takes over when the record stops changing. Two carriers at
//! once are harmless: compare-and-set carries each order once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use backbone::log::carrying::Schedule;
use backbone::log::ids::Revision;
use backbone::log::{CarryError, CarryPosition, LogBounds, OrderLog};
use program::telemetry::LogThrottle;
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

use crate::metrics;

/// How often the carrier checks for due events: fifty times within the carry age, within these bounds.
const CHECK_INTERVAL_MIN: Duration = Duration::from_millis(200);
const CHECK_INTERVAL_MAX: Duration = Duration::from_secs(10);
/// How long the record must stay unchanged before another gateway takes over: a number of checks, and a minimum time.
const STALLED_CHECKS: u32 = 4;
const STALLED_MIN: Duration = Duration::from_secs(2);

static CARRIED_LOG: LogThrottle = LogThrottle::every(Duration::from_secs(30));
static FAILED_LOG: LogThrottle = LogThrottle::every(Duration::from_secs(30));
static MISSED_LOG: LogThrottle = LogThrottle::every(Duration::from_secs(30));

/// The carrier of one gateway.
#[derive(Debug)]
pub(crate) struct Carrier {
    log: OrderLog,
    name: String,
    carry_after: Option<Duration>,
    /// The last record, and since when it is unchanged.
    seen: Option<(Revision, Instant)>,
    is_holder: bool,
    progress: Progress,
}

/// How far carrying has come, for metrics.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress(Arc<Mutex<Option<(SystemTime, Duration)>>>);

impl Progress {
    /// Age of the oldest event that was not examined, and the retention. `None` if events never expire, or the age is
    /// unknown.
    pub(crate) fn now(&self) -> Option<(Duration, Duration)> {
        let (until, retention) = (*self.known())?;
        Some((until.elapsed().unwrap_or_default(), retention))
    }

    fn set(&self, until: SystemTime, retention: Duration) {
        *self.known() = (!retention.is_zero()).then_some((until, retention));
    }

    /// No holder panics, so a poisoned lock is used as it is.
    fn known(&self) -> MutexGuard<'_, Option<(SystemTime, Duration)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Carrier {
    pub(crate) fn new(log: OrderLog, carry_after: Option<Duration>) -> Self {
        let progress = Progress::default();
        let known = progress.clone();
        metrics::carrying(move || known.now());
        Self {
            log,
            name: format!("{:032x}", rand::random::<u128>()),
            carry_after,
            seen: None,
            is_holder: false,
            progress,
        }
    }

    /// Carries, or waits until it has to take over. Never ends.
    pub(crate) async fn keep(mut self) {
        loop {
            let pause = match self.check().await {
                Ok(pause) => pause,
                Err(error) => {
                    if self.log.connection().is_up()
                        && let Some(left_out) = FAILED_LOG.allow()
                    {
                        warn!(%error, left_out, "unfinished orders not carried, retrying");
                    }
                    CHECK_INTERVAL_MIN * 5
                }
            };
            sleep(pause).await;
        }
    }

    /// Checks once, and carries the due orders. Returns the time until the next check.
    async fn check(&mut self) -> Result<Duration, CarryError> {
        let kept = self.log.bounds().await?;
        let (recorded, head) = self.log.carry_position().await?;
        let wanted = Schedule::of(kept.retention, self.carry_after);
        let check_interval = wanted.age().map_or(CHECK_INTERVAL_MAX, |age| age / 50);
        let check_interval = check_interval.clamp(CHECK_INTERVAL_MIN, CHECK_INTERVAL_MAX);
        let stalled_after = (check_interval * STALLED_CHECKS).max(STALLED_MIN);
        // A record of another log, or of a log that has lost its end, does not apply.
        let recorded = recorded.filter(|recorded| {
            recorded.log_created == kept.created && recorded.next <= kept.last.0.saturating_add(1)
        });
        let now = SystemTime::now();
        let mut position = recorded.unwrap_or_else(|| CarryPosition {
            log_created: kept.created,
            next: 0,
            until: now.checked_sub(kept.retention).unwrap_or(now).max(kept.created),
            schedule: wanted,
            holder: String::new(),
        });
        self.progress.set(position.until, kept.retention);
        if !position.holder.is_empty() && position.holder != self.name {
            if self.seen.is_none_or(|(seen, _)| seen != head) {
                self.seen = Some((head, Instant::now()));
            }
            let is_stalled = self.seen.is_some_and(|(_, since)| since.elapsed() >= stalled_after);
            if !is_stalled {
                self.is_holder = false;
                return Ok(check_interval);
            }
        }
        if !self.is_holder {
            info!(from_sequence = position.next, retention = ?kept.retention, "this gateway carries unfinished orders");
        }
        position.holder.clone_from(&self.name);
        position.schedule = position.schedule.changed(wanted, now);

        let missed = missed(&position, &kept, now);
        let (began, mut carried) = (Instant::now(), 0);
        let caught_up = loop {
            let walked = self.log.carry_due(Revision(position.next), &position.schedule).await?;
            metrics::carried(&walked);
            carried += walked.carried;
            position.next = walked.next.0;
            position.until = walked.until.map_or(position.until, |until| until.max(position.until));
            if walked.caught_up || began.elapsed() >= stalled_after / 4 {
                break walked.caught_up;
            }
        };
        report_missed(missed);
        if carried > 0
            && let Some(left_out) = CARRIED_LOG.allow()
        {
            info!(carried, left_out, "unfinished orders carried");
        }
        let recorded = self.log.record_carry_position(&position, head).await;
        self.is_holder = recorded.is_some();
        self.progress.set(position.until, kept.retention);
        Ok(if caught_up { check_interval } else { Duration::ZERO })
    }
}

/// How many messages expired unexamined: none unless all of them were older than the retention. Otherwise they were
/// barriers, which expire early, or a loss, which is counted elsewhere.
fn missed(position: &CarryPosition, kept: &LogBounds, now: SystemTime) -> u64 {
    let age = now.duration_since(position.until).unwrap_or_default();
    let has_expired = !kept.retention.is_zero() && age > kept.retention;
    if has_expired && position.next > 0 { kept.first.0.saturating_sub(position.next) } else { 0 }
}

fn report_missed(events: u64) {
    metrics::missed(events);
    if events > 0
        && let Some(left_out) = MISSED_LOG.allow()
    {
        error!(
            events,
            left_out, "events expired before they were examined; unfinished orders among them are lost"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn at(minutes: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + MINUTE * (1_000 + minutes)
    }

    /// For a log that keeps events for 10 minutes, examined up to minute 0.
    fn missed_at(minute: u32, next: u64, first: u64) -> u64 {
        let retention = MINUTE * 10;
        let schedule = Schedule::of(retention, None);
        let position =
            CarryPosition { log_created: at(0), next, until: at(0), schedule, holder: String::new() };
        let (first, last) = (Revision(first), Revision(100));
        missed(&position, &LogBounds { created: at(0), retention, first, last }, at(minute))
    }

    #[test]
    fn events_that_expired_while_no_gateway_carried_are_missed() {
        assert_eq!(missed_at(11, 7, 60), 53);
        assert_eq!(missed_at(11, 7, 101), 94, "also if the log is empty");
        assert_eq!(missed_at(11, 60, 60), 0);
    }

    #[test]
    fn expired_barriers_and_a_first_check_miss_nothing() {
        assert_eq!(missed_at(9, 7, 60), 0);
        assert_eq!(missed_at(11, 0, 60), 0);
    }
}
