//! Distinguishes orders that fail alone from an outage. Pure: the time is an argument.
//!
//! An outage affects every order, so it uses up no order's attempts. An order whose dependency is unavailable while
//! others succeed fails alone. Orders of one customer often fail together, for example because of the customer's bank.
//! So once some of them have failed and others succeeded, further ones are suspects before their first attempt.

use std::collections::HashMap;
use std::time::Duration;

use backbone::log::ids::{CustomerKey, Revision};
use tokio::time::Instant;

/// Limit of remembered orders, and of customers: as many orders as the broker delivers without an acknowledgement.
/// Beyond it all are forgotten at once, and detected again.
const REMEMBERED_MAX: usize = 100_000;
/// Failures in a row of one customer's orders that make the others suspects.
const CUSTOMER_FAILURES: u32 = 3;
/// After so long without a failure an order or a customer is no suspect any more.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10 * 60);

/// The recent failures, and the begin of the latest successful attempt.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    /// When the latest successful attempt began. Its end would prove too much: the dependency may have become unavailable
    /// meanwhile.
    served_since: Option<Instant>,
    orders: HashMap<Revision, Failure>,
    customers: HashMap<CustomerKey, Streak>,
}

/// The latest failure of an order.
#[derive(Clone, Copy, Debug)]
struct Failure {
    at: Instant,
    /// When the dependency was last unavailable for it.
    away_at: Option<Instant>,
    /// Whether other orders succeeded since its failure before.
    alone: bool,
}

/// Failures of one customer's orders, with no success between them.
#[derive(Clone, Copy, Debug)]
struct Streak {
    failures: u32,
    since: Instant,
    at: Instant,
}

/// The order of a message, and its customer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OrderRef {
    pub(crate) message: Revision,
    /// `None` if it does not follow from the NATS subject.
    pub(crate) customer: Option<CustomerKey>,
}

/// The state when an attempt began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttemptStart {
    at: Instant,
    served_since: Option<Instant>,
    customer_fails: bool,
}

impl Suspects {
    /// An attempt that began at `began` succeeded.
    pub(crate) fn served(&mut self, order_ref: OrderRef, began: Instant) {
        self.served_since = self.served_since.max(Some(began));
        self.forget(order_ref.message);
        if let Some(customer) = order_ref.customer {
            self.customers.remove(&customer);
        }
    }

    /// The message is finished: acknowledged or terminated.
    pub(crate) fn forget(&mut self, message: Revision) {
        self.orders.remove(&message);
    }

    /// The state when an attempt begins.
    pub(crate) fn begin(&self, order_ref: OrderRef, now: Instant) -> AttemptStart {
        let customer_fails =
            self.streak(order_ref.customer, now).is_some_and(|streak| self.makes_suspect(&streak));
        AttemptStart { at: now, served_since: self.served_since, customer_fails }
    }

    /// The dependency was unavailable for this order. Returns whether for this order alone: then other attempts began and
    /// succeeded between its previous failure and this attempt, or, for an order of a suspect customer, since the
    /// customer's previous failure or during this attempt.
    pub(crate) fn failed(&mut self, order_ref: OrderRef, start: AttemptStart, now: Instant) -> bool {
        let served_between = |failed_at: Instant| start.served_since.is_some_and(|began| began > failed_at);
        let before = self.order(order_ref.message, now);
        let streak = self.streak(order_ref.customer, now).filter(|_| start.customer_fails);
        let alone = before.and_then(|before| before.away_at).is_some_and(served_between)
            || streak.is_some_and(|streak| served_between(streak.at) || self.served_after(start.at));
        // An order that failed alone keeps that mark until it succeeds.
        self.remember(order_ref, alone || before.is_some_and(|before| before.alone), Some(now), now);
        alone
    }

    /// An attempt that began at `began` hangs while others succeeded. One is enough to make its customer's other orders
    /// suspects, because each of them would occupy a worker as long.
    pub(crate) fn overtaken(&mut self, order_ref: OrderRef, began: Instant, now: Instant) {
        self.remember(order_ref, true, Some(now), now);
        if let Some(streak) = order_ref.customer.and_then(|customer| self.customers.get_mut(&customer)) {
            streak.failures = streak.failures.max(CUSTOMER_FAILURES);
            streak.since = streak.since.min(began);
        }
    }

    /// An attempt was stopped, with an unknown outcome.
    pub(crate) fn stopped(&mut self, order_ref: OrderRef, now: Instant) {
        let alone = self.order(order_ref.message, now).is_some_and(|before| before.alone);
        self.remember(order_ref, alone, Some(now), now);
    }

    /// The order failed although the dependency answered. If the dependency is unavailable at a later attempt, that may still
    /// be an outage.
    pub(crate) fn failed_alone(&mut self, order_ref: OrderRef, now: Instant) {
        let away_at = self.order(order_ref.message, now).and_then(|before| before.away_at);
        self.remember(order_ref, true, away_at, now);
    }

    /// Whether this order is limited to the suspects' share of the pool.
    pub(crate) fn is_suspect(&self, order_ref: OrderRef, now: Instant) -> bool {
        self.order(order_ref.message, now).is_some_and(|failure| failure.alone)
            || self.streak(order_ref.customer, now).is_some_and(|streak| self.makes_suspect(&streak))
    }

    /// Whether neither this order nor its customer has failed: its attempt shows the dependency's state.
    pub(crate) fn is_untried(&self, order_ref: OrderRef, now: Instant) -> bool {
        self.order(order_ref.message, now).is_none() && self.streak(order_ref.customer, now).is_none()
    }

    /// Whether this order has failed before.
    pub(crate) fn has_failed(&self, order_ref: OrderRef, now: Instant) -> bool {
        self.order(order_ref.message, now).is_some()
    }

    /// Whether this order has failed and no attempt succeeded since: the cause may be the order, or an outage.
    pub(crate) fn is_doubtful(&self, order_ref: OrderRef, now: Instant) -> bool {
        self.order(order_ref.message, now).is_some_and(|failure| !self.served_after(failure.at))
    }

    /// Whether an attempt was overtaken: another one began at least this much later, and succeeded.
    pub(crate) fn is_overtaken(&self, began: Instant, by: Duration) -> bool {
        self.served_after(began + by)
    }

    /// Number of orders that failed alone and have not succeeded since.
    pub(crate) fn alone(&self, now: Instant) -> usize {
        self.orders.values().filter(|failure| failure.alone && is_recent(failure.at, now)).count()
    }

    fn remember(&mut self, order_ref: OrderRef, alone: bool, away_at: Option<Instant>, now: Instant) {
        make_room(&mut self.orders, |failure| is_recent(failure.at, now));
        self.orders.insert(order_ref.message, Failure { at: now, away_at, alone });
        let Some(customer) = order_ref.customer else { return };
        let before = self.streak(order_ref.customer, now);
        make_room(&mut self.customers, |streak| is_recent(streak.at, now));
        let Streak { failures, since, .. } = before.unwrap_or(Streak { failures: 0, since: now, at: now });
        self.customers.insert(customer, Streak { failures: failures + 1, since, at: now });
    }

    fn order(&self, message: Revision, now: Instant) -> Option<Failure> {
        self.orders.get(&message).copied().filter(|failure| is_recent(failure.at, now))
    }

    fn streak(&self, customer: Option<CustomerKey>, now: Instant) -> Option<Streak> {
        self.customers.get(&customer?).copied().filter(|streak| is_recent(streak.at, now))
    }

    fn makes_suspect(&self, streak: &Streak) -> bool {
        streak.failures >= CUSTOMER_FAILURES && self.served_after(streak.since)
    }

    fn served_after(&self, at: Instant) -> bool {
        self.served_since.is_some_and(|began| began > at)
    }
}

fn is_recent(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) < FORGOTTEN_AFTER
}

/// Removes old entries, or else all of them, if the map is full.
fn make_room<K, V>(remembered: &mut HashMap<K, V>, recent: impl Fn(&V) -> bool) {
    if remembered.len() < REMEMBERED_MAX {
        return;
    }
    remembered.retain(|_, value| recent(value));
    if remembered.len() > REMEMBERED_MAX / 2 {
        remembered.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order_ref(message: u64, customer: &str) -> OrderRef {
        OrderRef { message: Revision(message), customer: Some(CustomerKey::of("", customer)) }
    }

    fn poison() -> OrderRef {
        order_ref(1, "ada")
    }

    fn other() -> OrderRef {
        order_ref(2, "grace")
    }

    fn at(s: u64) -> Instant {
        static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        *START + Duration::from_secs(s)
    }

    /// An attempt that begins and fails at the same time.
    fn fails(suspects: &mut Suspects, order_ref: OrderRef, now: Instant) -> bool {
        let start = suspects.begin(order_ref, now);
        suspects.failed(order_ref, start, now)
    }

    #[test]
    fn an_outage_is_no_fault_of_the_orders_that_meet_it() {
        let mut suspects = Suspects::default();
        suspects.served(other(), at(0));
        for n in 1..20 {
            for order_ref in [poison(), other()] {
                assert!(!fails(&mut suspects, order_ref, at(n)));
                assert!(!suspects.is_suspect(order_ref, at(n)));
            }
        }
    }

    #[test]
    fn an_order_that_fails_while_others_pass_is_alone() {
        let mut suspects = Suspects::default();
        assert!(!fails(&mut suspects, poison(), at(1)));
        suspects.served(other(), at(2));
        assert!(!suspects.is_suspect(poison(), at(2)), "it may have been an outage");
        assert!(fails(&mut suspects, poison(), at(3)));
        assert!(suspects.is_suspect(poison(), at(3)));
        assert!(!fails(&mut suspects, poison(), at(4)), "no other succeeded since");
        assert!(suspects.is_suspect(poison(), at(4)), "it has been alone before");
        suspects.served(other(), at(5));
        assert!(fails(&mut suspects, poison(), at(6)));
        assert_eq!(suspects.alone(at(6)), 1);
        suspects.served(poison(), at(7));
        assert!(!suspects.is_suspect(poison(), at(7)));
        assert_eq!(suspects.alone(at(7)), 0);
    }

    #[test]
    fn an_outage_uses_up_no_attempt_of_an_order_that_failed_otherwise_before() {
        let mut suspects = Suspects::default();
        suspects.failed_alone(poison(), at(1));
        suspects.served(other(), at(2));
        assert!(!fails(&mut suspects, poison(), at(3)), "an outage may have begun");
        assert!(suspects.is_suspect(poison(), at(3)));
        suspects.failed_alone(poison(), at(4));
        suspects.served(other(), at(5));
        assert!(fails(&mut suspects, poison(), at(6)), "others were served since it was away for this one");
    }

    #[test]
    fn a_success_that_began_before_the_outage_and_ended_in_it_proves_no_failure_alone() {
        let mut suspects = Suspects::default();
        assert!(!fails(&mut suspects, poison(), at(2)));
        suspects.served(other(), at(1));
        assert!(!fails(&mut suspects, poison(), at(4)));
        suspects.served(other(), at(5));
        suspects.served(other(), at(3));
        assert!(fails(&mut suspects, poison(), at(6)), "the latest holds");
    }

    #[test]
    fn orders_of_a_customer_that_fails_alone_are_suspects_before_they_are_tried() {
        let mut suspects = Suspects::default();
        let next = order_ref(20, "ada");
        for n in 0..CUSTOMER_FAILURES {
            assert!(suspects.is_untried(next, at(1)) == (n == 0));
            assert!(!fails(&mut suspects, order_ref(10 + u64::from(n), "ada"), at(1)));
        }
        assert!(!suspects.is_suspect(next, at(1)), "it may be an outage");
        suspects.served(other(), at(2));
        assert!(suspects.is_suspect(next, at(2)));
        assert!(fails(&mut suspects, next, at(3)), "counts at once");
        let start = suspects.begin(order_ref(21, "ada"), at(3));
        assert!(!suspects.failed(order_ref(21, "ada"), start, at(4)), "no other succeeded since");
        suspects.served(other(), at(5));
        let start = suspects.begin(order_ref(22, "ada"), at(6));
        suspects.failed(order_ref(23, "ada"), start, at(7));
        suspects.served(other(), at(8));
        assert!(suspects.failed(order_ref(22, "ada"), start, at(9)), "others were served during it");
        assert!(suspects.is_suspect(next, at(3)));
        suspects.served(order_ref(10, "ada"), at(4));
        assert!(!suspects.is_suspect(order_ref(21, "ada"), at(4)));
    }

    #[test]
    fn an_attempt_that_began_in_an_outage_and_ended_after_it_is_no_fault_of_the_order() {
        let mut suspects = Suspects::default();
        assert!(!fails(&mut suspects, poison(), at(1)));
        let start = suspects.begin(poison(), at(1));
        assert!(suspects.is_doubtful(poison(), at(1)));
        suspects.served(other(), at(2));
        assert!(!suspects.is_doubtful(poison(), at(2)));
        assert!(!suspects.failed(poison(), start, at(3)));
    }

    #[test]
    fn one_attempt_that_was_overtaken_makes_its_customer_a_suspect() {
        let mut suspects = Suspects::default();
        suspects.served(other(), at(3));
        assert!(suspects.is_overtaken(at(1), Duration::from_secs(1)));
        suspects.overtaken(poison(), at(1), at(4));
        assert!(suspects.is_suspect(poison(), at(4)) && suspects.is_suspect(order_ref(3, "ada"), at(4)));
        suspects.served(order_ref(3, "ada"), at(5));
        assert!(!suspects.is_suspect(order_ref(4, "ada"), at(5)));
    }

    #[test]
    fn one_failure_makes_no_customer_a_suspect() {
        let mut suspects = Suspects::default();
        fails(&mut suspects, poison(), at(1));
        suspects.served(other(), at(2));
        fails(&mut suspects, poison(), at(3));
        assert!(!suspects.is_suspect(order_ref(3, "ada"), at(3)));
    }

    #[test]
    fn a_suspect_is_forgotten_in_time() {
        let mut suspects = Suspects::default();
        for n in 0..CUSTOMER_FAILURES {
            suspects.failed_alone(order_ref(u64::from(n), "ada"), at(1));
        }
        suspects.served(other(), at(2));
        assert!(
            suspects.is_suspect(order_ref(0, "ada"), at(3))
                && suspects.is_suspect(order_ref(9, "ada"), at(3))
        );
        let later = at(2) + FORGOTTEN_AFTER;
        assert!(!suspects.is_suspect(order_ref(0, "ada"), later));
        assert!(suspects.is_untried(order_ref(9, "ada"), later));
        assert_eq!(suspects.alone(later), 0);
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut suspects = Suspects::default();
        for n in 0..=REMEMBERED_MAX as u64 {
            fails(&mut suspects, order_ref(n, &n.to_string()), at(1));
        }
        assert_eq!((suspects.orders.len(), suspects.customers.len()), (1, 1));
    }
}
