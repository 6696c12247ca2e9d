//! Rate limits: of each caller, so that none crowds out the others, and of all callers together.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::middleware::NoOpMiddleware;
use governor::state::InMemoryState;
use governor::state::direct::NotKeyed;
use governor::state::keyed::DefaultKeyedStateStore;
use governor::{NotUntil, Quota, RateLimiter};
use http::Request;
use tonic::Status;
use tonic::body::Body;

use super::Caller;
use super::cost::cost;
use super::turns::Turns;
use crate::errors;
use crate::gate::Admit;

/// How often callers with a full bucket are removed, so that memory stays bounded.
const FORGET_INTERVAL: Duration = Duration::from_secs(60);

/// The settings of both limits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RateLimits {
    pub(crate) of_caller: Quota,
    pub(crate) of_all: Quota,
}

type OfCallers<C> =
    RateLimiter<Caller, DefaultKeyedStateStore<Caller>, C, NoOpMiddleware<<C as Clock>::Instant>>;
type OfAll<C> = RateLimiter<NotKeyed, InMemoryState, C, NoOpMiddleware<<C as Clock>::Instant>>;

/// A token bucket for each caller, and one for all; and the virtual queues of rejected calls.
#[derive(Clone, Debug)]
pub(crate) struct RateLimit<C: Clock = DefaultClock> {
    callers: Arc<OfCallers<C>>,
    all: Arc<OfAll<C>>,
    turns_of_callers: Arc<Turns<Caller, C>>,
    turns_of_all: Arc<Turns<(), C>>,
    quota_of_caller: Quota,
    clock: C,
}

impl RateLimit {
    pub(crate) fn new(limits: RateLimits) -> Self {
        Self::with_clock(limits, DefaultClock::default())
    }
}

impl<C: Clock + Clone> RateLimit<C> {
    fn with_clock(RateLimits { of_caller, of_all }: RateLimits, clock: C) -> Self {
        let (callers, all) = (DefaultKeyedStateStore::default(), InMemoryState::default());
        Self {
            callers: Arc::new(RateLimiter::new(of_caller, callers, clock.clone())),
            all: Arc::new(RateLimiter::new(of_all, all, clock.clone())),
            turns_of_callers: Arc::new(Turns::new(of_caller, clock.clone())),
            turns_of_all: Arc::new(Turns::new(of_all, clock.clone())),
            quota_of_caller: of_caller,
            clock,
        }
    }

    fn check(&self, caller: &Caller, cost: NonZeroU32) -> Result<(), Status> {
        let wait = |not_until: NotUntil<_>| not_until.wait_time_from(self.clock.now());
        // The caller's own bucket first: a call that it rejects must not take tokens of the shared one.
        match self.callers.check_key_n(caller, cost) {
            Ok(Ok(())) => {}
            Ok(Err(not_until)) => {
                let wait = self.turns_of_callers.take(caller, cost, wait(not_until));
                return Err(errors::rate_limited(caller.kind(), wait));
            }
            Err(_) => return Err(errors::internal()),
        }
        match self.all.check_n(cost) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(not_until)) => {
                // The call took tokens of its caller, which have to refill before a retry.
                let again = self.quota_of_caller.replenish_interval() * cost.get();
                let wait = self.turns_of_all.take(&(), cost, wait(not_until));
                Err(errors::rate_limited("gateway", wait.max(again)))
            }
            Err(_) => Err(errors::internal()),
        }
    }

    /// Runs for as long as the server does.
    pub(crate) async fn forget_idle_callers(self) {
        loop {
            tokio::time::sleep(FORGET_INTERVAL).await;
            self.forget();
        }
    }

    fn forget(&self) {
        self.callers.retain_recent();
        self.callers.shrink_to_fit();
        self.turns_of_callers.forget();
    }
}

impl<C: Clock + Clone> Admit for RateLimit<C> {
    fn admit(&self, request: &mut Request<Body>) -> Result<(), Status> {
        self.check(&Caller::of(request.extensions()), cost(request.uri().path()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use governor::clock::FakeRelativeClock;
    use std::net::IpAddr;
    use tonic::Code;
    use tonic_types::StatusExt;

    const CREATE: &str = "/orders.v1.OrderService/CreateOrder";
    const LIST: &str = "/orders.v1.OrderService/ListOrders";

    fn quota(per_second: u32, burst: u32) -> Quota {
        let number = |n| NonZeroU32::new(n).unwrap();
        Quota::per_second(number(per_second)).allow_burst(number(burst))
    }

    fn limited(of_caller: Quota, of_all: Quota) -> (RateLimit<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        (RateLimit::with_clock(RateLimits { of_caller, of_all }, clock.clone()), clock)
    }

    fn call(limit: &RateLimit<FakeRelativeClock>, peer: &str, path: &str) -> Result<(), Duration> {
        let refused = |status: Status| {
            assert_eq!(status.code(), Code::ResourceExhausted);
            assert!(status.get_details_quota_failure().is_some());
            status.get_details_retry_info().unwrap().retry_delay.unwrap()
        };
        limit.check(&Caller::Peer(Some(peer.parse().unwrap())), cost(path)).map_err(refused)
    }

    #[test]
    fn a_peer_over_its_rate_gets_a_retry_delay_and_others_are_admitted() {
        let (limit, clock) = limited(quota(1, 10), quota(100, 100));
        for _ in 0..10 {
            call(&limit, "10.0.0.1", CREATE).unwrap();
        }
        let wait = call(&limit, "10.0.0.1", CREATE).unwrap_err();
        assert!(wait >= Duration::from_secs(1) && wait < Duration::from_secs(2), "{wait:?}");
        call(&limit, "10.0.0.2", CREATE).unwrap();
        clock.advance(wait);
        call(&limit, "10.0.0.1", CREATE).unwrap();
    }

    #[test]
    fn rejected_calls_are_admitted_after_their_retry_delay() {
        let (limit, clock) = limited(quota(10, 10), quota(100, 100));
        let mut turns: Vec<_> = (0..60).filter_map(|_| call(&limit, "10.0.0.1", CREATE).err()).collect();
        assert_eq!(turns.len(), 50);
        turns.sort();
        let mut now = Duration::ZERO;
        for turn in turns {
            clock.advance(turn - now);
            now = turn;
            call(&limit, "10.0.0.1", CREATE).unwrap();
        }
    }

    #[test]
    fn a_list_costs_more_than_a_create() {
        let (limit, _) = limited(quota(1, 10), quota(100, 100));
        call(&limit, "10.0.0.1", LIST).unwrap();
        call(&limit, "10.0.0.1", CREATE).unwrap_err();
    }

    #[test]
    fn calls_beyond_a_peers_rate_take_no_shared_tokens() {
        let (limit, _) = limited(quota(1, 10), quota(1, 20));
        for _ in 0..100 {
            call(&limit, "10.0.0.1", CREATE).ok();
        }
        call(&limit, "10.0.0.2", LIST).unwrap();
        let wait = call(&limit, "10.0.0.3", LIST).unwrap_err();
        assert!(wait >= Duration::from_secs(10) && wait < Duration::from_secs(11), "{wait:?}");
    }

    #[test]
    fn a_million_callers_cost_nothing_once_they_are_idle() {
        const CALLERS: u32 = 1_000_000;
        // The burst is full again half a second after the one call of a caller.
        let (limit, clock) = limited(quota(2, 10), quota(u32::MAX, u32::MAX));
        let caller = |number: u32| Caller::Peer(Some(IpAddr::V4(number.into())));
        for number in 0..CALLERS {
            limit.check(&caller(number), cost(CREATE)).unwrap();
        }
        clock.advance(Duration::from_secs(1));
        let busy = caller(CALLERS);
        while limit.check(&busy, cost(CREATE)).is_ok() {}
        limit.forget();
        assert_eq!(limit.callers.len(), 1);
        limit.check(&busy, cost(CREATE)).unwrap_err();
        let callers = Arc::into_inner(limit.callers).unwrap().into_state_store();
        assert!(callers.capacity() < 10_000, "room for {} callers is kept", callers.capacity());
    }
}
