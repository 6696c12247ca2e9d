//! Telling apart the orders that one id has named, one after the other.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proto::orders::v1::Order;
use serde::{Deserialize, Serialize};
use thiserror::Error;

const NANOS_PER_SECOND: i64 = 1_000_000_000;

/// Which order of an id it is: when it was created, in nanoseconds since 1970.
///
/// A request_id may be used again once the events of its order are gone, and leads to the same order id. What
/// effects leave behind outlives the events, so it is kept by id and incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(i64);

/// An order that does not say when it was created.
#[derive(Debug, Error)]
#[error("order without a create_time")]
pub struct NoCreateTime;

impl Incarnation {
    /// The incarnation of `order`, the same after each of its events.
    pub fn of(order: &Order) -> Result<Self, NoCreateTime> {
        let created = order.create_time.as_ref().and_then(|time| {
            time.seconds.checked_mul(NANOS_PER_SECOND)?.checked_add(i64::from(time.nanos)).map(Self)
        });
        created.ok_or(NoCreateTime)
    }

    /// When the order was created.
    pub fn time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(u64::try_from(self.0).unwrap_or_default())
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn created_at(time: Duration) -> Order {
        Order { create_time: Some((UNIX_EPOCH + time).into()), ..Order::default() }
    }

    #[test]
    fn a_later_order_is_a_later_incarnation() {
        let times = [1, 999_999_999, 1_000_000_000, 1_000_000_001].map(Duration::from_nanos);
        let incarnations = times.map(|time| Incarnation::of(&created_at(time)).unwrap());
        assert!(incarnations.is_sorted_by(|a, b| a < b), "{incarnations:?}");
    }

    #[test]
    fn an_order_of_no_time_or_an_impossible_one_has_none() {
        let mut order = created_at(Duration::ZERO);
        order.create_time.as_mut().unwrap().seconds = i64::MAX;
        for order in [order, Order::default()] {
            assert!(Incarnation::of(&order).is_err());
        }
    }
}
