//! The configured behaviour of the sandbox, for one customer or for all.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::payments::v1::Fault;
use thiserror::Error;

/// Customers for whom a behaviour may be set.
const CUSTOMERS_MAX: usize = 10_000;

/// How one call is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Behaviour {
    pub(super) latency: Duration,
    pub(super) fault: Fault,
}

impl Behaviour {
    const NORMAL: Self = Self { latency: Duration::ZERO, fault: Fault::Unspecified };
}

/// The limit of customers with a behaviour is reached.
#[derive(Clone, Copy, Debug, Error)]
#[error("behaviour is set for {CUSTOMERS_MAX} customers, the maximum; call ResetBehaviour")]
pub(super) struct TooManyCustomers;

/// All that was set, by customer; under the empty id for all others.
#[derive(Debug, Default)]
pub(super) struct Behaviours {
    by_customer: Mutex<HashMap<String, BehaviourRule>>,
}

#[derive(Debug)]
struct BehaviourRule {
    behaviour: Behaviour,
    /// 0: until it is replaced or reset.
    calls_left: u32,
}

impl Behaviours {
    /// Sets the behaviour for so many calls; 0 for all.
    pub(super) fn set(
        &self,
        customer_id: String,
        behaviour: Behaviour,
        calls: u32,
    ) -> Result<(), TooManyCustomers> {
        let mut by_customer = self.lock();
        if by_customer.len() >= CUSTOMERS_MAX && !by_customer.contains_key(&customer_id) {
            return Err(TooManyCustomers);
        }
        by_customer.insert(customer_id, BehaviourRule { behaviour, calls_left: calls });
        Ok(())
    }

    /// Forgets everything.
    pub(super) fn reset(&self) {
        self.lock().clear();
    }

    /// How to answer the call that has come now for this customer.
    pub(super) fn next(&self, customer_id: &str) -> Behaviour {
        let mut by_customer = self.lock();
        let key = if by_customer.contains_key(customer_id) { customer_id } else { "" };
        let Some(rule) = by_customer.get_mut(key) else { return Behaviour::NORMAL };
        let behaviour = rule.behaviour;
        match rule.calls_left {
            0 => {}
            1 => drop(by_customer.remove(key)),
            _ => rule.calls_left -= 1,
        }
        behaviour
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, BehaviourRule>> {
        // No code panics under this lock, so it cannot be poisoned.
        self.by_customer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(fault: Fault) -> Behaviour {
        Behaviour { fault, ..Behaviour::NORMAL }
    }

    #[test]
    fn a_customers_behaviour_overrides_the_default() {
        let behaviours = Behaviours::default();
        behaviours.set(String::new(), fails(Fault::Outage), 0).unwrap();
        behaviours.set("ada".to_owned(), Behaviour::NORMAL, 0).unwrap();
        assert_eq!(behaviours.next("ada"), Behaviour::NORMAL);
        assert_eq!(behaviours.next("grace"), fails(Fault::Outage));
        behaviours.reset();
        assert_eq!(behaviours.next("grace"), Behaviour::NORMAL);
    }

    #[test]
    fn behaviour_for_some_calls_is_gone_after_them() {
        let behaviours = Behaviours::default();
        behaviours.set("ada".to_owned(), fails(Fault::LostReply), 2).unwrap();
        let seen = [1, 2, 3].map(|_| behaviours.next("ada").fault);
        assert_eq!(seen, [Fault::LostReply, Fault::LostReply, Fault::Unspecified]);
    }

    #[test]
    fn behaviours_are_bounded() {
        let behaviours = Behaviours::default();
        for n in 0..CUSTOMERS_MAX {
            behaviours.set(n.to_string(), Behaviour::NORMAL, 0).unwrap();
        }
        assert!(behaviours.set("one-more".to_owned(), Behaviour::NORMAL, 0).is_err());
        assert!(behaviours.set("7".to_owned(), fails(Fault::Outage), 0).is_ok(), "replaced");
    }
}
