//! The creation time of an order, which distinguishes orders that reuse an id.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proto::orders::v1::Order;
use serde::{Deserialize, Serialize};
use thiserror::Error;

const NANOS_PER_SECOND: i64 = 1_000_000_000;

/// When an order was created, in nanoseconds since 1970.
///
/// A request_id may be used again once the events of its order have expired, and leads to the same order id. The traces
/// of effects outlive the events, so they are keyed by id and creation time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CreationTime(i64);

/// An order without a create_time, or with one out of range.
#[derive(Debug, Error)]
#[error("order without a create_time")]
pub struct NoCreateTime;

impl CreationTime {
    /// The creation time of `order`, the same after each of its events.
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

impl fmt::Display for CreationTime {
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
    fn a_later_order_has_a_later_creation_time() {
        let times = [1, 999_999_999, 1_000_000_000, 1_000_000_001].map(Duration::from_nanos);
        let creation_times = times.map(|time| CreationTime::of(&created_at(time)).unwrap());
        assert!(creation_times.is_sorted_by(|a, b| a < b), "{creation_times:?}");
    }

    #[test]
    fn an_order_without_a_time_or_with_an_impossible_one_has_none() {
        let mut order = created_at(Duration::ZERO);
        order.create_time.as_mut().unwrap().seconds = i64::MAX;
        for order in [order, Order::default()] {
            assert!(CreationTime::of(&order).is_err());
        }
    }
}
