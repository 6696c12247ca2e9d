//! A step that Waybill does not ship, at work beside the other three on a route of its own. All that is asked of it here
//! belongs to the runtime: its file holds none of it.

use std::fs;
use std::path::Path;

use async_nats::jetstream::kv;
use backbone::log::ids::CustomerKey;
use backbone::log::subjects::EventKind::{
    Cancelled, Completed, Created, Failed, Fulfilled, Paid, Redriven, Rejected, Released, Reserved,
};
use harness::{Deployment, Load, Options, eventually, item, order_of};
use proto::orders::v1::{CreateOrderRequest, Order, OrderStatus};
use serde_json::Value;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const FOURTH_STEP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fourth-step");
const ROUTES: &str = include_str!("../../fourth-step/routes.yaml");
const SUSPECT: &str = "mallory";
const STOCK: u64 = 1_000_000;

/// All four steps at work, which give up after so many attempts.
async fn deployment(attempts_max: u8) -> Deployment {
    let processors = vec![("ACK_WAIT", "2s".to_owned()), ("MAX_ATTEMPTS", attempts_max.to_string())];
    let steps = vec!["inventory", "fraud", "payment", "fulfilment"];
    let options = Options { routes: Some(ROUTES.to_owned()), steps, processors, ..Options::default() };
    let waybill = Deployment::start_with(options).await;
    waybill.idle("fraud").await;
    waybill
}

fn order_by(customer_id: &str) -> CreateOrderRequest {
    order_of(customer_id, "request", vec![item("widget", 1)])
}

fn many(orders: usize) -> Vec<CreateOrderRequest> {
    (0..orders).map(|i| order_of("customer", &format!("request-{i}"), vec![item("widget", 1)])).collect()
}

async fn suspects(waybill: &Deployment) -> kv::Store {
    let jetstream = waybill.jetstream().await;
    eventually("the bucket of suspects", async || jetstream.get_key_value("SUSPECTS").await.ok()).await
}

/// Begins to suspect [`SUSPECT`].
async fn suspect(waybill: &Deployment, reason: &[u8]) {
    suspects(waybill).await.put(key(), reason.to_vec().into()).await.unwrap();
}

fn key() -> String {
    CustomerKey::of("", SUSPECT).to_string()
}

async fn all_are_fulfilled(waybill: &Deployment, orders: &[Order]) {
    let ids: Vec<_> = orders.iter().map(|order| order.order_id.clone()).collect();
    assert_eq!(waybill.statuses(&ids).await.get(&OrderStatus::Fulfilled), Some(&ids.len()));
    let histories = waybill.histories().await;
    assert_eq!(histories.len(), orders.len());
    for (order_id, history) in histories {
        assert_eq!(history, [Created, Reserved, Completed, Paid, Fulfilled], "{order_id} is screened once");
    }
    assert_eq!(waybill.held("widget").await, orders.len() as u64);
    assert!(waybill.letters_kept().await.is_empty());
}

#[tokio::test]
async fn an_order_is_screened_between_its_reservation_and_its_payment() {
    let waybill = deployment(10).await;
    let order = waybill.place(order_by("customer")).await.unwrap();
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
    let way = [Created, Reserved, Completed, Paid, Fulfilled];
    assert_eq!(waybill.history(&order.order_id).await, way);
    let messages = waybill.messages().await;
    let header = |i: usize, name: &str| messages[i].headers.get(name).unwrap().as_str().to_owned();
    assert_eq!(
        (header(2, "ce-type"), header(2, "ce-source")),
        ("orders.v1.StepCompleted".to_owned(), "fraud".to_owned())
    );
    let trace = |i| header(i, "traceparent").split('-').nth(1).unwrap().to_owned();
    assert_eq!(trace(2), trace(0), "all in one trace");
}

#[tokio::test]
async fn a_suspect_pays_nothing_and_gives_the_stock_back() {
    let waybill = deployment(10).await;
    suspect(&waybill, b"three chargebacks").await;
    let order = waybill.place(order_by(SUSPECT)).await.unwrap();
    let order = waybill.finished(&order.order_id).await;
    assert_eq!((order.status(), order.reason.as_str()), (OrderStatus::Rejected, "SUSPECTED_FRAUD"));
    assert_eq!(waybill.history(&order.order_id).await, [Created, Reserved, Rejected, Released]);
    assert_eq!((waybill.held("widget").await, waybill.available("widget").await), (0, STOCK));
}

#[tokio::test]
async fn an_order_that_is_cancelled_before_it_is_screened_owes_no_refund() {
    let mut waybill = deployment(10).await;
    waybill.kill_processors("fraud");
    let order = waybill.place(order_by("customer")).await.unwrap();
    waybill.reached(&order.order_id, OrderStatus::Reserved).await;
    waybill.cancel(&order.order_id).await.unwrap();
    let order = waybill.finished(&order.order_id).await;
    waybill.start_processor("fraud");
    waybill.idle("fraud").await;
    assert_eq!(waybill.history(&order.order_id).await, [Created, Reserved, Cancelled, Released]);
}

#[tokio::test]
async fn orders_wait_while_the_suspects_cannot_be_looked_up_and_none_is_given_up() {
    let mut waybill = deployment(1).await;
    let jetstream = waybill.jetstream().await;
    jetstream.delete_key_value("SUSPECTS").await.unwrap();
    let orders = Load::start(waybill.channel(), many(20)).all().await;
    let said = |message: &'static str| move |fields: &Value| (fields["message"] == message).then_some(());
    waybill
        .processor("fraud")
        .logged("a pause", said("dependency unavailable, circuit breaker opened"))
        .await;
    let config = kv::Config { bucket: "SUSPECTS".to_owned(), ..kv::Config::default() };
    jetstream.create_key_value(config).await.unwrap();
    all_are_fulfilled(&waybill, &orders).await;
    waybill
        .processor("fraud")
        .logged("the end of the pause", said("dependency available, circuit breaker closed"))
        .await;
}

#[tokio::test]
async fn an_order_that_cannot_be_screened_is_parked_and_goes_on_when_it_is_redriven() {
    let waybill = deployment(2).await;
    suspect(&waybill, &[0xff]).await;
    let order = waybill.place(order_by(SUSPECT)).await.unwrap();
    let parked = waybill.reached(&order.order_id, OrderStatus::Failed).await;
    assert_eq!((parked.parked_status(), parked.current_step.as_str()), (OrderStatus::Reserved, "fraud"));
    let letter = waybill.letter(&parked.dead_letter_id).await.unwrap();
    assert_eq!((letter.step.as_str(), letter.attempts.len()), ("fraud", 2));
    assert!(letter.attempts.iter().all(|attempt| attempt.error.contains("SUSPECTS")), "{letter:?}");

    suspects(&waybill).await.delete(key()).await.unwrap();
    waybill.redrive(harness::these(&[&parked.dead_letter_id])).await.unwrap();
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
    let way = [Created, Reserved, Failed, Redriven, Completed, Paid, Fulfilled];
    assert_eq!(waybill.history(&order.order_id).await, way);
}

#[tokio::test]
async fn processes_that_stop_or_die_leave_their_orders_to_the_others() {
    let mut waybill = deployment(10).await;
    waybill.start_processor("fraud");
    let mut load = Load::start(waybill.channel(), many(600));
    load.acknowledged(100).await;
    let status = waybill.processor("fraud").stop().await;
    assert!(status.success(), "{status}");
    load.acknowledged(300).await;
    waybill.kill_processors("fraud");
    waybill.start_processor("fraud");
    let orders = load.all().await;
    all_are_fulfilled(&waybill, &orders).await;
}

#[test]
fn the_documentation_shows_what_is_built_here() {
    let page = fs::read_to_string(Path::new(ROOT).join("docs/rust-steps.md")).unwrap();
    let sources = ["Cargo.toml", "src/main.rs", "src/fraud.rs", "routes.yaml"];
    let sources = sources.map(|path| fs::read_to_string(Path::new(FOURTH_STEP).join(path)).unwrap());
    let code = |block: &&str| ["rust\n", "toml\n", "yaml\n"].iter().any(|kind| block.starts_with(kind));
    // Every other part is inside of a fence.
    let blocks: Vec<_> = page.split("```").skip(1).step_by(2).filter(code).collect();
    assert!(blocks.len() >= sources.len(), "{} blocks", blocks.len());
    for block in blocks {
        let (_, text) = block.split_once('\n').unwrap();
        assert!(sources.iter().any(|source| source.contains(text)), "not as it is built:\n{text}");
    }
}
