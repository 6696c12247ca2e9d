//! The carrier: has unfinished orders written anew before their events expire, so that retention counts from an order's end.
//!
//! It runs in the gateway, without which there are no orders, so that it needs none of the steps. Of several gateways one
//! carries: the holder of the record of how far that has come. Another one takes over when the record stands still. Two
//! that carry for a moment do no harm: each order is carried by compare-and-set.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use backbone::carrying::Schedule;
use backbone::ids::Revision;
use backbone::log::{CarryError, CarryPosition, OrderLog, Walked};
use backbone::telemetry::Seldom;
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

use crate::metrics;

/// How often it is looked whether events are due: fifty times before they are, within these bounds.
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(200);
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(10);
/// How long the record has to stand still before another gateway takes over, in looks and at least.
const STANDSTILL_LOOKS: u32 = 4;
const STANDSTILL_MIN: Duration = Duration::from_secs(2);

static SAID: Seldom = Seldom::every(Duration::from_secs(30));
static FAILED: Seldom = Seldom::every(Duration::from_secs(30));
static MISSED: Seldom = Seldom::every(Duration::from_secs(30));

/// The carrier of one gateway.
#[derive(Debug)]
pub(crate) struct Carrier {
    log: OrderLog,
    name: String,
    carry_after: Option<Duration>,
    /// The record that was seen last, and since when it has stood still.
    seen: Option<(Revision, Instant)>,
    is_holder: bool,
    progress: Progress,
}

/// How far carrying has come, for metrics.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress(Arc<Mutex<Option<(SystemTime, Duration)>>>);

impl Progress {
    /// Age of the oldest event that was not looked at, and the retention. `None` if nothing expires, or nothing is known.
    pub(crate) fn now(&self) -> Option<(Duration, Duration)> {
        let (until, retention) = (*self.known())?;
        Some((until.elapsed().unwrap_or_default(), retention))
    }

    fn set(&self, until: SystemTime, retention: Duration) {
        *self.known() = (!retention.is_zero()).then_some((until, retention));
    }

    /// Nothing panics while it is held, so poison would mean nothing.
    fn known(&self) -> MutexGuard<'_, Option<(SystemTime, Duration)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Carrier {
    pub(crate) fn new(log: OrderLog, carry_after: Option<Duration>) -> Self {
        let progress = Progress::default();
        metrics::carrying(progress.clone());
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
            let pause = match self.turn().await {
                Ok(pause) => pause,
                Err(error) => {
                    if self.log.connection().is_up()
                        && let Some(left_out) = FAILED.may_tell()
                    {
                        warn!(%error, left_out, "unfinished orders not carried, tried again");
                    }
                    LOOK_INTERVAL_MIN * 5
                }
            };
            sleep(pause).await;
        }
    }

    /// Looks once, and carries what is due. Tells how long until it looks again.
    async fn turn(&mut self) -> Result<Duration, CarryError> {
        let kept = self.log.kept().await?;
        let (recorded, head) = self.log.carry_position().await?;
        let wanted = Schedule::of(kept.retention, self.carry_after);
        let look_interval = wanted.age().map_or(LOOK_INTERVAL_MAX, |age| age / 50);
        let look_interval = look_interval.clamp(LOOK_INTERVAL_MIN, LOOK_INTERVAL_MAX);
        let standstill = (look_interval * STANDSTILL_LOOKS).max(STANDSTILL_MIN);
        // Of a log that was made anew, or that has lost its end, it says nothing.
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
            let stands_still = self.seen.is_some_and(|(_, since)| since.elapsed() >= standstill);
            if !stands_still {
                self.is_holder = false;
                return Ok(look_interval);
            }
        }
        if !self.is_holder {
            info!(from_sequence = position.next, retention = ?kept.retention, "this gateway carries unfinished orders");
        }
        position.holder.clone_from(&self.name);
        position.schedule = position.schedule.changed(wanted, now);

        // Else what the log lacks are barriers, which expire early.
        let may_have_missed = now.duration_since(position.until).unwrap_or_default() > kept.retention;
        let (began, mut carried) = (Instant::now(), 0);
        let caught_up = loop {
            let mut walked = self.log.carry_due(Revision(position.next), &position.schedule).await?;
            if !may_have_missed {
                walked.missed = 0;
            }
            counted(&walked);
            carried += walked.carried;
            position.next = walked.next.0;
            position.until = walked.until.map_or(position.until, |until| until.max(position.until));
            if walked.caught_up || began.elapsed() >= standstill / 4 {
                break walked.caught_up;
            }
        };
        if carried > 0
            && let Some(left_out) = SAID.may_tell()
        {
            info!(carried, left_out, "unfinished orders carried, so that they do not expire");
        }
        let recorded = self.log.record_carry_position(&position, head).await;
        self.is_holder = recorded.is_some();
        self.progress.set(position.until, kept.retention);
        Ok(if caught_up { look_interval } else { Duration::ZERO })
    }
}

fn counted(walked: &Walked) {
    metrics::carried(walked);
    if walked.missed > 0
        && let Some(left_out) = MISSED.may_tell()
    {
        let messages = walked.missed;
        error!(
            messages,
            left_out, "events expired before they were looked at; unfinished orders among them are lost"
        );
    }
}
