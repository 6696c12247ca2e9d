//! A broker that takes only small messages: what can never be stored is said at once, and is not repeated.

use std::time::{Duration, Instant};

use harness::{Deployment, Options, eventually, full_order_of, item, order_of, these};
use prost::Message;
use proto::operations::v1::DeadLetterState;
use proto::orders::v1::{CreateOrderRequest, OrderStatus};
use serde_json::Value;
use tonic::Code;
use tonic_types::StatusExt;

/// The largest CreateOrderRequest.
const ORDER_BYTES_MAX: usize = 60 * 1024;
/// Less than the contract allows: an order of 100 items makes a larger event.
const SMALL: &str = "max_payload: 16384";

/// A broker with such settings, and everything around it.
async fn deployment(options: Options, of_server: &str) -> Deployment {
    let mut waybill = Deployment::start_without_broker(options).await;
    waybill.broker.start_configured("", of_server);
    waybill.ready().await;
    waybill.steps_are_open().await;
    waybill
}

/// An order of so many items, each SKU of 64 characters.
fn of_items(request_id: &str, count: usize) -> CreateOrderRequest {
    let items = (0..count).map(|n| item(&format!("{n:0>64}"), 1)).collect();
    order_of("customer", request_id, items)
}

#[tokio::test]
async fn an_order_that_is_too_large_for_the_broker_is_refused_at_once_and_for_good() {
    let mut waybill = deployment(Options::default(), SMALL).await;
    let began = Instant::now();
    let refusal = waybill.place(of_items("large", 100)).await.unwrap_err();
    let took = began.elapsed();
    let details = refusal.get_error_details();
    let reason = details.error_info().map(|info| info.reason.clone());
    eprintln!("{:?} {reason:?} after {took:.2?}, {:?}", refusal.code(), details.retry_info());
    assert_eq!(refusal.code(), Code::FailedPrecondition, "{refusal:?}");
    assert_eq!(reason.as_deref(), Some("MESSAGE_TOO_LARGE"));
    assert!(details.retry_info().is_none(), "nobody is to repeat it");
    assert!(details.precondition_failure().is_some());
    assert!(took < Duration::from_secs(2), "{took:?}");
    // Others are not hurt.
    let small = waybill.place(order_of("customer", "small", vec![item("widget", 1)])).await.unwrap();
    waybill.finished(&small.order_id).await;

    let warned = |fields: &Value| {
        let message = fields["message"].as_str()?;
        message.contains("below the largest event").then(|| fields["reason"].to_string())
    };
    for step in ["inventory", "payment", "fulfilment"] {
        let reason = waybill.processor(step).logged("a warning of the limit", warned).await;
        assert!(reason.contains("max_payload is 16384"), "{reason}");
    }
    waybill.gateway.process.logged("a warning of the limit", warned).await;
}

#[tokio::test]
async fn a_stream_that_takes_only_small_messages_refuses_at_once_too() {
    let waybill = Deployment::start().await;
    let jetstream = waybill.jetstream().await;
    let config = jetstream.get_stream("ORDERS").await.unwrap().cached_info().config.clone();
    let small = async_nats::jetstream::stream::Config { max_message_size: 2_000, ..config };
    jetstream.update_stream(small).await.unwrap();
    let refusal = waybill.place(of_items("large", 20)).await.unwrap_err();
    assert_eq!(refusal.code(), Code::FailedPrecondition, "{refusal:?}");
    assert_eq!(refusal.get_details_error_info().unwrap().reason, "MESSAGE_TOO_LARGE");
    waybill.place(order_of("customer", "small", vec![item("widget", 1)])).await.unwrap();
}

#[tokio::test]
async fn the_largest_order_of_the_contract_passes_where_nothing_is_warned_of() {
    let of_server = format!("max_payload: {}", backbone::log::event::BYTES_MAX);
    let waybill = deployment(Options { stock: stock(), ..Options::default() }, &of_server).await;
    let mut request = full_order_of(&"c".repeat(128), &"r".repeat(128), of_items("", 100).items);
    for item in &mut request.items {
        item.unit_price.as_mut().unwrap().minor_units = i64::MAX / 100;
    }
    // As much as the contract allows in all.
    let mut n = 0;
    while ORDER_BYTES_MAX - request.encoded_len() > 600 {
        request.items[n % 100].metadata.insert(format!("{n:0>40}"), "v".repeat(500));
        n += 1;
    }
    assert!(ORDER_BYTES_MAX - request.encoded_len() < 1024, "{} bytes", request.encoded_len());
    let order = waybill.place(request).await.unwrap();
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
    assert_eq!(waybill.logged_about("below the largest event"), Vec::<String>::new());
}

/// Every SKU of an order of 100 items.
fn stock() -> Vec<(&'static str, u64)> {
    (0..100).map(|n| (&*format!("{n:0>64}").leak(), 10)).collect()
}

/// An event that was stored while the limit was higher leads to one that does not fit: the order is parked, and goes on
/// once the limit is raised and it is redriven.
#[tokio::test]
async fn a_step_parks_an_order_whose_next_event_is_too_large() {
    let mut options = Options { stock: stock(), ..Options::default() };
    options.processors.push(("MAX_ATTEMPTS", "3".to_owned()));
    let mut waybill = deployment(options, "").await;
    waybill.kill_processors("inventory");
    let order = waybill.place(of_items("large", 100)).await.unwrap();
    waybill.broker.kill();
    // Enough for the order itself, which a FAILED event holds, and not for its lines of stock beside it.
    waybill.broker.start_configured("", "max_payload: 12288");
    waybill.restart_processor("inventory");
    let failed = waybill.reached(&order.order_id, OrderStatus::Failed).await;
    let letter = waybill.letter(&failed.dead_letter_id).await.unwrap();
    assert_eq!(letter.state(), DeadLetterState::Open);
    assert!(letter.content_omitted, "the letter has no room for the message");
    assert_eq!(letter.attempts.len(), 3);
    assert!(letter.attempts[0].error.contains("exceeds the broker's limit"), "{:?}", letter.attempts);

    waybill.broker.kill();
    waybill.broker.start_configured("", "");
    waybill.ready().await;
    eventually("a redrive", async || {
        let answers = waybill.redrive(these(&[&failed.dead_letter_id])).await.ok()?;
        (!answers.is_empty()).then_some(())
    })
    .await;
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
}
