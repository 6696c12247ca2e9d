//! The run that leaves something of everything that Waybill stores.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use backbone::broker::direct_get::{self, Stored};
use backbone::broker::streams::{DEAD_LETTERS, ORDERS};
use backbone::dead_letters::ALL_DEAD_LETTERS;
use backbone::log::Appended;
use backbone::log::ids::{CustomerKey, OrderId, OrderKey, Revision};
use backbone::log::subjects::{ALL_ORDERS, EventKind};
use harness::{
    Deployment, Options, PATIENCE, default_route, eventually, full_order_of, item, order_of, these,
};
use proto::operations::v1::{DeadLetterState, DiscardDeadLetterRequest};
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{
    CreateOrderRequest, Order, OrderCreated, OrderStatus, Route, RouteStep, StepCompensated, StepCompleted,
    StepDeferred, StepResumed,
};
use serde_json::Value;
use tokio::time::Instant;
use tonic::Request;

use super::{FOLDER, Golden, WIDGETS, on_record};
use crate::dead_letters::{break_gadgets, mend, parked, place_poison};

/// Headers that the answer has and the message has not.
const OF_THE_ANSWER: [&str; 6] = [
    "Nats-Stream",
    "Nats-Subject",
    "Nats-Sequence",
    "Nats-Num-Pending",
    "Nats-Last-Sequence",
    "Nats-UpTo-Sequence",
];

/// The step of [`reviewed`] that is not built in.
const REVIEW: &str = "review";

#[tokio::test]
#[ignore = "writes the golden messages of a new version: make golden"]
async fn write() {
    // Before its release a version may come to store something more: GOLDEN names one more folder then.
    let version = env!("CARGO_PKG_VERSION").rsplit_once('.').unwrap().0;
    let version = std::env::var("GOLDEN").unwrap_or_else(|_| version.to_owned());
    let folder = Path::new(FOLDER).join(version);
    assert!(!folder.exists(), "{} is there, and is never written again", folder.display());

    let mut options = Options {
        stock: vec![("widget", WIDGETS), ("gadget", 10)],
        payment_sandbox: true,
        ..Options::default()
    };
    options.processors.push(("MAX_ATTEMPTS", "2".to_owned()));
    let mut waybill = Deployment::start_with(options).await;
    for step in ["inventory", "payment", "fulfilment"] {
        waybill.idle(step).await;
    }
    finished_orders(&waybill).await;
    Box::pin(orders_with_a_step_of_their_own(&waybill)).await;
    letters(&mut waybill).await;
    unfinished_orders(&mut waybill).await;
    carried_order(&mut waybill).await;

    fs::create_dir_all(&folder).unwrap();
    let client = waybill.jetstream().await.client();
    let dumps = [
        ("orders.json", ORDERS, ALL_ORDERS),
        ("dead_letters.json", DEAD_LETTERS, ALL_DEAD_LETTERS),
        ("inventory.json", "KV_INVENTORY", "$KV.INVENTORY.>"),
    ];
    for (file, stream, filter) in dumps {
        let stored = direct_get::all_from(&client, stream, filter, Revision::NONE).await.unwrap();
        let stored = stored.into_iter().filter(|stored| stored.subject.as_str() != "DEAD_LETTER.carrier");
        let messages: Vec<Value> = stored.map(|stored| golden(stored).into_json()).collect();
        assert!(!messages.is_empty(), "{file}");
        fs::write(folder.join(file), serde_json::to_string_pretty(&messages).unwrap() + "\n").unwrap();
    }
    let ledger = on_record(waybill.sandbox()).await;
    fs::write(folder.join("payments.txt"), ledger + "\n").unwrap();
    fs::write(folder.join("payments.jsonl"), waybill.sandbox().records().join("\n") + "\n").unwrap();
}

fn golden(Stored { subject, sequence, headers, payload }: Stored) -> Golden {
    let headers = headers.iter().filter(|(name, _)| !OF_THE_ANSWER.contains(&name.to_string().as_str()));
    let headers = headers.map(|(name, values)| (name.to_string(), values[0].to_string())).collect();
    let golden = Golden {
        subject: subject.to_string(),
        sequence: sequence.0,
        headers,
        payload: payload.into(),
        reads_as: Vec::new(),
    };
    Golden { reads_as: golden.read(), ..golden }
}

async fn place(waybill: &Deployment, customer: &str, units: i32) -> Order {
    let request = order_of(customer, &format!("request-{customer}"), vec![item("widget", units)]);
    waybill.place(request).await.unwrap()
}

/// One that goes well, one that is out of stock, one that is declined.
async fn finished_orders(waybill: &Deployment) {
    let items = vec![item("widget", 2), item("gadget", 1), item("widget", 1)];
    let mut request: Request<CreateOrderRequest> = Request::new(full_order_of("ada", "request-1", items));
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    request.metadata_mut().insert("traceparent", trace.parse().unwrap());
    request.metadata_mut().insert("tracestate", "vendor=value".parse().unwrap());
    let order = waybill.client().await.create_order(request).await.unwrap().into_inner().order.unwrap();
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
    for customer in ["greedy", "declined-mallory"] {
        let order = place(waybill, customer, if customer == "greedy" { 1_000_000 } else { 1 }).await;
        assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Rejected);
    }
}

/// The route of orders that go through a step which is not built in.
fn reviewed() -> Route {
    let mut route = Route { name: "reviewed".to_owned(), ..default_route() };
    let leads_to = OrderStatus::Unspecified.into();
    route.steps.insert(1, RouteStep { name: REVIEW.to_owned(), compensates: true, leads_to });
    route
}

/// One that the step defers and completes, and one for which it compensates after a cancel.
async fn orders_with_a_step_of_their_own(waybill: &Deployment) {
    for (customer, is_cancelled) in [("reviewed", false), ("withdrawn", true)] {
        let key = OrderKey::of_request("", customer, "request");
        let id = OrderId { customer: CustomerKey::of("", customer), order: key };
        let (order_id, customer_id) = (id.to_string(), customer.to_owned());
        let (items, route) = (vec![item("widget", 1)], "reviewed".to_owned());
        let created = OrderCreated {
            order_id,
            customer_id,
            items,
            request_id: "request".to_owned(),
            route,
            ..OrderCreated::default()
        };
        let deadline = Instant::now() + PATIENCE;
        waybill.order_log().await.create(id, created, reviewed(), deadline).await.unwrap();
        if is_cancelled {
            waybill.reached(&id.to_string(), OrderStatus::Reserved).await;
            waybill.cancel(&id.to_string()).await.unwrap();
            review(waybill, &id, Detail::Compensated(StepCompensated {})).await;
        } else {
            let until = Some(SystemTime::now().into());
            let (reason, message) = ("WAITS_FOR_REVIEW".to_owned(), "later".to_owned());
            review(waybill, &id, Detail::Deferred(StepDeferred { until, reason, message })).await;
            let log = waybill.order_log().await;
            let deferred = log.load_latest(&id).await.unwrap().unwrap();
            let resumed = Detail::Resumed(StepResumed {});
            log.append(&deferred, resumed, Instant::now() + PATIENCE).await.unwrap();
            let attributes = [("carrier".to_owned(), "Golden Parcels".to_owned())].into();
            review(waybill, &id, Detail::Completed(StepCompleted { attributes })).await;
        }
        waybill.finished(&id.to_string()).await;
    }
}

/// Plays the step, once it is its turn.
async fn review(waybill: &Deployment, id: &OrderId, detail: Detail) {
    let log = waybill.step_log(REVIEW).await;
    let order = eventually("the step's turn", async || {
        let order = log.load(id).await.unwrap()?;
        (order.order.current_step == REVIEW).then_some(order)
    })
    .await;
    let appended = log.append(&order, detail, Instant::now() + PATIENCE).await.unwrap();
    assert!(matches!(appended, Appended::Stored(_)), "{appended:?}");
}

/// One that was redriven, an open and a discarded one of messages that do not decode, one of an order that is parked, and
/// attempts that are not yet one.
async fn letters(waybill: &mut Deployment) {
    break_gadgets(waybill).await;
    let order = parked(waybill, "redriven").await;
    mend(waybill).await;
    waybill.redrive(these(&[&order.dead_letter_id])).await.unwrap();
    waybill.finished(&order.order_id).await;
    break_gadgets(waybill).await;
    parked(waybill, "parked").await;

    let jetstream = waybill.jetstream().await;
    for _ in 0..2 {
        jetstream.publish("ORDER.0.junk.junk.junk.inventory", "junk".into()).await.unwrap().await.unwrap();
    }
    let open = eventually("letters about junk", async || {
        let open = waybill.open_letters().await;
        (open.len() == 3).then_some(open)
    })
    .await;
    let discard = DiscardDeadLetterRequest {
        dead_letter_id: open.last().unwrap().clone(),
        reason: "a test of ours".to_owned(),
    };
    waybill.operations().discard_dead_letter(discard).await.unwrap();

    waybill.kill_processors("inventory");
    waybill.start_processor_with("inventory", &[("MAX_ATTEMPTS", "20")]);
    place_poison(waybill, "tried").await;
    eventually("a failed attempt on record", async || {
        let kept = waybill.letters_kept().await;
        let tried = |(_, letter): &(String, _)| is_tried(letter);
        kept.iter().any(tried).then_some(())
    })
    .await;
}

fn is_tried(letter: &proto::operations::v1::DeadLetter) -> bool {
    letter.state() == DeadLetterState::Unspecified && !letter.attempts.is_empty()
}

/// Two that were cancelled, after the payment and before anything was done, and one left at each stage.
async fn unfinished_orders(waybill: &mut Deployment) {
    waybill.kill_processors("fulfilment");
    let order = place(waybill, "regretful", 1).await;
    waybill.reached(&order.order_id, OrderStatus::Paid).await;
    waybill.cancel(&order.order_id).await.unwrap();
    waybill.finished(&order.order_id).await;
    let order = place(waybill, "paid", 1).await;
    waybill.reached(&order.order_id, OrderStatus::Paid).await;
    waybill.kill_processors("payment");
    let order = place(waybill, "reserved", 1).await;
    waybill.reached(&order.order_id, OrderStatus::Reserved).await;
    waybill.kill_processors("inventory");
    place(waybill, "accepted", 1).await;
    let order = place(waybill, "hasty", 1).await;
    waybill.cancel(&order.order_id).await.unwrap();
}

/// One that was carried by a gateway that does so early.
async fn carried_order(waybill: &mut Deployment) {
    let order = place(waybill, "patient", 1).await;
    waybill.gateway.process.kill();
    let mut early = waybill.gateway_with("early", vec![("CARRY_AFTER", "1s".to_owned())]).await;
    eventually("an order that is carried", async || {
        waybill.history(&order.order_id).await.contains(&EventKind::Carried).then_some(())
    })
    .await;
    early.process.kill();
}
