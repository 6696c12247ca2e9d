//! kill -9 at every point between a message and its acknowledgement, in every step; in giving up, redriving and
//! discarding; and in the calls of clients: the program is started anew, and whatever had been begun ends as if
//! nothing had happened, with one effect.
//!
//! Only what a program sends can outlive it. So the points are those right before and right behind each message by which
//! it changes something. They are listed below, scene by scene; each scene is first played to its end, and has to show
//! exactly the messages of its list. A program that comes to write something else needs a longer list.

mod own_steps;
mod remote_steps;

use std::fmt;
use std::time::SystemTime;

use async_nats::jetstream::consumer::PriorityPolicy;
use backbone::log::event::stored;
use backbone::log::subjects::EventKind::{
    Cancelled, Carried, Created, Failed, Fulfilled, Paid, Redriven, Refunded, Rejected, Released, Reserved,
};
use backbone::log::subjects::{self, EventKind};
use harness::{DELIVERY, Deployment, Moment, Options, eventually, every_one, item, order_of, these};
use processor::inventory::{ReservationState, reservation_key};
use proto::operations::v1::{DeadLetterState, DiscardDeadLetterRequest, RedriveOutcome};
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{CreateOrderRequest, Order, OrderEvent, OrderStatus};
use proto::payments::v1::{Behaviour, PaymentState, SetBehaviourRequest};
use tokio::select;

use crate::accounting::{STOCK, WHOLE_WAY};
use crate::cancel_races::check_line;
use crate::dead_letters::{break_gadgets, mend};
use crate::events::{after, history, kinds};
use crate::stuck_consumers::edit;

// What inventory changes, by name of the message.
const RESERVE: &[&str] = &[DELIVERY, "write stock", "write reservation", "append reserved", "ack"];
const REFUSE: &[&str] = &[DELIVERY, "append rejected", "ack"];
const RELEASE: &[&str] = &[DELIVERY, "write stock", "write reservation", "append released", "ack"];
const KEEP: &[&str] = &[DELIVERY, "write reservation", "ack"];
const RESERVE_TOO_LATE: &[&str] =
    &["append reserved", "write stock", "write reservation", "append released", "ack"];
// Payment.
const CAPTURE: &[&str] = &[DELIVERY, "call capture", "append paid", "ack"];
const DECLINE: &[&str] = &[DELIVERY, "call capture", "append rejected", "ack"];
const REFUND: &[&str] = &[DELIVERY, "call refund", "append refunded", "ack"];
const CAPTURE_TOO_LATE: &[&str] = &["append paid", "call refund", "append refunded", "ack"];
// Fulfilment.
const SHIP: &[&str] = &[DELIVERY, "append fulfilled", "ack"];
const SHIP_TOO_LATE: &[&str] = &["append fulfilled", "ack"];
// A step of one's own.
const COMPLETE: &[&str] = &[DELIVERY, "write effect", "append completed", "ack"];
const COMPENSATE: &[&str] = &[DELIVERY, "write effect", "append compensated", "ack"];
const COMPLETE_TOO_LATE: &[&str] = &["append completed", "write effect", "append compensated", "ack"];
// A step that calls a service.
const ACT: &[&str] = &[DELIVERY, "call act", "append completed", "ack"];
const TAKE_BACK: &[&str] = &[DELIVERY, "call compensate", "append compensated", "ack"];
const DEFER: &[&str] = &[DELIVERY, "call act", "append deferred", "ack", "set timer", "append completed"];
// Any step that gives up.
const PARK: &[&str] = &[DELIVERY, "dead letter attempts", "nak", "dead letter open", "append failed", "term"];
const SET_ASIDE: &[&str] = &[DELIVERY, "dead letter open", "term"];
const WITHDRAW: &[&str] = &[
    "append failed",
    "dead letter attempts",
    "unlist dead letter",
    "nak",
    "write reservation",
    "append released",
    "ack",
];
// Any step whose consumer has passed messages over.
const MAKE_ANEW: &[&str] = &["delete consumer", "make consumer", DELIVERY, "append fulfilled", "ack"];
// The gateway.
const CREATE: &[&str] = &["append created"];
const CANCEL: &[&str] = &["append cancelled"];
const REDRIVE: &[&str] = &["append redriven", "dead letter redriven", "unlist dead letter"];
const CARRY: &[&str] = &["append carried"];
const RESUME: &[&str] = &["append resumed", "delete due message"];
const DISCARD: &[&str] = &["dead letter discarded", "unlist dead letter"];

const CHANGE_STOCK: &[&str] = &["write stock", "write change"];

const LISTS: [&[&str]; 28] = [
    RESERVE,
    REFUSE,
    RELEASE,
    KEEP,
    RESERVE_TOO_LATE,
    CAPTURE,
    DECLINE,
    REFUND,
    CAPTURE_TOO_LATE,
    SHIP,
    SHIP_TOO_LATE,
    COMPLETE,
    COMPENSATE,
    COMPLETE_TOO_LATE,
    ACT,
    TAKE_BACK,
    DEFER,
    PARK,
    WITHDRAW,
    SET_ASIDE,
    MAKE_ANEW,
    CREATE,
    CANCEL,
    REDRIVE,
    DISCARD,
    CHANGE_STOCK,
    CARRY,
    RESUME,
];

/// Attempts at an order before it is parked.
const ATTEMPTS_MAX: usize = 2;
const UNITS: u64 = 2;
const CUSTOMER: &str = "customer";
const GATEWAY: &str = "gateway";
/// The second consumer of inventory.
const KEEPING: &str = "inventory-carried";

/// Where the program is killed; nowhere, when the scene is played to its end.
struct Point {
    program: &'static str,
    at: Option<(&'static str, Moment)>,
    number: usize,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            None => write!(f, "{} lives", self.program),
            Some((DELIVERY, _)) => write!(f, "{} dies before its {DELIVERY}", self.program),
            Some((name, Moment::Unsent)) => write!(f, "{} dies before \"{name}\"", self.program),
            Some((name, Moment::Unanswered)) => write!(f, "{} dies behind \"{name}\"", self.program),
        }
    }
}

impl Point {
    /// From here on the program may die.
    fn arm(&self, waybill: &mut Deployment) {
        waybill.wire().note();
        if let Some((name, moment)) = self.at {
            let pid = match self.program {
                GATEWAY => waybill.gateway.process.pid(),
                step => waybill.processor(step).pid(),
            };
            waybill.wire().trip(name, moment, pid);
        }
    }

    /// Waits for the death, and starts the program again.
    async fn die(&self, waybill: &mut Deployment) {
        if self.at.is_none() {
            return;
        }
        waybill.wire().tripped().await;
        match self.program {
            GATEWAY => waybill.restart_gateway().await,
            step => waybill.restart_processor(step),
        }
    }

    fn request_id(&self) -> String {
        format!("request-{}", self.number)
    }
}

/// Plays a scene to its end, and then again for each point of the list.
async fn at_each_point(
    waybill: &mut Deployment,
    program: &'static str,
    list: &'static [&'static str],
    scene: impl AsyncFn(&mut Deployment, &Point),
) {
    let whole = Point { program, at: None, number: 0 };
    eprintln!("{whole}");
    scene(waybill, &whole).await;
    let mut seen = waybill.wire().writes();
    let mut listed: Vec<_> = list.iter().filter(|name| **name != DELIVERY).collect();
    seen.sort();
    listed.sort();
    assert_eq!(format!("{seen:?}"), format!("{listed:?}"), "what {program} has changed, and what is listed");

    let points = list.iter().flat_map(|name| {
        let moments: &[_] =
            if *name == DELIVERY { &[Moment::Unsent] } else { &[Moment::Unsent, Moment::Unanswered] };
        moments.iter().map(move |moment| (*name, *moment))
    });
    for (number, at) in points.enumerate() {
        let point = Point { program, at: Some(at), number: number + 1 };
        // The last of these names the point that failed.
        eprintln!("{point}");
        scene(waybill, &point).await;
    }
}

/// A deployment in which one program can be killed at a point.
async fn deployment(program: &'static str) -> Deployment {
    deployment_with(program, Options::default()).await
}

/// The same, in which orders are carried that are not finished within a second.
async fn carrying(program: &'static str) -> Deployment {
    deployment_with(
        program,
        Options { gateway: vec![("CARRY_AFTER", "1s".to_owned())], ..Options::default() },
    )
    .await
}

async fn deployment_with(program: &'static str, options: Options) -> Deployment {
    let payment_sandbox = options.payment_sandbox || program == "payment";
    let mut options = Options { wired: Some(program), payment_sandbox, ..options };
    options.processors = vec![("ACK_WAIT", "500ms".to_owned()), ("MAX_ATTEMPTS", ATTEMPTS_MAX.to_string())];
    let steps = options.steps.clone();
    let waybill = Deployment::start_with(options).await;
    for step in steps {
        waybill.idle(step).await;
    }
    waybill
}

async fn place(waybill: &Deployment, customer_id: &str, point: &Point) -> Order {
    let request = order_of(customer_id, &point.request_id(), vec![item("widget", UNITS as i32)]);
    waybill.place(request).await.unwrap()
}

/// An order that a step has begun, and that is cancelled before the step can say so in the log by `append`. The step goes
/// on when what it has to say is released.
async fn overtaken(
    waybill: &mut Deployment,
    point: &Point,
    append: &str,
    request: CreateOrderRequest,
) -> Order {
    let mut held = waybill.wire().hold(append);
    let order = waybill.place(request).await.unwrap();
    held.reached().await;
    waybill.cancel(&order.order_id).await.unwrap();
    point.arm(waybill);
    held.release();
    point.die(waybill).await;
    order
}

/// How an order has ended, once nobody has anything left to do for it.
async fn end_of(waybill: &Deployment, program: &str, order: &Order) -> (OrderStatus, Vec<EventKind>) {
    let end = waybill.finished(&order.order_id).await;
    if program != GATEWAY {
        waybill.idle(program).await;
    }
    let events = history(&waybill.client().await, &order.order_id).await;
    check_line(&events);
    check_shipments(&events);
    (end.status(), kinds(&events))
}

/// An order ships under one number, and that is its own.
fn check_shipments(events: &[OrderEvent]) {
    for event in events {
        if let Some(Detail::Fulfilled(fulfilled)) = &event.detail {
            let key = after(event).order_id.split_once('-').unwrap().1;
            assert_eq!(fulfilled.shipment_id, format!("SHP-{}", key.to_uppercase()));
        }
    }
}

/// The units of the order are held, or not, and all others are where they were.
async fn check_stock(waybill: &Deployment, order: &Order, held: bool) {
    let reservation = waybill.reservation(&order.order_id).await;
    let held_by_order = reservation.filter(|reservation| reservation.state == ReservationState::Held);
    assert_eq!(held_by_order.map(|held| held.units["widget"]), held.then_some(UNITS));
    assert_eq!(waybill.available("widget").await + waybill.held("widget").await, STOCK);
}

/// Calls of the payment service so far.
async fn calls(waybill: &mut Deployment) -> i64 {
    let ledger = waybill.sandbox().ledger("").await;
    ledger.capture_calls + ledger.refund_calls
}

/// There is one payment of the order, and that is where it stands. Neither the service nor its file knows of another.
async fn check_money(waybill: &mut Deployment, order: &Order, state: PaymentState) {
    let sandbox = waybill.sandbox();
    let ledger = sandbox.ledger(&order.order_id).await;
    let [payment] = &ledger.payments[..] else { panic!("{ledger:?}") };
    assert_eq!(payment.state(), state);
    let moved = match state {
        PaymentState::Captured => (1, 0),
        PaymentState::Refunded => (1, 1),
        PaymentState::Unspecified | PaymentState::Declined | PaymentState::Forbidden => (0, 0),
    };
    assert_eq!((ledger.captures, ledger.refunds), moved, "{ledger:?}");
    let records = sandbox.records().iter().filter(|record| record.contains(&order.order_id)).count();
    assert_eq!(records, 1 + usize::from(state == PaymentState::Refunded), "{:?}", sandbox.records());
}

fn ended(status: OrderStatus, kinds: impl Into<Vec<EventKind>>) -> (OrderStatus, Vec<EventKind>) {
    (status, kinds.into())
}

#[test]
fn the_table_of_crash_points_lists_the_same() {
    let page = include_str!("../../../docs/crash-points.md");
    let (_, table) = page.split_once("| operation |").expect("the table");
    let (table, _) = table.split_once("\n\n").expect("its end");
    let cells = table.lines().skip(2).filter_map(|line| line.split(" | ").nth(1));
    assert_eq!(cells.collect::<Vec<_>>(), LISTS.map(|list| list.join(", ")));
}

#[tokio::test]
async fn inventory_killed_at_any_point_reserves_once() {
    let mut waybill = deployment("inventory").await;
    at_each_point(&mut waybill, "inventory", RESERVE, async |waybill, point| {
        point.arm(waybill);
        let order = place(waybill, CUSTOMER, point).await;
        point.die(waybill).await;
        assert_eq!(end_of(waybill, "inventory", &order).await, ended(OrderStatus::Fulfilled, WHOLE_WAY));
        check_stock(waybill, &order, true).await;
    })
    .await;
}

#[tokio::test]
async fn inventory_killed_at_any_point_refuses_once() {
    let mut waybill = deployment("inventory").await;
    at_each_point(&mut waybill, "inventory", REFUSE, async |waybill, point| {
        point.arm(waybill);
        let request = order_of(CUSTOMER, &point.request_id(), vec![item("unheard-of", 1)]);
        let order = waybill.place(request).await.unwrap();
        point.die(waybill).await;
        let rejected = ended(OrderStatus::Rejected, [Created, Rejected]);
        assert_eq!(end_of(waybill, "inventory", &order).await, rejected);
        check_stock(waybill, &order, false).await;
    })
    .await;
}

#[tokio::test]
async fn inventory_killed_at_any_point_releases_once() {
    let mut waybill = deployment("inventory").await;
    at_each_point(&mut waybill, "inventory", RELEASE, async |waybill, point| {
        waybill.processor("payment").pause();
        let order = place(waybill, "declined", point).await;
        waybill.reached(&order.order_id, OrderStatus::Reserved).await;
        waybill.idle("inventory").await;
        point.arm(waybill);
        waybill.processor("payment").resume();
        point.die(waybill).await;
        let rejected = ended(OrderStatus::Rejected, [Created, Reserved, Rejected, Released]);
        assert_eq!(end_of(waybill, "inventory", &order).await, rejected);
        check_stock(waybill, &order, false).await;
    })
    .await;
}

#[tokio::test]
async fn inventory_killed_at_any_point_after_a_cancel_has_overtaken_it_keeps_nothing() {
    let mut waybill = deployment("inventory").await;
    at_each_point(&mut waybill, "inventory", RESERVE_TOO_LATE, async |waybill, point| {
        let request = order_of(CUSTOMER, &point.request_id(), vec![item("widget", UNITS as i32)]);
        let order = overtaken(waybill, point, "append reserved", request).await;
        let cancelled = ended(OrderStatus::Cancelled, [Created, Cancelled, Released]);
        assert_eq!(end_of(waybill, "inventory", &order).await, cancelled);
        check_stock(waybill, &order, false).await;
    })
    .await;
}

#[tokio::test]
async fn payment_killed_at_any_point_captures_once() {
    let mut waybill = deployment("payment").await;
    at_each_point(&mut waybill, "payment", CAPTURE, async |waybill, point| {
        let before = calls(waybill).await;
        point.arm(waybill);
        let order = place(waybill, CUSTOMER, point).await;
        point.die(waybill).await;
        assert_eq!(end_of(waybill, "payment", &order).await, ended(OrderStatus::Fulfilled, WHOLE_WAY));
        if point.at == Some(("call capture", Moment::Unanswered)) {
            assert!(calls(waybill).await - before >= 2, "the reply that was lost is asked for again");
        }
        check_money(waybill, &order, PaymentState::Captured).await;
        check_stock(waybill, &order, true).await;
    })
    .await;
}

#[tokio::test]
async fn payment_killed_at_any_point_is_declined_once() {
    let mut waybill = deployment("payment").await;
    at_each_point(&mut waybill, "payment", DECLINE, async |waybill, point| {
        point.arm(waybill);
        let order = place(waybill, "declined", point).await;
        point.die(waybill).await;
        let rejected = ended(OrderStatus::Rejected, [Created, Reserved, Rejected, Released]);
        assert_eq!(end_of(waybill, "payment", &order).await, rejected);
        check_money(waybill, &order, PaymentState::Declined).await;
        check_stock(waybill, &order, false).await;
    })
    .await;
}

#[tokio::test]
async fn payment_killed_at_any_point_refunds_once() {
    let mut waybill = deployment("payment").await;
    waybill.kill_processors("fulfilment");
    at_each_point(&mut waybill, "payment", REFUND, async |waybill, point| {
        let order = place(waybill, CUSTOMER, point).await;
        waybill.reached(&order.order_id, OrderStatus::Paid).await;
        waybill.idle("payment").await;
        point.arm(waybill);
        waybill.cancel(&order.order_id).await.unwrap();
        point.die(waybill).await;
        let way = [Created, Reserved, Paid, Cancelled, Released, Refunded];
        assert_eq!(end_of(waybill, "payment", &order).await, ended(OrderStatus::Cancelled, way));
        check_money(waybill, &order, PaymentState::Refunded).await;
        check_stock(waybill, &order, false).await;
    })
    .await;
}

#[tokio::test]
async fn payment_killed_at_any_point_after_a_cancel_has_overtaken_it_keeps_nothing() {
    let mut waybill = deployment("payment").await;
    at_each_point(&mut waybill, "payment", CAPTURE_TOO_LATE, async |waybill, point| {
        let request = order_of(CUSTOMER, &point.request_id(), vec![item("widget", UNITS as i32)]);
        let order = overtaken(waybill, point, "append paid", request).await;
        let way = [Created, Reserved, Cancelled, Released, Refunded];
        assert_eq!(end_of(waybill, "payment", &order).await, ended(OrderStatus::Cancelled, way));
        check_money(waybill, &order, PaymentState::Refunded).await;
        check_stock(waybill, &order, false).await;
    })
    .await;
}

#[tokio::test]
async fn fulfilment_killed_at_any_point_ships_once() {
    let mut waybill = deployment("fulfilment").await;
    at_each_point(&mut waybill, "fulfilment", SHIP, async |waybill, point| {
        point.arm(waybill);
        let order = place(waybill, CUSTOMER, point).await;
        point.die(waybill).await;
        assert_eq!(end_of(waybill, "fulfilment", &order).await, ended(OrderStatus::Fulfilled, WHOLE_WAY));
        check_stock(waybill, &order, true).await;
    })
    .await;
}

#[tokio::test]
async fn fulfilment_killed_at_any_point_after_a_cancel_has_overtaken_it_ships_nothing() {
    let mut waybill = deployment("fulfilment").await;
    at_each_point(&mut waybill, "fulfilment", SHIP_TOO_LATE, async |waybill, point| {
        let request = order_of(CUSTOMER, &point.request_id(), vec![item("widget", UNITS as i32)]);
        let order = overtaken(waybill, point, "append fulfilled", request).await;
        let way = [Created, Reserved, Paid, Cancelled, Released, Refunded];
        assert_eq!(end_of(waybill, "fulfilment", &order).await, ended(OrderStatus::Cancelled, way));
        check_stock(waybill, &order, false).await;
    })
    .await;
}

/// The gateway has no part in compensation; its watchers see all of it.
#[tokio::test]
async fn a_gateway_killed_between_two_compensations_shows_both() {
    let mut waybill = deployment(GATEWAY).await;
    waybill.kill_processors("fulfilment");
    let request = order_of(CUSTOMER, "request", vec![item("widget", UNITS as i32)]);
    let order = waybill.place(request).await.unwrap();
    let paid = waybill.reached(&order.order_id, OrderStatus::Paid).await;
    waybill.processor("payment").pause();
    waybill.cancel(&order.order_id).await.unwrap();
    eventually("the turn of payment", async || {
        let order = waybill.get(&order.order_id).await.ok()?;
        (order.compensation_pending == ["payment"]).then_some(())
    })
    .await;
    waybill.restart_gateway().await;
    let watcher = waybill.watch(&order.order_id, paid.revision).await.unwrap();
    waybill.processor("payment").resume();
    assert_eq!(kinds(&watcher.rest().await), [Cancelled, Released, Refunded]);
    let way = [Created, Reserved, Paid, Cancelled, Released, Refunded];
    assert_eq!(end_of(&waybill, GATEWAY, &order).await, ended(OrderStatus::Cancelled, way));
    check_stock(&waybill, &order, false).await;
}

#[tokio::test]
async fn a_step_killed_at_any_point_of_giving_up_parks_an_order_once() {
    let mut waybill = deployment("inventory").await;
    break_gadgets(&waybill).await;
    at_each_point(&mut waybill, "inventory", PARK, async |waybill, point| {
        point.arm(waybill);
        let request = order_of(CUSTOMER, &point.request_id(), vec![item("gadget", 1)]);
        let order = waybill.place(request).await.unwrap();
        point.die(waybill).await;
        let order = waybill.reached(&order.order_id, OrderStatus::Failed).await;
        waybill.idle("inventory").await;
        assert_eq!(waybill.history(&order.order_id).await, [Created, Failed]);
        assert!(waybill.reservation(&order.order_id).await.is_none());
        let letters = waybill.letters_kept().await.into_iter().map(|(_, letter)| letter);
        let letters: Vec<_> = letters.filter(|letter| letter.order_id == order.order_id).collect();
        let [letter] = &letters[..] else { panic!("{letters:?}") };
        assert_eq!((letter.state(), &letter.dead_letter_id), (DeadLetterState::Open, &order.dead_letter_id));
        assert_eq!(letter.attempts.len(), ATTEMPTS_MAX, "{letter:?}");
    })
    .await;

    mend(&waybill).await;
    let redriven = waybill.redrive(every_one()).await.unwrap();
    assert!(redriven.iter().all(|(_, outcome)| *outcome == RedriveOutcome::Redriven), "{redriven:?}");
    let histories = waybill.histories().await;
    assert_eq!(redriven.len(), histories.len());
    for order_id in histories.into_keys() {
        assert_eq!(waybill.finished(&order_id).await.status(), OrderStatus::Fulfilled);
        let way = [Created, Failed, Redriven, Reserved, Paid, Fulfilled];
        assert_eq!(waybill.history(&order_id).await, way);
    }
    assert_eq!(waybill.held("gadget").await, redriven.len() as u64);
}

#[tokio::test]
async fn a_step_killed_at_any_point_of_taking_a_letter_back_leaves_none() {
    let mut waybill = deployment("inventory").await;
    break_gadgets(&waybill).await;
    at_each_point(&mut waybill, "inventory", WITHDRAW, async |waybill, point| {
        let request = order_of(CUSTOMER, &point.request_id(), vec![item("gadget", 1)]);
        let order = overtaken(waybill, point, "append failed", request).await;
        let cancelled = ended(OrderStatus::Cancelled, [Created, Cancelled, Released]);
        assert_eq!(end_of(waybill, "inventory", &order).await, cancelled);
        assert!(waybill.open_letters().await.is_empty());
    })
    .await;
}

/// An order that is carried while payment stands still, and ends well afterwards.
async fn is_carried(waybill: &mut Deployment, program: &'static str, point: &Point) {
    waybill.processor("payment").pause();
    let order = place(waybill, CUSTOMER, point).await;
    waybill.reached(&order.order_id, OrderStatus::Reserved).await;
    if program == "inventory" {
        waybill.idle("inventory").await;
        waybill.idle(KEEPING).await;
    }
    point.arm(waybill);
    point.die(waybill).await;
    eventually("an order that is carried", async || {
        waybill.history(&order.order_id).await.contains(&Carried).then_some(())
    })
    .await;
    waybill.processor("payment").resume();
    let (status, mut kinds) = end_of(waybill, program, &order).await;
    kinds.dedup();
    assert_eq!((status, kinds), ended(OrderStatus::Fulfilled, [Created, Reserved, Carried, Paid, Fulfilled]));
    check_stock(waybill, &order, true).await;
    // Renewed, by whichever process got the message in the end.
    waybill.idle(KEEPING).await;
    assert!(renewed(waybill, &order).await >= first_carried(waybill, &order).await);
}

/// When the order's reservation was written last.
async fn renewed(waybill: &Deployment, order: &Order) -> SystemTime {
    let bucket = waybill.inventory().await;
    bucket.entry(reservation_key(&order.order_id)).await.unwrap().expect("a reservation").created.into()
}

/// When the order was carried for the first time.
async fn first_carried(waybill: &Deployment, order: &Order) -> SystemTime {
    let (_, order_key) = order.order_id.split_once('-').unwrap();
    let subject = format!(".{order_key}.{}.", Carried.as_str());
    let messages = waybill.messages().await;
    let carried = messages.iter().find(|message| message.subject.contains(&subject)).expect("carried");
    stored(&carried.headers).expect("a time")
}

#[tokio::test]
async fn a_gateway_killed_at_any_point_of_carrying_carries_the_order() {
    let mut waybill = carrying(GATEWAY).await;
    at_each_point(&mut waybill, GATEWAY, CARRY, async |waybill, point| {
        is_carried(waybill, GATEWAY, point).await;
    })
    .await;
}

#[tokio::test]
async fn inventory_killed_at_any_point_of_keeping_a_reservation_keeps_it() {
    let mut waybill = carrying("inventory").await;
    at_each_point(&mut waybill, "inventory", KEEP, async |waybill, point| {
        is_carried(waybill, "inventory", point).await;
    })
    .await;
}

/// Whoever is worked on at the same time dies as often, and is not blamed for it.
#[tokio::test]
async fn an_order_that_kills_its_step_each_time_is_parked_and_no_other() {
    /// Announced attempts that vanish before the order is given up; the first few are not announced.
    const VANISHED: usize = 10;
    let mut waybill = deployment("payment").await;
    // Slow enough to be under way whenever the other kills.
    let latency = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let behaviour = Some(Behaviour { latency, ..Behaviour::default() });
    let slow = SetBehaviourRequest { customer_id: "slow".to_owned(), behaviour };
    waybill.sandbox().control().set_behaviour(slow).await.unwrap();
    waybill.processor("payment").pause();
    let place = async |customer_id, request_id| {
        let order = waybill.place(order_of(customer_id, request_id, vec![item("widget", UNITS as i32)]));
        order.await.unwrap()
    };
    let others = [place("slow", "one").await, place("slow", "two").await];
    let killer = place(CUSTOMER, "killer").await;
    let order_key = killer.order_id.split_once('-').unwrap().1;
    for order in others.iter().chain([&killer]) {
        waybill.reached(&order.order_id, OrderStatus::Reserved).await;
    }
    let arm = |waybill: &mut Deployment| {
        let pid = waybill.processor("payment").pid();
        waybill.wire().trip_about("append paid", order_key, Moment::Unsent, pid);
    };
    arm(&mut waybill);
    waybill.processor("payment").resume();
    let mut deaths = 0;
    let parked = loop {
        select! {
            () = waybill.wire().tripped() => {}
            parked = waybill.reached(&killer.order_id, OrderStatus::Failed) => break parked,
        }
        deaths += 1;
        assert!(deaths < 3 * VANISHED, "never parked");
        waybill.restart_processor("payment");
        arm(&mut waybill);
    };
    waybill.wire().disarm();
    assert!(deaths > VANISHED, "{deaths} deaths");
    let letter = waybill.letter(&parked.dead_letter_id).await.unwrap();
    assert_eq!(letter.attempts.len(), VANISHED, "{letter:?}");
    assert!(letter.attempts.iter().all(|attempt| attempt.error.contains("left no result")), "{letter:?}");
    for order in &others {
        let end = end_of(&waybill, "payment", order).await;
        assert_eq!(end, ended(OrderStatus::Fulfilled, WHOLE_WAY));
        check_money(&mut waybill, order, PaymentState::Captured).await;
    }
    assert_eq!(waybill.open_letters().await, [parked.dead_letter_id]);

    waybill.redrive(every_one()).await.unwrap();
    let way = [Created, Reserved, Failed, Redriven, Paid, Fulfilled];
    assert_eq!(end_of(&waybill, "payment", &killer).await, ended(OrderStatus::Fulfilled, way));
    check_money(&mut waybill, &killer, PaymentState::Captured).await;
}

#[tokio::test]
async fn a_letter_that_is_discarded_before_its_order_failed_leaves_the_order_failed() {
    let mut waybill = deployment("inventory").await;
    break_gadgets(&waybill).await;
    let mut held = waybill.wire().hold("append failed");
    let order = waybill.place(order_of(CUSTOMER, "request", vec![item("gadget", 1)])).await.unwrap();
    held.reached().await;
    let letters = waybill.open_letters().await;
    let [dead_letter_id] = &letters[..] else { panic!("{letters:?}") };
    let discard =
        DiscardDeadLetterRequest { dead_letter_id: dead_letter_id.clone(), reason: "in haste".to_owned() };
    waybill.operations().discard_dead_letter(discard).await.unwrap();
    let dies = Point { program: "inventory", at: Some(("append failed", Moment::Unsent)), number: 0 };
    dies.arm(&mut waybill);
    held.release();
    dies.die(&mut waybill).await;
    waybill.reached(&order.order_id, OrderStatus::Failed).await;
    waybill.idle("inventory").await;
    assert_eq!(waybill.history(&order.order_id).await, [Created, Failed]);
    assert!(waybill.open_letters().await.is_empty());
}

#[tokio::test]
async fn a_step_killed_at_any_point_of_setting_a_message_aside_keeps_it_once() {
    let mut waybill = deployment("inventory").await;
    at_each_point(&mut waybill, "inventory", SET_ASIDE, async |waybill, point| {
        point.arm(waybill);
        let id = publish_junk(waybill).await;
        point.die(waybill).await;
        eventually("the letter", async || waybill.letter(&id).await.ok()).await;
        waybill.idle("inventory").await;
        assert_eq!(waybill.letters_kept().await.len(), point.number + 1);
        assert_eq!(waybill.open_letters().await.len(), point.number + 1);
    })
    .await;
}

/// Publishes what no step can decode; gives the id of the letter that it becomes.
async fn publish_junk(waybill: &Deployment) -> String {
    let jetstream = waybill.jetstream().await;
    let ack = jetstream.publish("ORDER.0.junk.junk.junk.inventory", "junk".into()).await.unwrap();
    format!("inventory-{}", ack.await.unwrap().sequence)
}

#[tokio::test]
async fn a_step_killed_at_any_point_of_making_its_consumer_anew_is_brought_what_that_had_passed_over() {
    let mut waybill = deployment("fulfilment").await;
    at_each_point(&mut waybill, "fulfilment", MAKE_ANEW, async |waybill, point| {
        point.arm(waybill);
        edit(waybill, "fulfilment", |config| {
            config.filter_subjects = vec![subjects::kind(Redriven)];
            // The next request is refused, and so the edit noticed.
            config.priority_groups = vec!["group".to_owned()];
            config.priority_policy = PriorityPolicy::Overflow;
        })
        .await;
        let order = place(waybill, CUSTOMER, point).await;
        point.die(waybill).await;
        assert_eq!(end_of(waybill, "fulfilment", &order).await, ended(OrderStatus::Fulfilled, WHOLE_WAY));
        check_stock(waybill, &order, true).await;
    })
    .await;
}

#[tokio::test]
async fn a_gateway_killed_at_any_point_of_creating_takes_one_order() {
    let mut waybill = deployment(GATEWAY).await;
    at_each_point(&mut waybill, GATEWAY, CREATE, async |waybill, point| {
        let request = order_of(CUSTOMER, &point.request_id(), vec![item("widget", UNITS as i32)]);
        point.arm(waybill);
        let answer = waybill.place(request.clone()).await;
        assert_eq!(answer.is_ok(), point.at.is_none(), "{answer:?}");
        point.die(waybill).await;
        let order = waybill.place(request).await.unwrap();
        assert_eq!(end_of(waybill, GATEWAY, &order).await, ended(OrderStatus::Fulfilled, WHOLE_WAY));
        assert_eq!(waybill.histories().await.len(), point.number + 1);
    })
    .await;
}

#[tokio::test]
async fn a_gateway_killed_at_any_point_of_cancelling_cancels_once() {
    let mut waybill = deployment(GATEWAY).await;
    waybill.kill_processors("fulfilment");
    at_each_point(&mut waybill, GATEWAY, CANCEL, async |waybill, point| {
        let order = place(waybill, CUSTOMER, point).await;
        waybill.reached(&order.order_id, OrderStatus::Paid).await;
        point.arm(waybill);
        let answer = waybill.cancel(&order.order_id).await;
        assert_eq!(answer.is_ok(), point.at.is_none(), "{answer:?}");
        point.die(waybill).await;
        assert_eq!(waybill.cancel(&order.order_id).await.unwrap().status(), OrderStatus::Cancelled);
        let way = [Created, Reserved, Paid, Cancelled, Released, Refunded];
        assert_eq!(end_of(waybill, GATEWAY, &order).await, ended(OrderStatus::Cancelled, way));
        check_stock(waybill, &order, false).await;
    })
    .await;
}

#[tokio::test]
async fn a_gateway_killed_at_any_point_of_a_redrive_redrives_once() {
    let mut waybill = deployment(GATEWAY).await;
    at_each_point(&mut waybill, GATEWAY, REDRIVE, async |waybill, point| {
        break_gadgets(waybill).await;
        let request = order_of(CUSTOMER, &point.request_id(), vec![item("gadget", 1)]);
        let order = waybill.place(request).await.unwrap();
        let letter = waybill.reached(&order.order_id, OrderStatus::Failed).await.dead_letter_id;
        mend(waybill).await;
        point.arm(waybill);
        let answer = waybill.redrive(these(&[&letter])).await;
        assert_eq!(answer.is_ok(), point.at.is_none(), "{answer:?}");
        point.die(waybill).await;

        let answer = waybill.redrive(these(&[&letter])).await.unwrap();
        let begun = !matches!(point.at, Some(("append redriven", Moment::Unsent)));
        let outcome = if begun { RedriveOutcome::AlreadyResolved } else { RedriveOutcome::Redriven };
        assert_eq!(answer, [(letter.clone(), outcome)]);
        let way = [Created, Failed, Redriven, Reserved, Paid, Fulfilled];
        assert_eq!(end_of(waybill, GATEWAY, &order).await, ended(OrderStatus::Fulfilled, way));
        assert_eq!(waybill.letter(&letter).await.unwrap().state(), DeadLetterState::Redriven);
        assert!(waybill.open_letters().await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_gateway_killed_at_any_point_of_a_discard_discards_once() {
    let mut waybill = deployment(GATEWAY).await;
    at_each_point(&mut waybill, GATEWAY, DISCARD, async |waybill, point| {
        let id = publish_junk(waybill).await;
        eventually("the letter", async || waybill.letter(&id).await.ok()).await;
        let request = DiscardDeadLetterRequest { dead_letter_id: id.clone(), reason: "a test".to_owned() };
        point.arm(waybill);
        let answer = waybill.operations().discard_dead_letter(request.clone()).await;
        assert_eq!(answer.is_ok(), point.at.is_none(), "{answer:?}");
        point.die(waybill).await;
        waybill.operations().discard_dead_letter(request).await.unwrap();
        assert_eq!(waybill.letter(&id).await.unwrap().state(), DeadLetterState::Discarded);
        assert!(waybill.open_letters().await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_gateway_killed_at_any_point_of_a_change_of_stock_makes_it_once() {
    let mut waybill = deployment(GATEWAY).await;
    at_each_point(&mut waybill, GATEWAY, CHANGE_STOCK, async |waybill, point| {
        let before = waybill.available("widget").await;
        point.arm(waybill);
        let answer = waybill.add_stock(&point.request_id(), "widget", 50).await;
        assert_eq!(answer.is_ok(), point.at.is_none(), "{answer:?}");
        point.die(waybill).await;
        let again = waybill.add_stock(&point.request_id(), "widget", 50).await.unwrap();
        assert_eq!(waybill.available("widget").await, before + 50);
        assert_eq!(again.stock.unwrap().available_units, i64::try_from(before + 50).unwrap());
        // The broker decides with the last message of the two.
        let stored = point.at.is_none_or(|at| at == ("write change", Moment::Unanswered));
        assert_eq!(again.repeated, stored, "{point}");
    })
    .await;
}
