//! Decides which message starts now, and which is postponed. Pure: the time is an argument.
//!
//! The broker delivers retries before new messages, so orders that keep failing would take every worker, and the
//! healthy ones behind them would never start. Therefore:
//!
//! - Suspects ([`Suspects`]) have a lane: a quarter of the pool. Further suspects are postponed without an attempt.
//!   Orders that have failed while nothing succeeded since share the lane: untried orders go first.
//! - An attempt that was overtaken, because one that began a second later succeeded, becomes a suspect's too. While the
//!   pool is full, those without a place in the lane are stopped.
//! - While the breaker is open, or every worker hangs, messages are examined all the same, and an order without known
//!   failures probes beside the pool. Its success distinguishes an outage from orders that fail together. A probe that
//!   takes long makes way for the next.
//! - A probe that is due after a pause is an order that has not failed before, if there is one.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::breaker::{Breaker, Change, Phase};
use crate::suspects::{Subject, Suspects};

/// An attempt that takes longer than this, and than others usually do, may hang.
const SLOW_MIN: Duration = Duration::from_secs(1);
/// How many times as long as usual that is, and no longer than this.
const SLOW_FACTOR: u32 = 4;
const SLOW_MAX: Duration = Duration::from_secs(5);
/// A full pool in which nothing ends well for this long, and for longer than usual, looks for a probe: that stops no attempt.
const STILL_MIN: Duration = Duration::from_millis(500);
/// How often a full pool is searched for attempts that were overtaken.
const SEARCH_INTERVAL: Duration = Duration::from_millis(100);
/// The weight of the latest attempt that went well in what is usual.
const USUAL_WEIGHT: f64 = 0.2;
/// Shortest time from one probe by an order that nothing is known against to the next.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// How many times as long as an attempt that may hang such a probe may take, before another has its place.
const PROBE_FACTOR: u32 = 2;
/// How long a probe that is due waits for an order that has not failed before.
const PROBE_CHOICE: Duration = Duration::from_millis(500);
/// Messages requested at a time to find a probe among them.
const LOOKED_AT_MAX: usize = 64;
/// How many messages are examined at first, and how often the number doubles. A pool that is full for a moment
/// postpones next to nothing, and one that hangs examines 10,000 within seconds.
const LOOKED_AT_FIRST: usize = 1;
const LOOKED_AT_DOUBLES: Duration = Duration::from_millis(150);
/// Postponed messages come back so far apart, however many they are, and no sooner than this.
const POSTPONED_INTERVAL: Duration = Duration::from_millis(5);
const POSTPONED_MIN: Duration = Duration::from_millis(200);
/// Messages examined for a probe return after four times as long as the pool has stalled, within these bounds. So other
/// messages are examined meanwhile, and a short stall delays few. Many of them return later.
const LOOKED_PAST_MIN: Duration = Duration::from_millis(500);
const LOOKED_PAST_USUAL: Duration = Duration::from_secs(2);
const LOOKED_PAST_FACTOR: u32 = 4;
/// No more messages are examined for a probe once the postponed ones take this long to return.
const LOOKED_PAST_MAX: Duration = Duration::from_secs(60);

/// Where a message is worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the pool.
    Pool,
    /// In the suspects' share of it.
    Lane,
    /// Beside it.
    Probe,
}

/// What becomes of a message that was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Begin(Place),
    /// It comes again, no sooner than after this.
    Postpone(Duration),
    /// The same, and it is a suspect.
    PostponeSuspect(Duration),
}

/// What working on a message has shown of the step's dependencies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DependencySignal {
    /// They answered.
    Served,
    /// One of them is away, perhaps for all orders.
    Unavailable,
    /// Nothing that holds for other orders.
    Unknown,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    subject: Subject,
    began: Instant,
    place: Place,
    /// Told to end.
    stopped: bool,
}

/// Names what runs in a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ticket(u64);

/// The places, and who has them.
#[derive(Debug)]
pub(crate) struct Admission {
    size: usize,
    breaker: Breaker,
    running: HashMap<Ticket, Running>,
    /// How many of them have each place.
    pool: usize,
    lane: usize,
    probes: usize,
    tickets: u64,
    /// When the latest attempt in the pool began.
    latest: Option<Instant>,
    /// When an attempt last ended well.
    served_at: Option<Instant>,
    /// When a full pool is searched next.
    next_search_at: Option<Instant>,
    /// How long attempts take that go well: a moving average.
    usual: Duration,
    /// When the next order that nothing is known against may probe.
    next_probe_at: Option<Instant>,
    looked_past: Postponed,
    /// Since when it has been in question whether the dependency is there, and how many messages were looked past since.
    question: Option<(Instant, usize)>,
    suspects: Postponed,
}

/// When messages come again that were postponed: one by one.
#[derive(Debug, Default)]
struct Postponed {
    next: Option<Instant>,
}

impl Postponed {
    /// When one more comes again.
    fn add(&mut self, earliest: Instant) -> Instant {
        let at = self.next.map_or(earliest, |next| next.max(earliest));
        self.next = Some(at + POSTPONED_INTERVAL);
        at
    }

    fn is_full(&self, now: Instant) -> bool {
        self.next.is_some_and(|next| next > now + LOOKED_PAST_MAX)
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
            tickets: 0,
            latest: None,
            served_at: None,
            next_search_at: None,
            usual: Duration::ZERO,
            next_probe_at: None,
            looked_past: Postponed::default(),
            question: None,
            suspects: Postponed::default(),
        }
    }

    pub(crate) fn phase(&self, now: Instant) -> Phase {
        self.breaker.phase(now)
    }

    /// How many messages could be worked on or looked at now.
    pub(crate) fn wanted(&mut self, now: Instant) -> usize {
        if !self.is_in_question(now) {
            self.question = None;
        }
        match self.room(now) {
            0 if self.may_probe(now) && !self.looked_past.is_full(now) => {
                let (since, looked_past) = *self.question.get_or_insert((now, 0));
                let doublings = (now - since).as_millis() / LOOKED_AT_DOUBLES.as_millis();
                let factor =
                    u32::try_from(doublings).ok().and_then(|doublings| 2usize.checked_pow(doublings));
                let budget = LOOKED_AT_FIRST.saturating_mul(factor.unwrap_or(usize::MAX));
                // No more at a time than were of no use before.
                budget.saturating_sub(looked_past).min(looked_past.clamp(1, LOOKED_AT_MAX))
            }
            room => room,
        }
    }

    /// When there is more to want than now, though nothing ends until then.
    pub(crate) fn wakes_at(&self, now: Instant) -> Option<Instant> {
        let is_full = self.room(now) == 0;
        let still_at = self.still_at().filter(|_| is_full);
        let search_at = self.next_search_at.filter(|_| is_full || self.probes > 0);
        let look_at = self.question.filter(|_| is_full).map(|_| now + LOOKED_AT_DOUBLES);
        let times = [self.breaker.probe_at(), self.next_probe_at, still_at, search_at, look_at];
        times.into_iter().flatten().filter(|at| *at > now).min()
    }

    /// Decides about a message that was delivered.
    pub(crate) fn admit(&mut self, subject: Subject, suspects: &Suspects, now: Instant) -> Verdict {
        let has_lane = suspects.is_suspect(subject, now) || suspects.is_doubtful(subject, now);
        if has_lane && self.breaker.probe_at().is_none() {
            return match self.lane_room(now) {
                0 => Verdict::PostponeSuspect(self.suspects.add(now + POSTPONED_MIN) - now),
                _ => Verdict::Begin(Place::Lane),
            };
        }
        if self.room(now) > 0 && (self.breaker.probe_at().is_none() || self.is_due(subject, suspects, now)) {
            return Verdict::Begin(Place::Pool);
        }
        let shows = self.shows_the_dependency(subject, suspects, now);
        if shows && self.may_probe(now) {
            self.next_probe_at = Some(now + PROBE_INTERVAL);
            return Verdict::Begin(Place::Probe);
        }
        // One that was asked for while there was room comes again at once. So does one that may be the next probe.
        if !self.is_in_question(now) || (shows && self.breaker.probe_at().is_none()) {
            return Verdict::Postpone(POSTPONED_MIN);
        }
        let mut stood = LOOKED_PAST_USUAL;
        if let Some((since, looked_past)) = &mut self.question {
            *looked_past += 1;
            stood = now - *since;
        }
        let delay = (stood * LOOKED_PAST_FACTOR).clamp(LOOKED_PAST_MIN, LOOKED_PAST_USUAL);
        let earliest = self.breaker.probe_at().unwrap_or(now).max(now + delay);
        Verdict::Postpone(self.looked_past.add(earliest) - now)
    }

    /// Work on a message begins.
    pub(crate) fn begin(&mut self, subject: Subject, place: Place, now: Instant) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.running.insert(ticket, Running { subject, began: now, place, stopped: false });
        *self.held(place) += 1;
        if place == Place::Pool {
            self.latest = Some(now);
        }
        ticket
    }

    /// And has ended.
    pub(crate) fn ended(&mut self, ticket: Ticket, found: DependencySignal, now: Instant) -> Change {
        let Some(running) = self.running.remove(&ticket) else { return Change::None };
        *self.held(running.place) -= 1;
        match found {
            DependencySignal::Served => {
                self.served_at = Some(now);
                let took = now - running.began;
                self.usual = self.usual.mul_f64(1.0 - USUAL_WEIGHT) + took.mul_f64(USUAL_WEIGHT);
                self.breaker.succeeded(running.began)
            }
            DependencySignal::Unavailable => self.breaker.failed(now),
            DependencySignal::Unknown => Change::None,
        }
    }

    /// Makes room. In a full pool, overtaken attempts move to the lane, and those without a place there are stopped. A
    /// probe that takes long is stopped too: another may succeed.
    pub(crate) fn overtaken(&mut self, suspects: &mut Suspects, now: Instant) -> Vec<Ticket> {
        let mut stopped = Vec::new();
        if (self.room(now) > 0 && self.probes == 0) || self.next_search_at.is_some_and(|at| now < at) {
            return stopped;
        }
        self.next_search_at = Some(now + SEARCH_INTERVAL);
        let probe_max = self.slow() * PROBE_FACTOR;
        let probes = self.running.iter_mut().filter(|(_, running)| running.place == Place::Probe);
        for (ticket, running) in probes {
            if !running.stopped && now >= running.began + probe_max {
                suspects.stopped(running.subject, now);
                running.stopped = true;
                stopped.push(*ticket);
            }
        }
        if self.room(now) > 0 {
            return stopped;
        }
        let slow =
            self.running.iter().filter(|(_, running)| running.place == Place::Pool && !running.stopped);
        let slow = slow.filter(|(_, running)| suspects.is_overtaken(running.began, self.slow()));
        let mut slow: Vec<_> = slow.map(|(ticket, running)| (running.began, *ticket)).collect();
        // Those that began first have the most to lose.
        slow.sort_unstable_by_key(|(began, _)| *began);
        for (_, ticket) in slow {
            let Some(running) = self.running.get_mut(&ticket) else { continue };
            suspects.overtaken(running.subject, running.began, now);
            if self.lane < lane_max(self.size) {
                running.place = Place::Lane;
                self.pool -= 1;
                self.lane += 1;
            } else {
                running.stopped = true;
                stopped.push(ticket);
            }
        }
        stopped
    }

    /// Orders that may be begun in the pool. The lane is part of it; but a pool of one keeps its one place.
    fn room(&self, now: Instant) -> usize {
        let all = self.size.saturating_sub(self.lane).max(1);
        self.breaker.width(now).min(all).saturating_sub(self.pool)
    }

    fn lane_room(&self, now: Instant) -> usize {
        // Nothing may begin beyond what the breaker allows, but for the pool of one.
        let all = self.breaker.width(now).max(2).saturating_sub(self.lane + self.pool);
        lane_max(self.size).saturating_sub(self.lane).min(all)
    }

    /// Whether a probe is due that this order may be: one that has failed before only if no other came in time.
    fn is_due(&self, subject: Subject, suspects: &Suspects, now: Instant) -> bool {
        let Some(probe_at) = self.breaker.probe_at() else { return false };
        let chosen = !suspects.has_failed(subject, now) || now >= probe_at + PROBE_CHOICE;
        self.room(now) > 0 && now >= probe_at && chosen
    }

    /// Whether there is a use for a probe beside the pool, and time for one.
    fn may_probe(&self, now: Instant) -> bool {
        self.is_in_question(now) && self.next_probe_at.is_none_or(|at| now >= at) && self.probes == 0
    }

    /// Whether it is to be found out if the dependency is there.
    fn is_in_question(&self, now: Instant) -> bool {
        self.breaker.probe_at().is_some() || self.stands_still(now)
    }

    /// Whether there is no room because of attempts that all take long, and none ends well. A pool that is only slow has
    /// room again and again.
    fn stands_still(&self, now: Instant) -> bool {
        self.room(now) == 0 && self.still_at().is_some_and(|at| now >= at)
    }

    fn still_at(&self) -> Option<Instant> {
        Some(self.latest?.max(self.served_at.unwrap_or(self.latest?)) + self.longer_than_usual(STILL_MIN))
    }

    /// Whether nothing is known against an order, and it is not of the customer whose orders hold most places.
    fn shows_the_dependency(&self, subject: Subject, suspects: &Suspects, now: Instant) -> bool {
        let of_the_same = self.running.values().filter(|running| {
            running.subject.customer.is_some() && running.subject.customer == subject.customer
        });
        suspects.is_untried(subject, now) && of_the_same.count() * 2 <= self.running.len()
    }

    fn held(&mut self, place: Place) -> &mut usize {
        match place {
            Place::Pool => &mut self.pool,
            Place::Lane => &mut self.lane,
            Place::Probe => &mut self.probes,
        }
    }

    fn slow(&self) -> Duration {
        self.longer_than_usual(SLOW_MIN)
    }

    /// Several times as long as attempts take that go well, within bounds.
    fn longer_than_usual(&self, min: Duration) -> Duration {
        (self.usual * SLOW_FACTOR).clamp(min, SLOW_MAX)
    }
}

/// Places of the suspects.
fn lane_max(size: usize) -> usize {
    size.div_ceil(4)
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
