//! Customers with many orders. The broker visits all subjects of a customer to count them, which takes it 15 ms for 100,000
//! orders, and more on a busy machine. It stores no message meanwhile. So this keeps each count for some time.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::log::ids::CustomerKey;

/// How long a count holds.
const HOLDS: Duration = Duration::from_secs(600);
/// Customers remembered. If there are more, all are forgotten.
const CUSTOMERS_MAX: usize = 4096;

/// The customers that were counted and have many, and what follows for each.
#[derive(Debug)]
pub(super) struct Counted<T> {
    customers: Mutex<HashMap<CustomerKey, (Instant, T)>>,
}

impl<T> Default for Counted<T> {
    fn default() -> Self {
        Self { customers: Mutex::default() }
    }
}

impl<T: Copy> Counted<T> {
    pub(super) fn get(&self, customer: CustomerKey) -> Option<T> {
        let counted = self.lock().get(&customer).copied();
        counted.filter(|(at, _)| at.elapsed() < HOLDS).map(|(_, known)| known)
    }

    pub(super) fn insert(&self, customer: CustomerKey, known: T) {
        let mut customers = self.lock();
        if customers.len() >= CUSTOMERS_MAX {
            customers.clear();
        }
        customers.insert(customer, (Instant::now(), known));
    }

    /// No holder panics, so a poisoned lock is used as it is.
    fn lock(&self) -> MutexGuard<'_, HashMap<CustomerKey, (Instant, T)>> {
        self.customers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
