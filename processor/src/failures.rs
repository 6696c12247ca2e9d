//! Telling an order that fails alone from an outage. Pure: it is told the time.
//!
//! A dependency that is away is away for every order, so no order's attempts are used up by it. But an order for which
//! it is away again and again, while others are served in between, is the one that is at fault.

use std::collections::HashMap;

use backbone::ids::Revision;
use tokio::time::Instant;

/// Messages whose failures are remembered. More than that fail only in an outage, and then it is no loss to forget.
const MESSAGES_MAX: usize = 10_000;

/// When the dependency was away for a message, and when work began that it was there for.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    /// The end of that work would say too much: the dependency may have gone away in the middle of it.
    served_since: Option<Instant>,
    failed_at: HashMap<Revision, Instant>,
}

impl Failures {
    /// The dependency has served an order on which work began then.
    pub(crate) fn served(&mut self, message: Revision, began: Instant) {
        self.served_since = self.served_since.max(Some(began));
        self.failed_at.remove(&message);
    }

    /// The dependency was away for this message. Tells whether others were served since it was so before.
    pub(crate) fn is_alone(&mut self, message: Revision, now: Instant) -> bool {
        if self.failed_at.len() >= MESSAGES_MAX {
            self.failed_at.clear();
        }
        let before = self.failed_at.insert(message, now);
        before.is_some_and(|before| self.served_since.is_some_and(|began| began > before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const POISON: Revision = Revision(1);
    const OTHER: Revision = Revision(2);

    #[test]
    fn an_outage_is_no_fault_of_the_orders_that_meet_it() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        failures.served(OTHER, now);
        for n in 1..20 {
            for message in [POISON, OTHER] {
                assert!(!failures.is_alone(message, now + Duration::from_secs(n)));
            }
        }
    }

    #[test]
    fn an_order_that_fails_while_others_pass_is_alone() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        let at = |s| now + Duration::from_secs(s);
        assert!(!failures.is_alone(POISON, at(1)));
        failures.served(OTHER, at(2));
        assert!(failures.is_alone(POISON, at(3)));
        assert!(!failures.is_alone(POISON, at(4)), "nobody was served since");
        failures.served(OTHER, at(5));
        assert!(failures.is_alone(POISON, at(6)));
    }

    #[test]
    fn what_began_before_the_outage_and_ended_in_it_shows_nobody_alone() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        let at = |s| now + Duration::from_secs(s);
        assert!(!failures.is_alone(POISON, at(2)));
        failures.served(OTHER, at(1));
        assert!(!failures.is_alone(POISON, at(4)));
        failures.served(OTHER, at(5));
        failures.served(OTHER, at(3));
        assert!(failures.is_alone(POISON, at(6)), "the latest holds");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        for n in 0..=MESSAGES_MAX as u64 {
            failures.is_alone(Revision(n), now);
        }
        assert_eq!(failures.failed_at.len(), 1);
    }
}
