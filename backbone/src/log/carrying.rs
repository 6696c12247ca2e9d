//! Which orders are carried, and when. Retention counts from an order's end, so an unfinished order is appended again
//! (the event `carried`) before its events expire. No I/O.
//!
//! An order is due when its `created` or latest `carried` event has reached a certain age, half of the retention unless
//! it is set otherwise. So every unfinished order always has one of the two in the log, and its other events do not matter.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use proto::orders::v1::Order;
use proto::orders::v1::order_event::Detail;
use serde::{Deserialize, Serialize};

use crate::broker::direct_get::Stored;
use crate::log::event::Recorded;
use crate::log::ids::{OrderId, Revision};
use crate::log::lifecycle::is_finished;
use crate::log::subjects::{self, END, EventKind, EventSubject};

/// After the retention was increased, events stored this much later are still carried at the previous age. By then
/// inventory has detected the change, and gives new reservations more time.
const LONGER_AFTER: Duration = Duration::from_secs(10 * 60);

/// At which age events are due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// `None`: never, because nothing expires.
    age: Option<Duration>,
    /// Events stored before this time are due at this age.
    before: Option<(SystemTime, Duration)>,
}

impl Schedule {
    /// The schedule of a log that keeps events for `retention`; zero is forever. `wanted` is an age that an operator
    /// has set.
    pub fn of(retention: Duration, wanted: Option<Duration>) -> Self {
        let half = (!retention.is_zero()).then_some(retention / 2);
        let age = half.map(|half| wanted.map_or(half, |wanted| wanted.min(half)));
        Self { age, before: None }
    }

    /// At which age events are due that are stored now. `None`: never.
    pub fn age(&self) -> Option<Duration> {
        self.age
    }

    /// The schedule from now on, if `wanted` is the schedule of the log now. Events that become due earlier are due at
    /// once. With a longer retention existing events keep their age, because their reservations expire by the old
    /// retention.
    #[must_use]
    pub fn changed(self, wanted: Self, now: SystemTime) -> Self {
        let longer = match (self.age, wanted.age) {
            (Some(is), Some(wanted)) => is < wanted,
            (Some(_), None) => true,
            (None, _) => false,
        };
        let before = match (self.age, self.before) {
            (Some(age), _) if longer => {
                let age = self.before.map_or(age, |(_, before)| age.min(before));
                Some((now + LONGER_AFTER, age))
            }
            (_, before) => before,
        };
        Self { age: wanted.age, before }
    }

    /// Whether an event stored at `stored` is due.
    pub fn is_due(&self, stored: SystemTime, now: SystemTime) -> bool {
        let before = self.before.filter(|(until, _)| stored < *until).map(|(_, age)| age);
        let age = [self.age, before].into_iter().flatten().min();
        // Clock skew makes an event younger, never older.
        age.is_some_and(|age| now.duration_since(stored).unwrap_or_default() >= age)
    }

    /// Up to when all that was stored is due.
    pub fn due_until(&self, now: SystemTime) -> Option<SystemTime> {
        let age = [self.age, self.before.map(|(_, age)| age)].into_iter().flatten().min()?;
        now.checked_sub(age)
    }
}

/// An order that may have to be carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The order.
    pub id: OrderId,
    /// Where its first event is, or was.
    pub created: Revision,
    /// The event that is due.
    pub due: Revision,
    /// Size of that event.
    pub bytes: usize,
}

/// A piece of the log in order: orders with due events, and which of them ended within the piece. Most orders end
/// within milliseconds, so few are examined one by one.
#[derive(Debug, Default)]
pub struct Window {
    open: HashMap<OrderId, Candidate>,
}

impl Window {
    /// Records the next message. Most are judged by their subject alone.
    pub fn observe(&mut self, message: &Stored) {
        let Some(EventSubject { kind, id, next }) = subjects::parse(&message.subject) else { return };
        let (due, bytes) = (message.sequence, message.payload.len());
        if kind == EventKind::Created {
            self.open.insert(id, Candidate { id, created: due, due, bytes });
        } else if kind == EventKind::Carried {
            if let Some(Recorded { detail: Detail::Carried(carried), .. }) = decode(message) {
                let created = Revision(carried.created_revision);
                self.open.insert(id, Candidate { id, created, due, bytes });
            }
        } else if next == END
            && kind != EventKind::Failed
            && self.open.contains_key(&id)
            && decode(message).is_some_and(|event| is_finished(&event.order))
        {
            self.open.remove(&id);
        }
    }

    /// Those of which no end was seen, the longest due first.
    pub fn candidates(self) -> Vec<Candidate> {
        let mut candidates: Vec<_> = self.open.into_values().collect();
        candidates.sort_unstable_by_key(|candidate| candidate.due);
        candidates
    }
}

/// Divides candidates into groups that are read in one request each: at most `orders_max` of them, and fewer large ones. The
/// candidate that exceeds `bytes_max` is the last of its group.
pub(super) fn groups(
    mut candidates: &[Candidate],
    orders_max: usize,
    bytes_max: usize,
) -> impl Iterator<Item = &[Candidate]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let is_full = |candidate: &Candidate| {
            bytes += candidate.bytes;
            bytes >= bytes_max
        };
        let full_at = candidates.iter().take(orders_max).position(is_full);
        let size = full_at.map_or(orders_max, |at| at + 1).min(candidates.len());
        let (group, rest) = candidates.split_at(size);
        candidates = rest;
        (!group.is_empty()).then_some(group)
    })
}

/// Whether an order has to be carried that stands like this, because its event at `due` is due. `carried` is where its
/// latest event is if that is `carried`: a later one is due later.
pub fn must_be_carried(order: &Order, carried: Option<Revision>, due: Revision) -> bool {
    !is_finished(order) && carried.is_none_or(|carried| carried <= due)
}

fn decode(message: &Stored) -> Option<Recorded> {
    let payload = message.payload.clone();
    Recorded::decode(&message.subject, message.sequence, Some(&message.headers), payload).ok()
}

#[cfg(test)]
#[path = "carrying_tests.rs"]
mod tests;
