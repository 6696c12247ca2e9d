//! The books of a test in which much went wrong: every history against the lifecycle, and what came of all orders
//! against the ledger of the payment sandbox and against the stock.

use std::collections::{HashMap, HashSet};

use backbone::log::lifecycle::{apply, create, has_completed, is_called_off};
use futures::{StreamExt, TryStreamExt, stream};
use harness::test_steps::{Effect, EffectState, TEST_STEPS};
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

/// Whether the order's route has the step.
fn goes_through(order: &Order, step: &str) -> bool {
    order.route.iter().flat_map(|route| &route.steps).any(|other| other.name == step)
}

/// Money was kept for each FULFILLED order with payment on its route, once and as much as it costs, and for no other.
pub(crate) fn check_money(
    orders: &[Order],
    accounts: &HashMap<String, Account>,
    problems: &mut Problems,
) -> Totals {
    let mut totals = Totals::default();
    for order in orders {
        let account = accounts.get(&order.order_id).copied().unwrap_or_default();
        let fulfilled = order.status() == OrderStatus::Fulfilled;
        let (kept, owed) =
            if fulfilled && goes_through(order, "payment") { (1, total(order)) } else { (0, 0) };
        let taken_once = account.captures <= 1 && account.captures == account.refunds + kept;
        if !taken_once || account.balance != owed {
            problems.add(&order.order_id, format!("{:?} with {account:?}", order.status()));
        }
        totals.captures += account.captures;
        totals.refunds += account.refunds;
        totals.kept += account.balance;
        let reserved = has_completed(order, "inventory");
        let parked = order.status() == OrderStatus::Failed;
        let holding = [(fulfilled, &mut totals.shipped), (parked, &mut totals.parked)];
        for (_, units) in holding.into_iter().filter(|(holds, _)| *holds && reserved) {
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

/// The test steps on an order's route did what its end says, once, and nothing for other orders.
pub(crate) async fn check_effects(waybill: &Deployment, orders: &[Order], problems: &mut Problems) {
    for step in TEST_STEPS {
        let mut effects = waybill.effects(step).await;
        for order in orders {
            let effect = effects.remove(&order.order_id).unwrap_or_default();
            if let Err(problem) = check_effect(order, step, effect) {
                problems.add(&order.order_id, format!("{step}: {problem}, but has {effect:?}"));
            }
        }
        for (order_id, effect) in effects {
            problems.add(&order_id, format!("{step}: no order, and {effect:?}"));
        }
    }
}

fn check_effect(order: &Order, step: &str, effect: Effect) -> Result<(), &'static str> {
    let steps = order.route.as_ref().map_or(&[][..], |route| &route.steps);
    let Some(place) = steps.iter().position(|other| other.name == step) else {
        return if effect == Effect::default() { Ok(()) } else { Err("is not on the route") };
    };
    let completed = usize::try_from(order.completed_steps).unwrap();
    let called_off = is_called_off(order);
    let was_its_turn = called_off && place == completed;
    // The step whose turn it was when the order was cancelled may have done its work, and may not. One that rejected the
    // order has not, but its second process cannot know: it compensates when the message is redelivered.
    let may_have_begun = was_its_turn && order.status() == OrderStatus::Cancelled;
    let compensates = steps[place].compensates;
    let (is, problem) = match effect.state {
        EffectState::None => {
            (place >= completed && !(may_have_begun && compensates), "was completed or owed")
        }
        EffectState::Done => (
            place < completed && !(called_off && compensates) || may_have_begun && !compensates,
            "should have nothing done",
        ),
        EffectState::Compensated => {
            (called_off && compensates && (place < completed || may_have_begun), "should have nothing undone")
        }
        EffectState::Forbidden => (was_its_turn && compensates, "should have nothing forbidden"),
    };
    let undone = effect.state == EffectState::Compensated;
    let done = undone || effect.state == EffectState::Done;
    if !is {
        Err(problem)
    } else if effect.compensations > 0 && !(called_off && compensates) {
        Err("was called to compensate")
    } else if (effect.done, effect.compensated) != (u32::from(done), u32::from(undone)) {
        Err("should be done and undone once")
    } else {
        Ok(())
    }
}

fn total(order: &Order) -> i64 {
    order.total.as_ref().expect("total").minor_units
}
