//! Simulates pools and their broker over minutes of admission decisions.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use backbone::log::ids::{CustomerKey, Revision};
use proptest::prelude::*;
use proptest::sample::select;
use tokio::time::Instant;

use super::*;
use crate::suspects::AttemptStart;

const TICK: Duration = Duration::from_millis(10);
/// Messages delivered to a process within a tick: 2,000 a second.
const DELIVERIES_MAX: usize = 20;

/// How the dependency answers an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dependency {
    Serves,
    /// Serves after seconds.
    IsSlow,
    Refuses,
    Hangs,
}

impl Dependency {
    fn takes(self) -> Duration {
        match self {
            Self::Serves => TICK,
            Self::IsSlow => Duration::from_secs(3),
            Self::Refuses => Duration::from_millis(300),
            Self::Hangs => Duration::from_secs(15),
        }
    }
}

struct Message {
    order_ref: OrderRef,
    stored: Instant,
    deliveries: u32,
    counted: usize,
    served: Option<Duration>,
}

struct Attempt {
    message: usize,
    began: Instant,
    ends: Instant,
    start: AttemptStart,
    does: Dependency,
}

struct Pool {
    admission: Admission,
    suspects: Suspects,
    running: HashMap<AttemptId, Attempt>,
    opened: bool,
}

struct World {
    start: Instant,
    now: Instant,
    messages: Vec<Message>,
    fresh: VecDeque<usize>,
    /// Postponed messages, by the time of their redelivery.
    again: BTreeSet<(Instant, usize)>,
    pools: Vec<Pool>,
}

impl World {
    fn new(pools: usize, size: usize) -> Self {
        let start = Instant::now();
        let pool = || Pool {
            admission: Admission::new(size),
            suspects: Suspects::default(),
            running: HashMap::new(),
            opened: false,
        };
        let pools = (0..pools).map(|_| pool()).collect();
        Self {
            start,
            now: start,
            messages: Vec::new(),
            fresh: VecDeque::new(),
            again: BTreeSet::new(),
            pools,
        }
    }

    fn place(&mut self, customer: &str) -> usize {
        let n = self.messages.len();
        let order_ref =
            OrderRef { message: Revision(n as u64), customer: Some(CustomerKey::of("", customer)) };
        self.messages.push(Message { order_ref, stored: self.now, deliveries: 0, counted: 0, served: None });
        self.fresh.push_back(n);
        n
    }

    /// Redeliveries go first, as at the broker.
    fn next(&mut self) -> Option<usize> {
        if self.again.first().is_some_and(|(at, _)| *at <= self.now) {
            return self.again.pop_first().map(|(_, message)| message);
        }
        self.fresh.pop_front()
    }

    fn comes_again(&mut self, message: usize, delay: Duration) {
        self.again.insert((self.now + delay, message));
    }

    fn backoff(&self, message: usize) -> Duration {
        let doublings = self.messages[message].deliveries.min(10);
        (Duration::from_millis(100) * 2u32.pow(doublings)).min(Duration::from_secs(30))
    }

    fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    fn tick(&mut self, dependency: impl Fn(&OrderRef, Duration) -> Dependency) {
        self.now += TICK;
        for n in 0..self.pools.len() {
            self.end(n);
            self.begin(n, &dependency);
        }
    }

    fn end(&mut self, n: usize) {
        let now = self.now;
        let ended = self.pools[n].running.iter().filter(|(_, attempt)| attempt.ends <= now);
        let mut ended: Vec<_> = ended.map(|(attempt_id, attempt)| (attempt.message, *attempt_id)).collect();
        ended.sort_unstable_by_key(|(message, _)| *message);
        for (message, attempt_id) in ended {
            let pool = &mut self.pools[n];
            let Attempt { began, start, does, .. } = pool.running.remove(&attempt_id).unwrap();
            let order_ref = self.messages[message].order_ref;
            let signal = if matches!(does, Dependency::Serves | Dependency::IsSlow) {
                pool.suspects.served(order_ref, began);
                self.messages[message].served = Some(now - self.messages[message].stored);
                DependencySignal::Served
            } else {
                let counts = pool.suspects.failed(order_ref, start, now);
                self.messages[message].counted += usize::from(counts);
                if pool.suspects.is_suspect(order_ref, now) {
                    DependencySignal::Unknown
                } else {
                    DependencySignal::Unavailable
                }
            };
            let transition = pool.admission.end(attempt_id, signal, now);
            pool.opened |= matches!(transition, Transition::Opened(_));
            if signal != DependencySignal::Served {
                self.comes_again(message, self.backoff(message));
            }
        }
    }

    fn begin(&mut self, n: usize, dependency: &impl Fn(&OrderRef, Duration) -> Dependency) {
        let now = self.now;
        for _ in 0..DELIVERIES_MAX {
            let pool = &mut self.pools[n];
            for attempt_id in pool.admission.overtaken(&mut pool.suspects, now) {
                let Attempt { message, .. } = self.pools[n].running.remove(&attempt_id).unwrap();
                self.pools[n].admission.end(attempt_id, DependencySignal::Unknown, now);
                self.comes_again(message, self.backoff(message));
            }
            if self.pools[n].admission.wanted(now) == 0 {
                return;
            }
            let Some(message) = self.next() else { return };
            self.messages[message].deliveries += 1;
            let order_ref = self.messages[message].order_ref;
            let pool = &mut self.pools[n];
            match pool.admission.admit(order_ref, &pool.suspects, now) {
                Verdict::Begin(slot) => {
                    let does = dependency(&order_ref, now - self.start);
                    let attempt_id = pool.admission.begin(order_ref, slot, now);
                    let (start, ends) = (pool.suspects.begin(order_ref, now), now + does.takes());
                    pool.running.insert(attempt_id, Attempt { message, began: now, ends, start, does });
                    let size = pool.admission.size;
                    assert!(
                        pool.running.len() <= size + 1 + usize::from(size == 1),
                        "one slot more for a probe"
                    );
                }
                Verdict::Postpone(delay) => self.comes_again(message, delay),
                Verdict::PostponeSuspect(delay) => {
                    let delay = delay.max(self.backoff(message));
                    self.comes_again(message, delay);
                }
            }
        }
    }
}

/// Failing orders of one customer, or of one each, all at once, and a healthy order each second. Returns how long the
/// slowest healthy order took, and how many attempts were counted.
fn healthy_among(
    bad: usize,
    does: Dependency,
    pools: usize,
    size: usize,
    one_customer: bool,
    first: bool,
) -> (Duration, usize) {
    let mut world = World::new(pools, size);
    let mut healthy = Vec::new();
    let begin = |world: &mut World| {
        for n in 0..bad {
            world.place(&if one_customer { "bad".to_owned() } else { format!("bad-{n}") });
        }
    };
    if first {
        begin(&mut world);
    }
    let bad_customers = (0..bad).map(|n| format!("bad-{n}")).chain(["bad".to_owned()]);
    let bad_customers: HashSet<_> = bad_customers.map(|name| CustomerKey::of("", &name)).collect();
    for tick in 0..9_000 {
        if !first && tick == 1_000 {
            begin(&mut world);
        }
        if tick % 100 == 50 && tick < 8_000 {
            healthy.push(world.place(&format!("healthy-{}", healthy.len() % 5)));
        }
        world.tick(|order_ref, _| {
            let is_bad = order_ref.customer.is_some_and(|customer| bad_customers.contains(&customer));
            if is_bad { does } else { Dependency::Serves }
        });
    }
    let slowest = healthy.iter().map(|n| world.messages[*n].served.unwrap_or(Duration::MAX)).max().unwrap();
    let counted = world.messages.iter().map(|message| message.counted).sum();
    assert!(healthy.iter().all(|n| world.messages[*n].counted == 0), "a healthy order is not at fault");
    (slowest, counted)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn failing_orders_of_one_customer_block_no_others_however_many_there_are(
        bad in select(vec![1usize, 4, 7, 12, 30, 100, 500]),
        does in select(vec![Dependency::Refuses, Dependency::Hangs]),
        pools in 1usize..=3,
        size in select(vec![1usize, 2, 10, 128]),
        first: bool,
    ) {
        let (slowest, counted) = healthy_among(bad, does, pools, size, true, first);
        prop_assert!(slowest <= Duration::from_millis(2500), "{slowest:?}");
        prop_assert!(counted > 0, "the bad ones are counted");
    }

    #[test]
    fn an_outage_uses_up_no_attempts_and_ends(
        orders in 1usize..300,
        customers in 1usize..30,
        does in select(vec![Dependency::Refuses, Dependency::Hangs]),
        pools in 1usize..=2,
        size in select(vec![1usize, 10]),
    ) {
        let mut world = World::new(pools, size);
        let (begin, end) = (Duration::from_secs(5), Duration::from_secs(65));
        for tick in 0..12_000 {
            // Some orders are served before the outage, and most are placed during it.
            if tick < 50 || (600..600 + orders).contains(&tick) {
                world.place(&format!("customer-{}", tick % customers));
            }
            world.tick(|_, at| if (begin..end).contains(&at) { does } else { Dependency::Serves });
        }
        prop_assert!(world.elapsed() > end);
        prop_assert!(world.messages.iter().all(|message| message.counted == 0), "no attempt is used up");
        let waiting = world.messages.iter().filter(|message| message.served.is_none()).count();
        prop_assert_eq!(waiting, 0, "all are served in the end");
        if orders > 100 && pools == 1 {
            prop_assert!(world.pools.iter().all(|pool| pool.opened), "the breaker opens");
        }
    }
}

/// A dependency that takes seconds for every order, fewer customers than workers, and far more orders than workers.
#[test]
fn a_slow_dependency_causes_few_redeliveries() {
    let mut world = World::new(2, 10);
    for n in 0..400 {
        world.place(&format!("customer-{}", n % 3));
    }
    for _ in 0..12_000 {
        world.tick(|_, _| Dependency::IsSlow);
    }
    assert!(world.messages.iter().all(|message| message.served.is_some()));
    // Until the first success, after three seconds, a slow dependency looks like one that hangs.
    let deliveries: u32 = world.messages.iter().map(|message| message.deliveries).sum();
    assert!(deliveries <= 1_500, "{deliveries} deliveries of 400 messages");
}

/// The first healthy order arrives while every worker hangs for the first time.
#[test]
fn a_healthy_order_behind_those_that_hang_takes_a_second() {
    for (bad, ms) in [(30, 1_000), (500, 1_500)] {
        let (slowest, _) = healthy_among(bad, Dependency::Hangs, 2, 10, true, true);
        assert!(slowest <= Duration::from_millis(ms), "{bad}: {slowest:?}");
    }
}

#[test]
fn twenty_thousand_failing_orders_block_no_others() {
    for does in [Dependency::Refuses, Dependency::Hangs] {
        let (slowest, counted) = healthy_among(20_000, does, 2, 10, true, false);
        assert!(slowest <= Duration::from_secs(8), "{does:?}: {slowest:?}");
        assert!(counted > 0);
    }
}

#[test]
fn failing_orders_of_many_customers_are_distinguished_from_an_outage() {
    for does in [Dependency::Refuses, Dependency::Hangs] {
        for size in [1, 10] {
            let (slowest, counted) = healthy_among(12, does, 2, size, false, true);
            assert!(slowest <= Duration::from_secs(20), "{does:?}, {size}: {slowest:?}");
            assert!(counted > 0);
        }
    }
}
