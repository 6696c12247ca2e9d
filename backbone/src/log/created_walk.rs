//! Finding the newest orders of a customer with many: the log is walked backwards, window by window, and each window forwards,
//! from order to order. This loads only the part of the log where these orders are.
//!
//! A request walks from its start to the first order behind it, so no two requests walk the same gap between orders at
//! once.

use super::OrderLog;
use super::created::{CreatedOrder, Scan};
use super::read::decode_all;
use crate::broker::direct_get::{ReadError, Stored, last_on};
use crate::broker::streams::ORDERS;
use crate::log::ids::Revision;
use crate::log::subjects::EventKind;

/// Messages in the first window, at least.
const WINDOW_MIN: u64 = 64;
/// How much wider than the last one a window becomes at most.
const WIDENING_MAX: u64 = 4;
/// Orders that a window may have beyond twice those that are missing.
const SURPLUS_MAX: u64 = 64;

/// What a part of the log has.
enum Walked {
    /// All orders.
    Orders(Vec<CreatedOrder>),
    /// Far more orders than are missing: at least up to here.
    TooMany(Revision),
}

/// A walk of one list.
struct Walk<'a> {
    log: &'a OrderLog,
    filter: &'a str,
    /// There is an order here.
    known: Revision,
}

impl OrderLog {
    /// The newest `count` orders before `before`, or more, from any replica that has the one at `known`. There is about one
    /// in `messages_each`.
    pub(super) async fn scan_many(
        &self,
        filter: &str,
        before: Option<Revision>,
        known: Revision,
        count: u64,
        messages_each: u64,
    ) -> Result<Scan, ReadError> {
        // A page token may name any revision.
        let behind_last = Revision(self.extent().await?.last.0 + 1);
        let end = before.map_or(behind_last, |before| before.min(behind_last));
        let walk = Walk { log: self, filter, known };
        let width = messages_each.saturating_mul(count).saturating_mul(5) / 4;
        let (mut to, mut width, mut created) = (end, width.max(WINDOW_MIN), Vec::new());
        loop {
            let from = Revision(to.0.saturating_sub(width).max(1));
            let missing = count - created.len() as u64;
            let found = match walk.window(from, to, 2 * missing + SURPLUS_MAX).await? {
                Walked::Orders(mut older) => {
                    let found = older.len() as u64;
                    older.append(&mut created);
                    created = older;
                    found
                }
                Walked::TooMany(known) => {
                    to = walk.behind_last(known, to).await?;
                    width = WINDOW_MIN;
                    continue;
                }
            };
            let is_first = from <= Revision(1);
            if found >= missing || is_first {
                return Ok(Scan { created, from, is_first });
            }
            if created.is_empty() && before.is_none() && to == end {
                // The customer has ordered nothing for some time.
                let last = last_on(&self.connection.client, ORDERS, filter).await?;
                to = last.map_or(Revision(1), |last| from.min(Revision(last.sequence.0 + 1)));
                continue;
            }
            let wider = width.saturating_mul(WIDENING_MAX);
            let wanted = (missing - found).saturating_mul(width) / found.max(1);
            width = if found == 0 { wider } else { wanted.saturating_mul(5) / 4 }.clamp(WINDOW_MIN, wider);
            to = from;
        }
    }
}

impl Walk<'_> {
    /// The orders from `from` to before `to`, if they are not more than `orders_max`.
    async fn window(&self, from: Revision, to: Revision, orders_max: u64) -> Result<Walked, ReadError> {
        let (mut created, mut from) = (Vec::new(), from);
        while from < to {
            let Some(message) = self.first_from(from).await? else { break };
            // A server that has this message has all before it.
            if message.sequence >= to {
                break;
            }
            if created.len() as u64 >= orders_max {
                return Ok(Walked::TooMany(message.sequence));
            }
            from = Revision(message.sequence.0 + 1);
            let events = decode_all(vec![message]).into_iter();
            let events = events.filter(|event| event.kind() == EventKind::Created);
            created.extend(events.map(|event| CreatedOrder { id: event.id, revision: event.revision }));
        }
        Ok(Walked::Orders(created))
    }

    /// A position up to `to`, at most [`WINDOW_MIN`] behind the last order before `to`. There is an order at `known`.
    async fn behind_last(&self, known: Revision, to: Revision) -> Result<Revision, ReadError> {
        let (mut known, mut to) = (known, to);
        while to.0 - known.0 > WINDOW_MIN {
            let middle = Revision(known.0 + (to.0 - known.0) / 2);
            match self.first_from(middle).await? {
                Some(message) if message.sequence < to => known = message.sequence,
                Some(_) | None => to = middle,
            }
        }
        Ok(to)
    }

    async fn first_from(&self, from: Revision) -> Result<Option<Stored>, ReadError> {
        self.log.first_known(self.filter, from, self.known).await
    }
}
