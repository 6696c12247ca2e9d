//! A circuit breaker for an unavailable dependency. Pure: the time is an argument.
//!
//! Closed, the pool has its full width. After several failures in a row that were no order's own fault the breaker
//! opens: nothing starts for a while. Then one order probes; if it succeeds, each success permits one more, until the
//! pool is as wide as before. A failure on the way opens it again, for longer. A success of an attempt that began after
//! it opened ends the pause.

use std::time::Duration;

use program::backoff::Backoff;
use tokio::time::Instant;

/// Failures in a row, with no success between them, that are taken for an outage.
const OUTAGE_FAILURES: u32 = 5;
const PAUSE: Backoff = Backoff { initial: Duration::from_millis(500), max: Duration::from_secs(10) };

/// Limits how many orders the pool works on at a time.
#[derive(Debug)]
pub(crate) struct Breaker {
    pool_size: usize,
    /// Limit of orders in progress.
    width: usize,
    failures: u32,
    /// How often it opened since it was last closed.
    pauses: u64,
    opened: Option<Opened>,
}

/// The state while the breaker is open or half-open.
#[derive(Clone, Copy, Debug)]
struct Opened {
    at: Instant,
    probe_at: Instant,
}

/// The breaker's state, as metrics report it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BreakerState {
    /// The dependency is available.
    Closed = 0,
    /// One order probes the dependency, or the pool is still below its configured width.
    HalfOpen = 1,
    /// No order is started.
    Open = 2,
}

/// The transition that a failure or a success caused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transition {
    None,
    /// No order is started for this long.
    Opened(Duration),
    /// The pool has its configured width again.
    Closed,
}

impl Breaker {
    pub(crate) fn new(pool_size: usize) -> Self {
        Self { pool_size, width: pool_size, failures: 0, pauses: 0, opened: None }
    }

    /// How many orders may be in progress.
    pub(crate) fn width(&self, now: Instant) -> usize {
        match self.opened {
            Some(opened) if now < opened.probe_at => 0,
            Some(_) => 1,
            None => self.width,
        }
    }

    /// The state at `now`.
    pub(crate) fn state(&self, now: Instant) -> BreakerState {
        match self.width(now) {
            0 => BreakerState::Open,
            _ if self.pauses > 0 => BreakerState::HalfOpen,
            _ => BreakerState::Closed,
        }
    }

    /// When the next probe may start (perhaps in the past), while no attempt has succeeded since the breaker opened.
    pub(crate) fn probe_at(&self) -> Option<Instant> {
        self.opened.map(|opened| opened.probe_at)
    }

    /// The dependency answered an attempt that began at `began`.
    pub(crate) fn succeeded(&mut self, began: Instant) -> Transition {
        self.failures = 0;
        if let Some(opened) = self.opened {
            // It began before the breaker opened: no evidence about the dependency now.
            if began < opened.at {
                return Transition::None;
            }
            self.opened = None;
            self.width = 1;
        }
        if self.pauses == 0 {
            return Transition::None;
        }
        self.width = (self.width + 1).min(self.pool_size);
        if self.width < self.pool_size {
            return Transition::None;
        }
        self.pauses = 0;
        Transition::Closed
    }

    /// The dependency was unavailable.
    pub(crate) fn failed(&mut self, now: Instant) -> Transition {
        self.failures += 1;
        // While the dependency is not known to be available again, one failure is enough.
        let recovering = self.pauses > 0 && self.width < self.pool_size;
        let waiting = self.opened.is_some_and(|opened| now < opened.probe_at);
        if waiting || (self.failures < OUTAGE_FAILURES && !recovering) {
            return Transition::None;
        }
        self.pauses += 1;
        self.width = 0;
        let pause = PAUSE.after(self.pauses);
        self.opened = Some(Opened { at: now, probe_at: now + pause });
        Transition::Opened(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: usize = 4;

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(POOL);
        for _ in 1..OUTAGE_FAILURES {
            assert_eq!(breaker.failed(now), Transition::None);
        }
        assert!(matches!(breaker.failed(now), Transition::Opened(_)));
        breaker
    }

    #[test]
    fn failures_among_successes_do_not_open_the_breaker() {
        let (mut breaker, now) = (Breaker::new(POOL), Instant::now());
        for _ in 0..100 {
            assert_eq!(breaker.failed(now), Transition::None);
            assert_eq!(breaker.succeeded(now), Transition::None);
        }
        assert_eq!((breaker.width(now), breaker.state(now)), (POOL, BreakerState::Closed));
    }

    #[test]
    fn an_outage_is_probed_by_one_and_resumed_one_more_at_a_time() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert_eq!((breaker.width(now), breaker.state(now)), (0, BreakerState::Open));
        let probe_at = breaker.probe_at().unwrap();
        assert_eq!((breaker.width(probe_at), breaker.state(probe_at)), (1, BreakerState::HalfOpen));
        let widths: Vec<_> = (0..POOL)
            .map(|_| {
                breaker.succeeded(probe_at);
                breaker.width(probe_at)
            })
            .collect();
        assert_eq!(widths, [2, 3, 4, 4]);
        assert_eq!(breaker.probe_at(), None);
    }

    #[test]
    fn a_pool_of_one_has_its_width_again_once_the_probe_succeeds() {
        let now = Instant::now();
        let mut breaker = Breaker::new(1);
        while breaker.failed(now) == Transition::None {}
        let probe_at = breaker.probe_at().unwrap();
        assert_eq!(breaker.succeeded(probe_at), Transition::Closed);
        assert_eq!((breaker.width(probe_at), breaker.pauses), (1, 0));
        assert_eq!(breaker.succeeded(probe_at), Transition::None);
    }

    #[test]
    fn a_failing_probe_waits_longer() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let probe_at = breaker.probe_at().unwrap();
            let Transition::Opened(pause) = breaker.failed(probe_at) else { panic!("stays open") };
            pauses.push(pause);
        }
        assert!(pauses[7] >= PAUSE.max / 2 && pauses.iter().all(|pause| *pause <= PAUSE.max), "{pauses:?}");
        assert!(pauses[0] < pauses[7]);
    }

    #[test]
    fn an_attempt_from_before_it_opened_neither_closes_it_nor_prolongs_the_pause() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let probe_at = breaker.probe_at();
        assert_eq!(breaker.failed(now), Transition::None);
        assert_eq!(breaker.succeeded(now - Duration::from_secs(1)), Transition::None);
        assert_eq!((breaker.probe_at(), breaker.width(now)), (probe_at, 0));
    }

    #[test]
    fn a_success_of_an_attempt_that_began_while_it_was_open_ends_the_pause() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert_eq!(breaker.succeeded(now), Transition::None);
        assert_eq!(
            (breaker.probe_at(), breaker.width(now), breaker.state(now)),
            (None, 2, BreakerState::HalfOpen)
        );
    }

    #[test]
    fn closed_again_it_forgets_how_often_it_was_open() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let probe_at = breaker.probe_at().unwrap();
        let transitions: Vec<_> = (0..POOL).map(|_| breaker.succeeded(probe_at)).collect();
        assert_eq!(transitions.iter().filter(|transition| **transition == Transition::Closed).count(), 1);
        for _ in 1..OUTAGE_FAILURES {
            assert_eq!(breaker.failed(probe_at), Transition::None);
        }
        let Transition::Opened(pause) = breaker.failed(probe_at) else { panic!("opens") };
        assert!(pause <= PAUSE.initial);
    }
}
