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
        // A replica without the order at `known` lags. It is the newest order, or the last of the previous page, unless that
        // has expired or the token was forged. The only server of a stream never lags.
        let (mut before, mut known, mut is_proved) = match before {
            before if !self.barrier.is_needed().await? => (before, Revision::NONE, true),
            Some(before) => (Some(before), before, false),
            None => match self.newest(customer).await? {
                Revision::NONE => return Ok(Vec::new()),
                newest => (Some(Revision(newest.0 + 1)), newest, true),
            },
        };
        let (mut created, mut reads) = (Vec::new(), 0);
        loop {
            let wanted = (count - created.len()) as u64;
            let Scan { created: mut older, is_first, from } =
                match self.scan(customer, before, known, wanted).await {
                    Ok(scan) => scan,
                    Err(ReadError::NoAnswer(_)) if self.connection.is_up() && !is_proved => {
                        (known, is_proved) = (known.min(self.newest(customer).await?), true);
                        continue;
                    }
                    Err(ReadError::NoAnswer(_)) if self.connection.is_up() && reads < REPLICA_READS_MAX => {
                        reads += 1;
                        sleep(REPLICA_PAUSE).await;
                        continue;
                    }
                    Err(error) => return Err(error),
                };
            older.append(&mut created);
            created = older;
            // Orders that arrived during the search have made the window too small.
            if is_first || created.len() >= count {
                created.drain(..created.len().saturating_sub(count));
                return Ok(created);
            }
            before = Some(from);
        }
    }

    /// The position of the newest order's first event, proved; [`Revision::NONE`] if there is none.
    async fn newest(&self, customer: CustomerKey) -> Result<Revision, ReadError> {
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

    /// The newest `count` orders before `before`, or more, from any replica that has the one at `known`.
    async fn scan(
        &self,
        customer: CustomerKey,
        before: Option<Revision>,
        known: Revision,
        count: u64,
    ) -> Result<Scan, ReadError> {
        let filter = &subjects::customer_kind(EventKind::Created, customer);
        let messages_each = match self.many_orders.get(customer) {
            Some(messages_each) => messages_each,
            None => match self.count_orders(filter).await? {
                Count::Few => match self.scan_few(filter, before, known).await? {
                    Some(scan) => return Ok(scan),
                    None => 1,
                },
                Count::Many { messages_each } => {
                    self.many_orders.insert(customer, messages_each);
                    messages_each
                }
            },
        };
        self.scan_many(filter, before, known, count, messages_each).await
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
    async fn scan_few(
        &self,
        filter: &str,
        before: Option<Revision>,
        known: Revision,
    ) -> Result<Option<Scan>, ReadError> {
        let client = &self.connection.client;
        let all = last_of_few(client, ORDERS, filter, Revision::NONE, FEW_BYTES_MAX).await?;
        let Some(all) = all.filter(|all| all.remaining == 0) else { return Ok(None) };
        if all.messages.last().map_or(Revision::NONE, |last| last.sequence) < known {
            return Err(behind());
        }
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
        Ok(Some(Scan { created, from: Revision::NONE, is_first: true }))
    }
}
