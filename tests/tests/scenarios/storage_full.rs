//! A stream without room refuses; nothing is dropped to make room, and all goes on when there is some.

use backbone::broker::streams::ORDERS;
use backbone::log::subjects::EventKind;
use harness::{Deployment, Load, Options, eventually, item, order_of};
use serde_json::Value;
use tonic::Code;
use tonic_types::StatusExt;

use crate::accounting::{each_is_carried_out_once, widgets};

/// Bounds the stream to so many messages; -1 lifts the bound.
pub(crate) async fn room_for(waybill: &Deployment, max_messages: i64) {
    let jetstream = waybill.jetstream().await;
    let config = jetstream.get_stream(ORDERS).await.unwrap().cached_info().config.clone();
    let config = async_nats::jetstream::stream::Config { max_messages, ..config };
    jetstream.update_stream(config).await.unwrap();
}

#[tokio::test]
async fn a_full_stream_refuses_new_orders_and_keeps_those_it_has() {
    let waybill = Deployment::start().await;
    room_for(&waybill, 1).await;
    let first = waybill.place(order_of("customer", "first", vec![item("widget", 1)])).await.unwrap();

    let request = order_of("customer", "second", vec![item("widget", 1)]);
    let refusal = waybill.place(request.clone()).await.unwrap_err();
    assert_eq!(refusal.code(), Code::Unavailable, "{refusal:?}");
    assert_eq!(refusal.get_details_error_info().unwrap().reason, "STORAGE_FULL");
    assert!(refusal.get_details_retry_info().is_some());
    assert_eq!(waybill.history(&first.order_id).await, [EventKind::Created]);

    room_for(&waybill, -1).await;
    let second =
        eventually("space that is noticed", async || waybill.place(request.clone()).await.ok()).await;
    each_is_carried_out_once(&waybill, &[first, second]).await;
}

#[tokio::test]
async fn a_step_whose_append_finds_no_room_tries_again_until_it_does() {
    let mut options = Options::default();
    options.processors.push(("MAX_ATTEMPTS", "1".to_owned()));
    let mut waybill = Deployment::start_with(options).await;
    room_for(&waybill, 1).await;
    let order = waybill.place(order_of("customer", "request", vec![item("widget", 1)])).await.unwrap();
    for (room, step) in [(2, "inventory"), (3, "payment"), (4, "fulfilment")] {
        let refused = |fields: &Value| {
            (fields["message"] == "attempt failed, order retried" && fields["step"] == step).then_some(())
        };
        waybill.processor(step).logged(&format!("{step} without room"), refused).await;
        room_for(&waybill, room).await;
    }
    each_is_carried_out_once(&waybill, &[order]).await;
}

#[tokio::test]
async fn a_stream_that_fills_up_in_the_middle_of_many_orders_loses_none() {
    const ORDERS: usize = 200;
    let waybill = Deployment::start().await;
    room_for(&waybill, 150).await;
    let load = Load::start(waybill.channel(), widgets(ORDERS));
    eventually("a step without room", async || {
        let lines = waybill.logged_about("no storage space");
        lines.iter().any(|line| line.contains("attempt failed, order retried")).then_some(())
    })
    .await;
    eventually("no more room", async || (waybill.messages().await.len() == 150).then_some(())).await;
    room_for(&waybill, -1).await;
    each_is_carried_out_once(&waybill, &load.all().await).await;
}
