//! Listing a customer's orders, newest first. There is no index: the subjects of their first events serve as one, and
//! the stream counts the messages on them. A few orders have lost their first event to expiry. The list finds those by
//! their `carried` events.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use prost::Message;
use proto::orders::v1::Order;
use proto::orders::v1::order_event::Detail;
use tokio::time::{Instant, sleep};

use super::OrderLog;
use super::read::{behind, decode_all, read_error};
use crate::broker::direct_get::{Batch, ReadError, all_from, batch_from};
use crate::broker::streams::ORDERS;
use crate::log::ids::{CustomerKey, OrderId, Revision};
use crate::log::subjects::{self, EventKind};

/// Orders that one call examines before it returns its page. When few of them match, the page is not full.
const EXAMINED_MAX: usize = 1_000;
/// Minimum number of orders to search, once some did not match.
const SEARCHED_MIN: usize = 256;
/// Maximum encoded size of a page; the order that exceeds it is the last one. Clients accept messages of 4 MiB by
/// default.
const PAGE_BYTES_MAX: usize = 1024 * 1024;
/// Orders loaded concurrently.
const LOADS_AT_ONCE: usize = 32;
/// Messages that a window may hold beyond those asked for: finding a closer one would cost more than to read
/// them.
const SLACK: u64 = 32;
/// Number of probes after which a window is used as it is. Half of the probes halve it.
const PROBES_MAX: u32 = 80;
const READ_MESSAGES_MAX: u32 = 256;

/// Reads from replicas that are behind, before giving up.
const REPLICA_READS_MAX: u32 = 5;
const REPLICA_PAUSE: Duration = Duration::from_millis(100);

/// Some of a customer's orders.
#[derive(Debug)]
pub struct Page {
    /// The orders as they stand, the newest first.
    pub orders: Vec<Order>,
    /// If there are older orders: the page after this one lists those created before here.
    pub next: Option<Revision>,
}

/// All that a list needs of an order's first event.
struct CreatedOrder {
    id: OrderId,
    revision: Revision,
}

/// How many messages there are from somewhere in the stream on.
#[derive(Clone, Copy)]
struct Position {
    at: Revision,
    messages: u64,
}

/// Messages of one read.
struct WindowScan {
    created: Vec<CreatedOrder>,
    /// The last message on the filter that was met.
    reached: Revision,
    from: Revision,
    /// No earlier message exists.
    is_first: bool,
}

/// Where to read.
struct Window {
    from: Revision,
    /// No earlier message exists.
    is_first: bool,
}

impl OrderLog {
    /// Lists `customer`'s orders that `wanted` accepts: at most `size` of them, and only those created before
    /// `before` if that is given. May leave a page short, and even empty, although there is a next one: when
    /// few of the orders are wanted, or they are large, or after `until`.
    pub async fn list(
        &self,
        customer: CustomerKey,
        before: Option<Revision>,
        size: usize,
        until: Instant,
        wanted: impl Fn(&Order) -> bool,
    ) -> Result<Page, ReadError> {
        let (mut orders, mut before, mut examined, mut bytes) = (Vec::new(), before, 0, 0);
        loop {
            let searched = match size - orders.len() {
                missing if examined == 0 => missing,
                missing => missing.max(SEARCHED_MIN),
            };
            // One more shows whether there are older orders.
            let mut created = self.orders_before(customer, before, searched + 1).await?;
            let more = created.len() > searched;
            if more {
                created.remove(0);
            }
            let Some(oldest) = created.first().map(|oldest| oldest.revision) else {
                return Ok(Page { orders, next: None });
            };
            let loads = stream::iter(created.into_iter().rev())
                .map(async |created| Ok((created.revision, self.load(&created.id).await?)));
            let mut loads = pin!(loads.buffered(LOADS_AT_ONCE));
            while let Some((created_at, found)) = loads.try_next().await? {
                examined += 1;
                if let Some(order) = found.map(|found| found.order).filter(&wanted) {
                    bytes += order.encoded_len();
                    orders.push(order);
                }
                let full = orders.len() >= size || bytes >= PAGE_BYTES_MAX;
                if full || examined >= EXAMINED_MAX || Instant::now() >= until {
                    let older = more || oldest < created_at;
                    return Ok(Page { orders, next: Some(created_at).filter(|_| older) });
                }
            }
            if !more {
                return Ok(Page { orders, next: None });
            }
            before = Some(oldest);
        }
    }

    /// The newest `count` orders of `customer`, of those whose first event is or was before `before`, oldest first.
    async fn orders_before(
        &self,
        customer: CustomerKey,
        before: Option<Revision>,
        count: usize,
    ) -> Result<Vec<CreatedOrder>, ReadError> {
        let mut created = self.created_before(customer, before, count).await?;
        if created.len() < count {
            let mut carried = self.carried_before(customer, before).await?;
            carried.drain(..carried.len().saturating_sub(count - created.len()));
            carried.append(&mut created);
            created = carried;
        }
        Ok(created)
    }

    /// The unfinished orders of `customer` whose first event has expired, of those where it was before `before`. They have
    /// been carried, and each such event says where the first was.
    async fn carried_before(
        &self,
        customer: CustomerKey,
        before: Option<Revision>,
    ) -> Result<Vec<CreatedOrder>, ReadError> {
        let client = &self.connection.client;
        let carried =
            all_from(client, ORDERS, &subjects::customer_kind(EventKind::Carried, customer), Revision::NONE)
                .await?;
        if carried.is_empty() {
            return Ok(Vec::new());
        }
        let kept = self
            .position(&subjects::customer_kind(EventKind::Created, customer), Revision::NONE)
            .await?
            .map(|position| position.at);
        let mut firsts = BTreeMap::new();
        for event in decode_all(carried) {
            if let Detail::Carried(carried) = &event.detail {
                firsts.insert(carried.created_revision, event.id);
            }
        }
        let firsts =
            firsts.into_iter().map(|(revision, id)| CreatedOrder { id, revision: Revision(revision) });
        let is_listed = |first: &CreatedOrder| {
            kept.is_none_or(|kept| first.revision < kept)
                && before.is_none_or(|before| first.revision < before)
        };
        Ok(firsts.filter(is_listed).collect())
    }

    /// The newest `count` first events of `customer`'s orders, of those before `before`, oldest first.
    async fn created_before(
        &self,
        customer: CustomerKey,
        before: Option<Revision>,
        count: usize,
    ) -> Result<Vec<CreatedOrder>, ReadError> {
        let filter = &subjects::customer_kind(EventKind::Created, customer);
        let (mut created, mut before, mut reads) = (Vec::new(), before, 0);
        // The replica must have the list up to here: to the newest order, or to the end of the previous page, unless that has
        // expired or the token was forged.
        let mut is_proved = before.is_none();
        let mut least = match before {
            Some(before) => before,
            None => self.barrier.last_on(filter).await?,
        };
        loop {
            let wanted = (count - created.len()) as u64;
            let scan = match self.scan(filter, before, wanted).await {
                Ok(scan) => Some(scan),
                Err(ReadError::NoAnswer(_)) if self.connection.is_up() => None,
                Err(error) => return Err(error),
            };
            let reached = scan.as_ref().map_or(Revision::NONE, |scan| scan.reached);
            if reached < least && !is_proved {
                least = least.min(self.barrier.last_on(filter).await?);
                is_proved = true;
            }
            let Some(WindowScan { created: mut older, is_first, from, .. }) =
                scan.filter(|_| reached >= least)
            else {
                reads += 1;
                if reads == REPLICA_READS_MAX {
                    return Err(behind());
                }
                sleep(REPLICA_PAUSE).await;
                continue;
            };
            older.append(&mut created);
            created = older;
            // Orders that arrived during the search have made the window too small.
            if is_first || created.len() >= count {
                created.drain(..created.len().saturating_sub(count));
                return Ok(created);
            }
            (before, least) = (Some(from), from);
        }
    }

    /// The newest `count` first events on `filter` before `before`, or more, from any replica.
    async fn scan(
        &self,
        filter: &str,
        before: Option<Revision>,
        count: u64,
    ) -> Result<WindowScan, ReadError> {
        let Window { from, is_first } = self.window(filter, before, count).await?;
        let (created, reached) = self.created_between(filter, from, before).await?;
        Ok(WindowScan { created, reached, from, is_first })
    }

    /// Where to begin to read so as to meet at least the last `count` messages on `filter` before `before`, and
    /// not many more. Counting from any sequence on is cheap, so this is a search by value.
    async fn window(&self, filter: &str, before: Option<Revision>, count: u64) -> Result<Window, ReadError> {
        let Some(first) = self.position(filter, Revision::NONE).await? else {
            return Ok(Window { from: Revision::NONE, is_first: true });
        };
        let (mut low, mut high) = match before {
            Some(before) => {
                let messages = self.position(filter, before).await?.map_or(0, |position| position.messages);
                (first, Position { at: before, messages })
            }
            None => (first, self.end(filter, first).await?),
        };
        let least = high.messages + count;
        for probe in 0..PROBES_MAX {
            if low.messages <= least + SLACK || high.at.0 <= low.at.0 + 1 {
                break;
            }
            let middle = if probe % 2 == 0 {
                between(low, high, least + SLACK / 2)
            } else {
                Revision(low.at.0 + (high.at.0 - low.at.0) / 2)
            };
            match self.position(filter, middle).await? {
                Some(position) if position.messages >= least => low = position,
                found => {
                    high = Position { at: middle, messages: found.map_or(0, |position| position.messages) }
                }
            }
        }
        Ok(Window { from: low.at, is_first: low.at == first.at })
    }

    /// The first message on `filter` from `from` on, and how many there are from it on.
    async fn position(&self, filter: &str, from: Revision) -> Result<Option<Position>, ReadError> {
        let batch = batch_from(&self.connection.client, ORDERS, filter, from, 1).await?;
        let messages = batch.total();
        Ok(batch.messages.first().map(|first| Position { at: first.sequence, messages }))
    }

    /// The last message on `filter`.
    async fn end(&self, filter: &str, low: Position) -> Result<Position, ReadError> {
        let last = self.stream.direct_get_last_for_subject(filter).await;
        let last = last.map_err(|error| read_error(&error))?;
        Ok(Position { at: Revision(last.sequence.max(low.at.0)), messages: 1 })
    }

    /// The first events on `filter` from `from` to before `before`, and how far the answer went.
    async fn created_between(
        &self,
        filter: &str,
        from: Revision,
        before: Option<Revision>,
    ) -> Result<(Vec<CreatedOrder>, Revision), ReadError> {
        let (mut created, mut from, mut reached) = (Vec::new(), from, Revision::NONE);
        loop {
            let Batch { mut messages, remaining } =
                batch_from(&self.connection.client, ORDERS, filter, from, READ_MESSAGES_MAX).await?;
            if let Some(last) = messages.last() {
                reached = last.sequence;
                from = Revision(reached.0 + 1);
            }
            let is_enough = before.is_some_and(|before| reached >= before);
            if let Some(before) = before {
                messages.retain(|message| message.sequence < before);
            }
            let events = decode_all(messages).into_iter();
            let events = events.filter(|event| event.kind() == EventKind::Created);
            created.extend(events.map(|event| CreatedOrder { id: event.id, revision: event.revision }));
            if is_enough || remaining == 0 {
                return Ok((created, reached));
            }
        }
    }
}

/// The position between the two from which on there should be `wanted` messages, if they are evenly spread.
fn between(low: Position, high: Position, wanted: u64) -> Revision {
    let (width, messages) = (high.at.0 - low.at.0, low.messages.saturating_sub(high.messages).max(1));
    let from_high = wanted.saturating_sub(high.messages);
    let back = u128::from(width) * u128::from(from_high) / u128::from(messages);
    let back = u64::try_from(back).unwrap_or(width).clamp(1, width - 1);
    Revision(high.at.0 - back)
}
