//! Decides which message starts now, and which is postponed. Pure: the time is an argument.
//!
//! The broker delivers retries before new messages, so orders that keep failing would take every worker, and the
//! healthy ones behind them would never start. Therefore:
//!
//! - Suspects ([`Suspects`]) have a lane: a quarter of the pool. Further suspects are postponed without an attempt.
//!   Orders that have failed while nothing succeeded since share the lane: untried orders go first.
//! - An attempt that was overtaken, because one that began a second later succeeded, becomes a suspect's too. While the
//!   pool is full, those without a slot in the lane are stopped.
//! - While the breaker is open, or every worker hangs, messages are examined all the same, and an order without known
//!   failures probes beside the pool. Its success distinguishes an outage from orders that fail together. A probe that
//!   takes long makes way for the next.
//! - A probe that is due after a pause is an order that has not failed before, if there is one.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::breaker::{Breaker, BreakerState, Transition};
use crate::suspects::{OrderRef, Suspects};

/// An attempt may hang once it takes longer than `SLOW_FACTOR` times the usual duration, within these bounds.
const SLOW_MIN: Duration = Duration::from_secs(1);
const SLOW_FACTOR: u32 = 4;
const SLOW_MAX: Duration = Duration::from_secs(5);
/// A full pool without a success for this long, and for longer than usual, starts a probe. No attempt is stopped for it.
const STALL_MIN: Duration = Duration::from_millis(500);
/// How often a full pool is searched for attempts that were overtaken.
const SEARCH_INTERVAL: Duration = Duration::from_millis(100);
/// The weight of the latest successful attempt in the usual duration.
const USUAL_WEIGHT: f64 = 0.2;
/// Minimum interval between probes beside the pool.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// A probe is stopped, so that another can start, after this many times the duration of an attempt that may hang.
const PROBE_FACTOR: u32 = 2;
/// How long a probe that is due waits for an order that has not failed before.
const PROBE_CHOICE: Duration = Duration::from_millis(500);
/// Messages requested at a time to find a probe among them.
const EXAMINED_AT_ONCE_MAX: usize = 64;
/// How many messages are examined at first, and how often the number doubles. A pool that is full for a moment
/// postpones next to nothing, and one that hangs examines 10,000 within seconds.
const EXAMINED_FIRST: usize = 1;
const EXAMINED_DOUBLING_INTERVAL: Duration = Duration::from_millis(150);
/// Postponed messages return this far apart, however many they are, and no sooner than `POSTPONED_MIN`.
const POSTPONED_INTERVAL: Duration = Duration::from_millis(5);
const POSTPONED_MIN: Duration = Duration::from_millis(200);
/// Messages examined for a probe return after four times as long as the pool has stalled, within these bounds. So other
/// messages are examined meanwhile, and a short stall delays few. Many of them return later.
const EXAMINED_DELAY_MIN: Duration = Duration::from_millis(500);
const EXAMINED_DELAY_MAX: Duration = Duration::from_secs(2);
const EXAMINED_DELAY_FACTOR: u32 = 4;
/// No more messages are examined for a probe once the postponed ones take this long to return.
const REDELIVERY_DELAY_MAX: Duration = Duration::from_secs(60);

/// The slot of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// In the pool.
    Pool,
    /// In the suspects' share of the pool.
    Lane,
    /// Beside the pool.
    Probe,
}

/// The decision on a delivered message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Begin(Slot),
    /// Redelivered without an attempt, after at least this delay.
    Postpone(Duration),
    /// The same for a suspect.
    PostponeSuspect(Duration),
}

/// What an attempt has shown about the step's dependencies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DependencySignal {
    /// They answered.
    Served,
    /// One of them is unavailable, perhaps for all orders.
    Unavailable,
    /// Nothing that applies to other orders.
    Unknown,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    order_ref: OrderRef,
    began: Instant,
    slot: Slot,
    /// Whether its cancellation was requested.
    stopped: bool,
}

/// Identifies a running attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AttemptId(u64);

/// The slots and the running attempts in them.
#[derive(Debug)]
pub(crate) struct Admission {
    size: usize,
    breaker: Breaker,
    running: HashMap<AttemptId, Running>,
    /// Running attempts by kind of slot.
    pool: usize,
    lane: usize,
    probes: usize,
    last_id: u64,
    /// When the latest attempt in the pool began.
    last_started_at: Option<Instant>,
    /// When an attempt last succeeded.
    served_at: Option<Instant>,
    /// When a full pool is searched next.
    next_search_at: Option<Instant>,
    /// The usual duration of a successful attempt: a moving average.
    usual_duration: Duration,
    /// When the next probe beside the pool may start.
    next_probe_at: Option<Instant>,
    examined: RedeliverySchedule,
    /// Since when the dependency has been in question, and how many messages were examined and postponed since.
    question: Option<(Instant, usize)>,
    suspects: RedeliverySchedule,
}

/// Schedules the redelivery of postponed messages, one after the other.
#[derive(Debug, Default)]
struct RedeliverySchedule {
    next: Option<Instant>,
}

impl RedeliverySchedule {
    /// Reserves the time of one more redelivery.
    fn add(&mut self, earliest: Instant) -> Instant {
        let at = self.next.map_or(earliest, |next| next.max(earliest));
        self.next = Some(at + POSTPONED_INTERVAL);
        at
    }

    fn is_full(&self, now: Instant) -> bool {
        self.next.is_some_and(|next| next > now + REDELIVERY_DELAY_MAX)
    }
}

impl Admission {
    pub(crate) fn new(size: usize) -> Self {
        Self {
            size,
            breaker: Breaker::new(size),
            running: HashMap::new(),
            pool: 0,
            lane: 0,
            probes: 0,
            last_id: 0,
            last_started_at: None,
            served_at: None,
            next_search_at: None,
            usual_duration: Duration::ZERO,
            next_probe_at: None,
            examined: RedeliverySchedule::default(),
            question: None,
            suspects: RedeliverySchedule::default(),
        }
    }

    pub(crate) fn state(&self, now: Instant) -> BreakerState {
        self.breaker.state(now)
    }

    /// How many messages to request now, to start them or to find a probe among them.
    pub(crate) fn wanted(&mut self, now: Instant) -> usize {
        if !self.is_in_question(now) {
            self.question = None;
        }
        match self.room(now) {
            0 if self.may_probe(now) && !self.examined.is_full(now) => {
                let (since, examined) = *self.question.get_or_insert((now, 0));
                let doublings = (now - since).as_millis() / EXAMINED_DOUBLING_INTERVAL.as_millis();
                let factor =
                    u32::try_from(doublings).ok().and_then(|doublings| 2usize.checked_pow(doublings));
                let budget = EXAMINED_FIRST.saturating_mul(factor.unwrap_or(usize::MAX));
                // No more at a time than were examined without effect before.
                budget.saturating_sub(examined).min(examined.clamp(1, EXAMINED_AT_ONCE_MAX))
            }
            room => room,
        }
    }

    /// When `wanted` may grow although no attempt ends before.
    pub(crate) fn wakes_at(&self, now: Instant) -> Option<Instant> {
        let is_full = self.room(now) == 0;
        let stalled_at = self.stalled_at().filter(|_| is_full);
        let search_at = self.next_search_at.filter(|_| is_full || self.probes > 0);
        let examine_at = self.question.filter(|_| is_full).map(|_| now + EXAMINED_DOUBLING_INTERVAL);
        let times = [self.breaker.probe_at(), self.next_probe_at, stalled_at, search_at, examine_at];
        times.into_iter().flatten().filter(|at| *at > now).min()
    }

    /// Decides about a message that was delivered.
    pub(crate) fn admit(&mut self, order_ref: OrderRef, suspects: &Suspects, now: Instant) -> Verdict {
        let has_lane = suspects.is_suspect(order_ref, now) || suspects.is_doubtful(order_ref, now);
        if has_lane && self.breaker.probe_at().is_none() {
            return match self.lane_room(now) {
                0 => Verdict::PostponeSuspect(self.suspects.add(now + POSTPONED_MIN) - now),
                _ => Verdict::Begin(Slot::Lane),
            };
        }
        if self.room(now) > 0 && (self.breaker.probe_at().is_none() || self.is_due(order_ref, suspects, now))
        {
            return Verdict::Begin(Slot::Pool);
        }
        let can_probe = self.can_probe(order_ref, suspects, now);
        if can_probe && self.may_probe(now) {
            self.next_probe_at = Some(now + PROBE_INTERVAL);
            return Verdict::Begin(Slot::Probe);
        }
        // A message that was requested while the pool had room returns soon. So does one that may be the next probe.
        if !self.is_in_question(now) || (can_probe && self.breaker.probe_at().is_none()) {
            return Verdict::Postpone(POSTPONED_MIN);
        }
        let mut stalled_for = EXAMINED_DELAY_MAX;
        if let Some((since, examined)) = &mut self.question {
            *examined += 1;
            stalled_for = now - *since;
        }
        let delay = (stalled_for * EXAMINED_DELAY_FACTOR).clamp(EXAMINED_DELAY_MIN, EXAMINED_DELAY_MAX);
        let earliest = self.breaker.probe_at().unwrap_or(now).max(now + delay);
        Verdict::Postpone(self.examined.add(earliest) - now)
    }

    /// An attempt at a message begins.
    pub(crate) fn begin(&mut self, order_ref: OrderRef, slot: Slot, now: Instant) -> AttemptId {
        self.last_id += 1;
        let attempt_id = AttemptId(self.last_id);
        self.running.insert(attempt_id, Running { order_ref, began: now, slot, stopped: false });
        *self.count_mut(slot) += 1;
        if slot == Slot::Pool {
            self.last_started_at = Some(now);
        }
        attempt_id
    }

    /// An attempt has ended.
    pub(crate) fn end(
        &mut self,
        attempt_id: AttemptId,
        signal: DependencySignal,
        now: Instant,
    ) -> Transition {
        let Some(running) = self.running.remove(&attempt_id) else { return Transition::None };
        *self.count_mut(running.slot) -= 1;
        match signal {
            DependencySignal::Served => {
                self.served_at = Some(now);
                let took = now - running.began;
                self.usual_duration =
                    self.usual_duration.mul_f64(1.0 - USUAL_WEIGHT) + took.mul_f64(USUAL_WEIGHT);
                self.breaker.succeeded(running.began)
            }
            DependencySignal::Unavailable => self.breaker.failed(now),
            DependencySignal::Unknown => Transition::None,
        }
    }

    /// Frees slots. In a full pool, overtaken attempts move to the lane; those that do not fit are to be stopped, and are
    /// returned. A slow probe is stopped too: another may succeed.
    pub(crate) fn overtaken(&mut self, suspects: &mut Suspects, now: Instant) -> Vec<AttemptId> {
        let mut stopped = Vec::new();
        if (self.room(now) > 0 && self.probes == 0) || self.next_search_at.is_some_and(|at| now < at) {
            return stopped;
        }
        self.next_search_at = Some(now + SEARCH_INTERVAL);
        let probe_max = self.slow() * PROBE_FACTOR;
        let probes = self.running.iter_mut().filter(|(_, running)| running.slot == Slot::Probe);
        for (attempt_id, running) in probes {
            if !running.stopped && now >= running.began + probe_max {
                suspects.stopped(running.order_ref, now);
                running.stopped = true;
                stopped.push(*attempt_id);
            }
        }
        if self.room(now) > 0 {
            return stopped;
        }
        let slow = self.running.iter().filter(|(_, running)| running.slot == Slot::Pool && !running.stopped);
        let slow = slow.filter(|(_, running)| suspects.is_overtaken(running.began, self.slow()));
        let mut slow: Vec<_> = slow.map(|(attempt_id, running)| (running.began, *attempt_id)).collect();
        // The lane takes those that began first: stopping them would waste the most work.
        slow.sort_unstable_by_key(|(began, _)| *began);
        for (_, attempt_id) in slow {
            let Some(running) = self.running.get_mut(&attempt_id) else { continue };
            suspects.overtaken(running.order_ref, running.began, now);
            if self.lane < lane_max(self.size) {
                running.slot = Slot::Lane;
                self.pool -= 1;
                self.lane += 1;
            } else {
                running.stopped = true;
                stopped.push(attempt_id);
            }
        }
        stopped
    }

    /// Orders that may be started in the pool. The lane is part of it, except in a pool of one.
    fn room(&self, now: Instant) -> usize {
        let all = self.size.saturating_sub(self.lane).max(1);
        self.breaker.width(now).min(all).saturating_sub(self.pool)
    }

    fn lane_room(&self, now: Instant) -> usize {
        // The breaker's limit applies to the lane too, except in a pool of one.
        let all = self.breaker.width(now).max(2).saturating_sub(self.lane + self.pool);
        lane_max(self.size).saturating_sub(self.lane).min(all)
    }

    /// Whether a probe of the breaker is due and this order may be it: one that has failed before only if no other came in time.
    fn is_due(&self, order_ref: OrderRef, suspects: &Suspects, now: Instant) -> bool {
        let Some(probe_at) = self.breaker.probe_at() else { return false };
        let chosen = !suspects.has_failed(order_ref, now) || now >= probe_at + PROBE_CHOICE;
        self.room(now) > 0 && now >= probe_at && chosen
    }

    /// Whether a probe beside the pool may start.
    fn may_probe(&self, now: Instant) -> bool {
        self.is_in_question(now) && self.next_probe_at.is_none_or(|at| now >= at) && self.probes == 0
    }

    /// Whether a probe has to find out if the dependency is available.
    fn is_in_question(&self, now: Instant) -> bool {
        self.breaker.probe_at().is_some() || self.is_stalled(now)
    }

    /// Whether the pool is full of attempts that all take long without a success. A pool that is only slow has room from
    /// time to time.
    fn is_stalled(&self, now: Instant) -> bool {
        self.room(now) == 0 && self.stalled_at().is_some_and(|at| now >= at)
    }

    fn stalled_at(&self) -> Option<Instant> {
        Some(
            self.last_started_at?.max(self.served_at.unwrap_or(self.last_started_at?))
                + self.longer_than_usual(STALL_MIN),
        )
    }

    /// Whether neither the order nor its customer has failed, and its customer occupies at most half of the slots.
    fn can_probe(&self, order_ref: OrderRef, suspects: &Suspects, now: Instant) -> bool {
        let of_this_customer = self.running.values().filter(|running| {
            running.order_ref.customer.is_some() && running.order_ref.customer == order_ref.customer
        });
        suspects.is_untried(order_ref, now) && of_this_customer.count() * 2 <= self.running.len()
    }

    fn count_mut(&mut self, slot: Slot) -> &mut usize {
        match slot {
            Slot::Pool => &mut self.pool,
            Slot::Lane => &mut self.lane,
            Slot::Probe => &mut self.probes,
        }
    }

    fn slow(&self) -> Duration {
        self.longer_than_usual(SLOW_MIN)
    }

    /// Several times the usual duration, within bounds.
    fn longer_than_usual(&self, min: Duration) -> Duration {
        (self.usual_duration * SLOW_FACTOR).clamp(min, SLOW_MAX)
    }
}

/// Slots of the suspects.
fn lane_max(size: usize) -> usize {
    size.div_ceil(4)
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
