//! Finding a customer's newest orders by the subjects of their first events.
//!
//! The broker answers the last message on each of a customer's subjects without walking the log. But it loads every part of
//! the log where one of them is, and stores no message meanwhile. So this is for customers with few orders. For customers
//! with many, the log is walked backwards (`created_walk.rs`).

use std::time::Duration;

use tokio::time::sleep;

use super::OrderLog;
use super::read::{behind, decode_all};
use crate::broker::direct_get::{ReadError, batch_from, last_of_few};
use crate::broker::streams::ORDERS;
use crate::log::ids::{CustomerKey, OrderId, Revision};
use crate::log::subjects::{self, EventKind};

/// Orders that are read at once, rather than searched for the newest of them.
pub(super) const FEW_ORDERS: u64 = 64;
/// Maximum bytes of their first events.
const FEW_BYTES_MAX: u32 = 1024 * 1024;

/// Reads from replicas that are behind, before giving up.
const REPLICA_READS_MAX: u32 = 5;
const REPLICA_PAUSE: Duration = Duration::from_millis(100);

/// All that a list needs of an order's first event.
#[derive(Debug)]
pub(super) struct CreatedOrder {
    pub(super) id: OrderId,
    pub(super) revision: Revision,
}

/// The result of one search.
pub(super) struct Scan {
    /// Oldest first.
    pub(super) created: Vec<CreatedOrder>,
    /// None is missing up to here.
    pub(super) reached: Revision,
    pub(super) from: Revision,
    /// No earlier order exists.
    pub(super) is_first: bool,
}

/// How many orders a customer has.
enum Count {
    Few,
    Many { messages_each: u64 },
}

impl OrderLog {
    /// The newest `count` orders of `customer`, of those whose first event is before `before`, oldest first.
    pub(super) async fn created_before(
        &self,
        customer: CustomerKey,
        before: Option<Revision>,
        count: usize,
    ) -> Result<Vec<CreatedOrder>, ReadError> {
        let (mut created, mut before, mut reads) = (Vec::new(), before, 0);
        // The replica must have the list up to here: to the newest order, or to the end of the previous page, unless that has
        // expired or the token was forged.
        let mut is_proved = before.is_none();
        let mut least = match before {
            Some(before) => before,
            None => self.newest(customer).await?,
        };
        loop {
            let wanted = (count - created.len()) as u64;
            let scan = match self.scan(customer, before, wanted).await {
                Ok(scan) => Some(scan),
                Err(ReadError::NoAnswer(_)) if self.connection.is_up() => None,
                Err(error) => return Err(error),
            };
            let reached = scan.as_ref().map_or(Revision::NONE, |scan| scan.reached);
            if reached < least && !is_proved {
                least = least.min(self.newest(customer).await?);
                is_proved = true;
            }
            let Some(Scan { created: mut older, is_first, from, .. }) = scan.filter(|_| reached >= least)
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

    /// The position of the newest order's first event, proved; [`Revision::NONE`] if the stream's only server has every
    /// message, so that its answers need no proof.
    async fn newest(&self, customer: CustomerKey) -> Result<Revision, ReadError> {
        if !self.barrier.is_needed().await? {
            return Ok(Revision::NONE);
        }
        let is_created_by = |subject: &str| {
            subjects::parse(subject)
                .is_some_and(|event| event.kind == EventKind::Created && event.id.customer == customer)
        };
        if self.many_orders.get(customer).is_some()
            && let Some(newest) = self.barrier.recent_on(is_created_by).await?
        {
            return Ok(newest);
        }
        self.barrier.last_on(&subjects::customer_kind(EventKind::Created, customer)).await
    }

    /// The newest `count` orders before `before`, or more, from any replica.
    async fn scan(
        &self,
        customer: CustomerKey,
        before: Option<Revision>,
        count: u64,
    ) -> Result<Scan, ReadError> {
        let filter = &subjects::customer_kind(EventKind::Created, customer);
        let messages_each = match self.many_orders.get(customer) {
            Some(messages_each) => messages_each,
            None => match self.count_orders(filter).await? {
                Count::Few => match self.scan_few(filter, before).await? {
                    Some(scan) => return Ok(scan),
                    None => 1,
                },
                Count::Many { messages_each } => {
                    self.many_orders.insert(customer, messages_each);
                    messages_each
                }
            },
        };
        self.scan_many(filter, before, count, messages_each).await
    }

    async fn count_orders(&self, filter: &str) -> Result<Count, ReadError> {
        let client = &self.connection.client;
        // From the beginning of the log on, the broker counts without walking it.
        let first = batch_from(client, ORDERS, filter, Revision::NONE, 1).await?;
        let orders = first.total();
        if orders <= FEW_ORDERS {
            return Ok(Count::Few);
        }
        let end = self.extent().await?.last;
        let first = first.messages.first().map_or(end, |first| first.sequence);
        Ok(Count::Many { messages_each: end.0.saturating_sub(first.0) / orders })
    }

    /// All orders before `before`; `None` if their first events are large, or foreign messages are behind some.
    async fn scan_few(&self, filter: &str, before: Option<Revision>) -> Result<Option<Scan>, ReadError> {
        let client = &self.connection.client;
        let all = last_of_few(client, ORDERS, filter, Revision::NONE, FEW_BYTES_MAX).await?;
        let Some(all) = all.filter(|all| all.remaining == 0) else { return Ok(None) };
        let reached = all.messages.last().map_or(Revision::NONE, |last| last.sequence);
        let found = all.messages.len();
        let mut created: Vec<_> = decode_all(all.messages)
            .into_iter()
            .map(|event| CreatedOrder { id: event.id, revision: event.revision })
            .collect();
        // Foreign messages hide some.
        if created.len() < found {
            return Ok(None);
        }
        created.retain(|created| before.is_none_or(|before| created.revision < before));
        Ok(Some(Scan { created, reached, from: Revision::NONE, is_first: true }))
    }
}
