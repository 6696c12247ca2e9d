//! A virtual queue of the callers that a rate limit has rejected. Each gets its own turn, and not the moment when the
//! next call is allowed.

use std::hash::Hash;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DefaultKeyedStateStore;
use governor::{Jitter, Quota, RateLimiter};

use super::cost::COST_MAX;

/// The queue holds as many calls as are allowed in this time. Further callers get about this delay: such a caller may
/// never wait, and its calls must not delay those of others without bound.
const QUEUE_TIME_MAX: Duration = Duration::from_secs(30);

/// The queue is a token bucket itself: a rejection takes the cost of the call out of it, and it refills at the allowed
/// rate. Its deficit is the calls with a turn in the future.
#[derive(Debug)]
pub(super) struct Turns<K: Hash + Eq + Clone, C: Clock> {
    queue: RateLimiter<K, DefaultKeyedStateStore<K>, C, StateInformationMiddleware>,
    capacity: u32,
    /// How long one call keeps the next one waiting.
    interval: Duration,
}

impl<K: Hash + Eq + Clone, C: Clock> Turns<K, C> {
    /// The queue before a limit of this quota.
    pub(super) fn new(quota: Quota, clock: C) -> Self {
        let interval = quota.replenish_interval();
        let calls = QUEUE_TIME_MAX.as_nanos() / interval.as_nanos().max(1);
        let capacity = u32::try_from(calls).unwrap_or(u32::MAX).max(COST_MAX);
        let capacity = NonZeroU32::new(capacity).unwrap_or(NonZeroU32::MIN);
        let queue = RateLimiter::new(quota.allow_burst(capacity), DefaultKeyedStateStore::default(), clock);
        Self { queue, capacity: capacity.get(), interval }
    }

    /// Takes the next turn for a call of this cost, which would be allowed after `wait` without a queue. Returns the delay
    /// until its turn.
    pub(super) fn take(&self, key: &K, cost: NonZeroU32, wait: Duration) -> Duration {
        match self.queue.check_key_n(key, cost) {
            Ok(Ok(snapshot)) => {
                let taken = self.capacity.saturating_sub(snapshot.remaining_burst_capacity());
                let ahead = taken.saturating_sub(cost.get());
                Jitter::up_to(self.interval) + wait + self.interval * ahead
            }
            Ok(Err(_)) | Err(_) => Jitter::up_to(QUEUE_TIME_MAX / 2) + wait.max(QUEUE_TIME_MAX),
        }
    }

    /// Removes callers without a turn in the future.
    pub(super) fn forget(&self) {
        self.queue.retain_recent();
        self.queue.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use governor::clock::FakeRelativeClock;

    const ONE: NonZeroU32 = NonZeroU32::MIN;
    const INTERVAL: Duration = Duration::from_millis(100);

    fn turns() -> (Turns<&'static str, FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        (Turns::new(Quota::per_second(NonZeroU32::new(10).unwrap()), clock.clone()), clock)
    }

    #[test]
    fn each_rejected_call_gets_a_later_turn() {
        let (turns, _) = turns();
        for ahead in 0..60 {
            let wait = turns.take(&"ada", ONE, INTERVAL);
            let turn = INTERVAL * (ahead + 1);
            assert!(wait >= turn && wait < turn + INTERVAL, "{ahead}: {wait:?}");
        }
        assert!(turns.take(&"barbara", ONE, INTERVAL) < 2 * INTERVAL, "another caller does not queue behind");
    }

    #[test]
    fn past_turns_are_released() {
        let (turns, clock) = turns();
        for _ in 0..50 {
            turns.take(&"ada", ONE, INTERVAL);
        }
        clock.advance(INTERVAL * 40);
        let wait = turns.take(&"ada", ONE, INTERVAL);
        assert!(wait >= INTERVAL * 11 && wait < INTERVAL * 12, "{wait:?}");
        clock.advance(INTERVAL * 12);
        turns.forget();
        assert!(turns.queue.is_empty());
    }

    #[test]
    fn a_caller_that_does_not_wait_delays_the_queue_by_a_bounded_time() {
        let (turns, _) = turns();
        let waits: Vec<_> = (0..10_000).map(|_| turns.take(&"ada", ONE, INTERVAL)).collect();
        assert!(waits.iter().all(|wait| *wait <= QUEUE_TIME_MAX * 3 / 2), "{:?}", waits.iter().max());
    }
}
