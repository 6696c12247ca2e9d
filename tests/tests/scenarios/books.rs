//! The books of a test in which much went wrong: every history against the lifecycle, and what came of all orders
//! against the ledger of the payment sandbox and against the stock.

use std::collections::{HashMap, HashSet};

use backbone::log::lifecycle::{apply, create};
use futures::{StreamExt, TryStreamExt, stream};
use harness::{Account, Deployment};
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{ListOrderEventsRequest, Order, OrderEvent, OrderStatus};
use tonic::Status;

use crate::events::{after, kinds, revisions};

/// Histories read side by side.
const READS_AT_ONCE: usize = 16;
/// Orders whose histories are printed when something is wrong.
const PRINTED_MAX: usize = 5;

/// What is wrong, by order; under the empty id what is wrong with all of them.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<(String, String)>);

impl Problems {
    pub(crate) fn add(&mut self, order_id: &str, what: impl Into<String>) {
        self.0.push((order_id.to_owned(), what.into()));
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Fails the test if there is one, and prints all that is known of the orders.
    pub(crate) fn none(self, waybill: &Deployment, histories: &HashMap<String, Vec<OrderEvent>>) {
        if self.0.is_empty() {
            return;
        }
        for (order_id, what) in &self.0 {
            eprintln!("PROBLEM {order_id}: {what}");
        }
        for (order_id, _) in self.0.iter().filter(|(order_id, _)| !order_id.is_empty()).take(PRINTED_MAX) {
            eprintln!("--- {order_id}");
            let events = histories.get(order_id).map_or(&[][..], Vec::as_slice);
            for (event, revision) in events.iter().zip(revisions(events)) {
                eprintln!("{revision} after {}: {:?}", event.previous_revision, event.detail);
            }
            for line in waybill.logged_about(order_id) {
                eprintln!("{line}");
            }
        }
        panic!("{} problems", self.0.len());
    }
}

/// The history of each order, as the gateway gives it.
pub(crate) async fn histories(
    waybill: &Deployment,
    order_ids: &[String],
) -> HashMap<String, Vec<OrderEvent>> {
    let client = waybill.client().await;
    let read = stream::iter(order_ids).map(|order_id| {
        let (mut client, order_id) = (client.clone(), order_id.clone());
        async move {
            let request = ListOrderEventsRequest { order_id: order_id.clone(), ..Default::default() };
            let events = client.list_order_events(request).await?.into_inner().events;
            Ok::<_, Status>((order_id, events))
        }
    });
    read.buffer_unordered(READS_AT_ONCE).try_collect().await.unwrap()
}

/// Every snapshot is what the lifecycle makes of the one before it, and no event is missing.
pub(crate) fn check_history(events: &[OrderEvent]) -> Result<(), String> {
    let mut before: Option<&Order> = None;
    for event in events {
        let stored = after(event);
        let (detail, time) = (event.detail.as_ref().expect("detail"), stored.update_time.expect("time"));
        let expected = match (before, detail) {
            (None, Detail::Created(created)) => create(created, stored.route.clone().expect("route"), time),
            (None, _) => return Err(format!("begins with {:?}", kinds(events))),
            (Some(order), detail) => apply(order, &event.step, detail, time),
        };
        let expected = expected.map_err(|refused| format!("{:?}: {refused}", kinds(events)))?;
        let expected = Order { revision: stored.revision, ..expected };
        if expected != *stored {
            return Err(format!("stored {stored:?}, by the lifecycle {expected:?}"));
        }
        let previous = before.map_or(0, |order| order.revision);
        if event.previous_revision != previous || stored.revision <= previous {
            return Err(format!("{} names {}, not {previous}", stored.revision, event.previous_revision));
        }
        before = Some(stored);
    }
    before.map(|_| ()).ok_or_else(|| "no event".to_owned())
}

/// What all orders have come to.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) captures: usize,
    pub(crate) refunds: usize,
    /// Captured and not refunded, in minor units.
    pub(crate) kept: i64,
    /// Units of each SKU that FULFILLED orders have taken.
    pub(crate) shipped: HashMap<String, u64>,
    /// Units of each SKU that parked orders hold.
    pub(crate) parked: HashMap<String, u64>,
}

/// Money was kept for each FULFILLED order, once and as much as it costs, and for no other.
pub(crate) fn check_money(
    orders: &[Order],
    accounts: &HashMap<String, Account>,
    problems: &mut Problems,
) -> Totals {
    let mut totals = Totals::default();
    for order in orders {
        let account = accounts.get(&order.order_id).copied().unwrap_or_default();
        let fulfilled = order.status() == OrderStatus::Fulfilled;
        let (kept, owed) = if fulfilled { (1, total(order)) } else { (0, 0) };
        let taken_once = account.captures <= 1 && account.captures == account.refunds + kept;
        if !taken_once || account.balance != owed {
            problems.add(&order.order_id, format!("{:?} with {account:?}", order.status()));
        }
        totals.captures += account.captures;
        totals.refunds += account.refunds;
        totals.kept += account.balance;
        let parked = matches!(order.parked_status(), OrderStatus::Reserved | OrderStatus::Paid);
        for (_, units) in
            [(fulfilled, &mut totals.shipped), (parked, &mut totals.parked)].into_iter().filter(|it| it.0)
        {
            for item in &order.items {
                *units.entry(item.sku.clone()).or_default() += u64::try_from(item.quantity).unwrap();
            }
        }
    }
    let known: HashSet<_> = orders.iter().map(|order| &order.order_id).collect();
    for (order_id, account) in accounts.iter().filter(|(order_id, _)| !known.contains(order_id)) {
        problems.add(order_id, format!("no order, and {account:?}"));
    }
    totals
}

/// What FULFILLED and parked orders hold is gone from the stock, and nothing else.
pub(crate) async fn check_stock(
    waybill: &Deployment,
    stock: &[(&str, u64)],
    totals: &Totals,
    problems: &mut Problems,
) {
    for (sku, units) in stock {
        let of = |totals: &HashMap<String, u64>| totals.get(*sku).copied().unwrap_or(0);
        let (shipped, parked) = (of(&totals.shipped), of(&totals.parked));
        let (held, available) = (waybill.held(sku).await, waybill.available(sku).await);
        if held != shipped + parked || available + held != *units {
            let ordered = format!("{shipped} shipped and {parked} parked");
            problems.add("", format!("{sku}: {ordered}, {held} held and {available} left of {units}"));
        }
    }
}

fn total(order: &Order) -> i64 {
    order.total.as_ref().expect("total").minor_units
}
