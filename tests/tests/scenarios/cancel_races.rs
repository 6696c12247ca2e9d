//! A cancel races a step: whoever appends first has won, and the order's history is one line.

use std::cell::RefCell;
use std::time::Duration;

use backbone::log::lifecycle::is_finished;
use backbone::log::subjects::EventKind::{Cancelled, Fulfilled, Paid, Refunded, Released, Reserved};
use futures::{StreamExt, stream};
use harness::{Deployment, create, eventually, randomness};
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::order_service_client::OrderServiceClient;
use proto::orders::v1::{
    CancelOrderRequest, CreateOrderRequest, ListOrderEventsRequest, Money, Order, OrderEvent, OrderItem,
    OrderStatus, StockLine,
};
use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::sleep;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::accounting::{STOCK, WHOLE_WAY, widgets};
use crate::events::{after, kind, kinds, revisions};

/// Orders raced for by each step.
const ORDERS: usize = 1_000;
const STEPS: [&str; 3] = ["inventory", "payment", "fulfilment"];
/// Races side by side.
pub(crate) const RACES_AT_ONCE: usize = 16;

/// How long cancels wait so as to come when the step acts, on whatever machine: longer after one that was early,
/// shorter after one that was late.
struct Aim<'a> {
    pause_s: f64,
    random: &'a mut StdRng,
}

impl Aim<'_> {
    fn pause(&mut self) -> Duration {
        Duration::from_secs_f64(self.pause_s * self.random.random_range(0.5..1.5))
    }

    fn adjust(&mut self, early: bool) {
        let factor = if early { 1.1 } else { 1.0 / 1.1 };
        self.pause_s = (self.pause_s * factor).clamp(1e-5, 1.0);
    }
}

/// An order, and what its canceller was told.
pub(crate) struct Raced {
    pub(crate) order: Order,
    pub(crate) answer: Result<Order, Status>,
}

pub(crate) type Client = OrderServiceClient<Channel>;

/// The history of an order. A busy machine may take longer than a call does.
pub(crate) async fn events(client: Client, order_id: &str) -> Vec<OrderEvent> {
    eventually(&format!("history of {order_id}"), async || {
        let request = ListOrderEventsRequest { order_id: order_id.to_owned(), ..Default::default() };
        match client.clone().list_order_events(request).await {
            Ok(response) => Some(response.into_inner().events),
            Err(status) if status.code() == Code::Unavailable => None,
            Err(status) => panic!("{status:?}"),
        }
    })
    .await
}

/// Places orders and cancels each at about the time when `step` appends its event.
pub(crate) async fn race(
    client: &Client,
    requests: Vec<CreateOrderRequest>,
    step: &str,
    random: &mut StdRng,
) -> Vec<Raced> {
    // Of the orders, so many at least go to the cancel, and as many to the step.
    let (orders, won_min) = (requests.len(), requests.len() / 20);
    let aim = RefCell::new(Aim { pause_s: 0.001, random });
    let races = stream::iter(requests).map(async |request| {
        let mut client = client.clone();
        let order = create(&client, &request).await.unwrap();
        let pause = aim.borrow_mut().pause();
        sleep(pause).await;
        let cancel = CancelOrderRequest { order_id: order.order_id.clone(), message: String::new() };
        let answer = client.cancel_order(cancel).await;
        let answer = answer.map(|response| response.into_inner().order.unwrap());
        let events = events(client, &order.order_id).await;
        let cancelled = events.iter().position(|event| kind(event) == Cancelled).unwrap_or(events.len());
        let early = !events[..cancelled].iter().any(|event| event.step == step);
        aim.borrow_mut().adjust(early);
        (Raced { order, answer }, early)
    });
    let (raced, early): (Vec<_>, Vec<_>) = races.buffer_unordered(RACES_AT_ONCE).collect().await;
    let cancels = early.into_iter().filter(|early| *early).count();
    eprintln!("{step}: {cancels} cancels came before it, {} after it", orders - cancels);
    assert!((won_min..=orders - won_min).contains(&cancels), "{step}: no race, {cancels} cancels first");
    raced
}

#[tokio::test]
async fn of_a_cancel_and_the_step_that_it_races_exactly_one_wins() {
    let waybill = Deployment::start().await;
    let client = waybill.client().await;
    let (mut all, mut random) = (Vec::new(), randomness());
    let requests = widgets(3 * ORDERS);
    for (requests, step) in requests.chunks(ORDERS).zip(STEPS) {
        all.extend(race(&client, requests.to_vec(), step, &mut random).await);
    }
    // In the order in which they hand orders on: who is idle then stays so.
    for step in STEPS {
        waybill.idle(step).await;
    }

    let mut books = Books::default();
    let histories = stream::iter(all).map(|raced| async {
        let events = events(client.clone(), &raced.order.order_id).await;
        (raced, events)
    });
    let mut histories = histories.buffer_unordered(RACES_AT_ONCE);
    while let Some((Raced { order, answer }, events)) = histories.next().await {
        check_line(&events);
        match answer {
            Ok(cancelled) => check_cancelled(&cancelled, &events),
            Err(status) => check_fulfilled(&order, &status, &events),
        }
        books.enter(&events);
    }
    eprintln!("{books:?}");
    assert_eq!(books.orders, 3 * ORDERS);
    assert_eq!(books.captured - books.refunded, books.owed, "money kept is that of the shipped orders");
    assert_eq!(waybill.held("widget").await, books.shipped);
    assert_eq!(waybill.available("widget").await, STOCK - books.shipped);
}

/// Each event follows the one that it names, and none is there twice.
pub(crate) fn check_line(events: &[OrderEvent]) {
    let mut previous = 0;
    for (event, revision) in events.iter().zip(revisions(events)) {
        assert_eq!(event.previous_revision, previous, "{events:?}");
        assert!(revision > previous, "{events:?}");
        previous = revision;
    }
    for (i, event) in events.iter().enumerate() {
        let same = |other: &OrderEvent| (kind(other), &other.step) == (kind(event), &event.step);
        assert!(!events[..i].iter().any(same), "twice: {events:?}");
    }
    assert!(is_finished(after(events.last().unwrap())), "{events:?}");
}

/// It went some of its way, then no further, and what it owed from then on was undone.
fn check_cancelled(cancelled: &Order, events: &[OrderEvent]) {
    let kinds = kinds(events);
    let at = kinds.iter().position(|kind| *kind == Cancelled).expect("a cancel that was answered");
    assert_eq!(kinds[..at], WHOLE_WAY[..at], "{events:?}");
    assert!((1..=3).contains(&at), "{events:?}");
    assert_eq!(after(&events[at]), cancelled, "the answer is the order as the cancel left it");
    assert_eq!(cancelled.status(), OrderStatus::Cancelled);
    let owed: &[_] = if at == 1 { &[Released] } else { &[Released, Refunded] };
    assert_eq!(kinds[at + 1..], *owed, "one after the other: {events:?}");

    let released = released(events).unwrap();
    let money = refunded(events);
    // A step that was overtaken may have acted all the same; else nothing was to be undone.
    assert!(released.is_empty() && at == 1 || *released == lines(cancelled), "{events:?}");
    assert!(money.is_none() && at < 3 || money == cancelled.total.as_ref(), "{events:?}");
}

fn check_fulfilled(order: &Order, refusal: &Status, events: &[OrderEvent]) {
    assert_eq!(kinds(events), WHOLE_WAY, "{refusal:?}");
    check_refused(order, refusal);
}

/// The cancel came after the order's end.
pub(crate) fn check_refused(order: &Order, refusal: &Status) {
    assert_eq!(refusal.code(), Code::FailedPrecondition, "{refusal:?}");
    let info = refusal.get_details_error_info().unwrap();
    assert_eq!(
        (info.reason.as_str(), info.metadata["order_status"].as_str()),
        ("NOT_CANCELLABLE", "FULFILLED")
    );
    assert_eq!(info.metadata["order_id"], order.order_id);
}

fn lines(order: &Order) -> Vec<StockLine> {
    let line = |item: &OrderItem| StockLine { sku: item.sku.clone(), quantity: i64::from(item.quantity) };
    order.items.iter().map(line).collect()
}

fn released(events: &[OrderEvent]) -> Option<&Vec<StockLine>> {
    events.iter().find_map(|event| {
        let Some(Detail::Released(released)) = &event.detail else { return None };
        Some(&released.lines)
    })
}

fn refunded(events: &[OrderEvent]) -> Option<&Money> {
    events.iter().find_map(|event| {
        let Some(Detail::Refunded(refunded)) = &event.detail else { return None };
        refunded.amount.as_ref()
    })
}

fn captured(events: &[OrderEvent]) -> Option<&Money> {
    events.iter().find_map(|event| {
        let Some(Detail::Paid(paid)) = &event.detail else { return None };
        paid.amount.as_ref()
    })
}

/// What all orders come to.
#[derive(Debug, Default)]
struct Books {
    orders: usize,
    shipped: u64,
    /// Totals of the shipped orders.
    owed: i64,
    captured: i64,
    refunded: i64,
    /// Effects of steps that the cancel overtook between effect and append.
    undone_in_the_act: usize,
}

impl Books {
    fn enter(&mut self, events: &[OrderEvent]) {
        let kinds = kinds(events);
        let minor_units = |money: Option<&Money>| money.map_or(0, |money| money.minor_units);
        self.orders += 1;
        if kinds.contains(&Fulfilled) {
            self.shipped += 1;
            self.owed += minor_units(after(&events[0]).total.as_ref());
        }
        // What was refunded without a capture in the log was captured by a step that then was too late.
        self.captured += minor_units(captured(events).or(refunded(events)));
        self.refunded += minor_units(refunded(events));
        let reserved_late =
            !kinds.contains(&Reserved) && released(events).is_some_and(|lines| !lines.is_empty());
        let captured_late = !kinds.contains(&Paid) && refunded(events).is_some();
        self.undone_in_the_act += usize::from(reserved_late) + usize::from(captured_late);
    }
}
