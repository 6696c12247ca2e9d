//! Listing a customer's orders, newest first. There is no index: the subjects of their first events serve as one
//! (`created.rs`). A few orders have lost their first event to expiry. The list finds those by their `carried` events.

use std::collections::{BTreeMap, HashSet};
use std::pin::pin;

use futures::{StreamExt, TryStreamExt, stream};
use prost::Message;
use proto::orders::v1::Order;
use proto::orders::v1::order_event::Detail;
use tokio::time::Instant;

use super::OrderLog;
use super::created::CreatedOrder;
use super::read::decode_all;
use crate::broker::direct_get::{ReadError, all_from, first_from, last_of_few};
use crate::broker::streams::ORDERS;
use crate::log::ids::{CustomerKey, Revision};
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
/// Maximum bytes of carried events in one answer.
const CARRIED_BYTES_MAX: u32 = 4 * 1024 * 1024;

/// Some of a customer's orders.
#[derive(Debug)]
pub struct Page {
    /// The orders as they stand, the newest first.
    pub orders: Vec<Order>,
    /// If there are older orders: the page after this one lists those created before here.
    pub next: Option<Revision>,
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
            // Its first event has expired since it was read.
            let listed: HashSet<_> = created.iter().map(|created| created.id).collect();
            carried.retain(|carried| !listed.contains(&carried.id));
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
        let filter = &subjects::customer_kind(EventKind::Carried, customer);
        // The last one of an order says the same as those before it.
        let few = last_of_few(client, ORDERS, filter, Revision::NONE, CARRIED_BYTES_MAX).await?;
        let few =
            few.filter(|few| few.remaining == 0).map(|few| (few.messages.len(), decode_all(few.messages)));
        let carried = match few {
            Some((0, _)) => return Ok(Vec::new()),
            Some((found, carried)) if carried.len() == found => carried,
            // There are many, or foreign messages hide some.
            Some(_) | None => decode_all(all_from(client, ORDERS, filter, Revision::NONE).await?),
        };
        let created = subjects::customer_kind(EventKind::Created, customer);
        let kept = first_from(client, ORDERS, &created, Revision::NONE).await?;
        let kept = kept.map(|kept| kept.sequence);
        let mut firsts = BTreeMap::new();
        for event in carried {
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
}
