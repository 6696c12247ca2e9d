//! One request_id, one order, however often and wherever the call is repeated.

use std::collections::{BTreeMap, HashSet};

use backbone::log::subjects::EventKind;
use futures::future::join_all;
use harness::{Deployment, Options, PAYMENT_METHOD, full_order_of, item, order_of};
use proto::orders::v1::order_service_client::OrderServiceClient;
use proto::orders::v1::{CreateOrderRequest, OrderItem, OrderStatus, PostalAddress};
use tonic::Code;
use tonic_types::StatusExt;

use crate::accounting::{WHOLE_WAY, each_is_carried_out_once};

fn request() -> CreateOrderRequest {
    order_of("customer", "request", vec![item("widget", 1)])
}

fn gateway_only() -> Options {
    Options { replicas: 0, ..Options::default() }
}

#[tokio::test]
async fn a_repeat_answers_with_the_same_order() {
    let waybill = Deployment::start_with(gateway_only()).await;
    let first = waybill.place(request()).await.unwrap();
    let again = waybill.place(request()).await.unwrap();
    assert_eq!(again, first);
    assert_eq!(waybill.history(&first.order_id).await, [EventKind::Created]);
}

#[tokio::test]
async fn another_order_under_a_used_request_id_is_refused() {
    let waybill = Deployment::start_with(gateway_only()).await;
    let first = waybill.place(request()).await.unwrap();
    for items in [vec![item("widget", 2)], vec![item("gadget", 1)], vec![item("widget", 1); 2]] {
        let status = waybill.place(order_of("customer", "request", items)).await.unwrap_err();
        assert_eq!(status.code(), Code::AlreadyExists);
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.reason, "REQUEST_ID_REUSED");
        assert_eq!(info.metadata["order_id"], first.order_id);
    }
    assert_eq!(waybill.subjects().await.len(), 1);
}

#[tokio::test]
async fn the_same_order_is_the_same_in_every_field() {
    let waybill = Deployment::start_with(gateway_only()).await;
    let request = || full_order_of("customer", "request", vec![item("widget", 1)]);
    let first = waybill.place(request()).await.unwrap();
    assert_eq!(waybill.place(request()).await.unwrap(), first);
    let address = |change: fn(&mut PostalAddress)| {
        let mut request = request();
        change(request.shipping_address.as_mut().unwrap());
        request
    };
    let of_item = |change: fn(&mut OrderItem)| {
        let mut request = request();
        change(&mut request.items[0]);
        request
    };
    let other = || "other".to_owned();
    let others = [
        CreateOrderRequest { metadata: [("campaign".to_owned(), other())].into(), ..request() },
        CreateOrderRequest { metadata: BTreeMap::new(), ..request() },
        CreateOrderRequest { shipping_address: None, ..request() },
        CreateOrderRequest { payment_method: other(), ..request() },
        CreateOrderRequest { payment_method: String::new(), ..request() },
        CreateOrderRequest { note: other(), ..request() },
        CreateOrderRequest { reference: other(), ..request() },
        of_item(|item| item.name.clear()),
        of_item(|item| item.metadata.clear()),
        of_item(|item| item.sku = "gadget".to_owned()),
        of_item(|item| item.unit_price.as_mut().unwrap().minor_units += 1),
        of_item(|item| item.unit_price.as_mut().unwrap().currency_code = "USD".to_owned()),
        address(|address| address.region_code = "CH".to_owned()),
        address(|address| address.language_code.clear()),
        address(|address| address.postal_code.clear()),
        address(|address| address.sorting_code.clear()),
        address(|address| address.administrative_area.clear()),
        address(|address| address.locality.clear()),
        address(|address| address.sublocality.clear()),
        address(|address| address.address_lines.clear()),
        address(|address| address.recipients.clear()),
        address(|address| address.organization.clear()),
    ];
    for request in others {
        let status = waybill.place(request.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::AlreadyExists, "{request:?}");
        assert_eq!(status.get_details_error_info().unwrap().reason, "REQUEST_ID_REUSED");
        assert!(!format!("{status:?}").contains(PAYMENT_METHOD));
    }
    assert_eq!(waybill.subjects().await.len(), 1);
}

#[tokio::test]
async fn a_request_id_belongs_to_one_customer() {
    let waybill = Deployment::start_with(gateway_only()).await;
    let mine = waybill.place(request()).await.unwrap();
    let theirs = waybill.place(order_of("other", "request", vec![item("gadget", 9)])).await.unwrap();
    assert_ne!(mine.order_id, theirs.order_id);
}

#[tokio::test]
async fn without_a_request_id_every_call_makes_an_order() {
    let waybill = Deployment::start_with(gateway_only()).await;
    let request = CreateOrderRequest { request_id: String::new(), ..request() };
    let first = waybill.place(request.clone()).await.unwrap();
    let second = waybill.place(request).await.unwrap();
    assert_ne!(first.order_id, second.order_id);
}

#[tokio::test]
async fn a_hundred_repeats_at_once_through_two_gateways_make_one_order() {
    let waybill = Deployment::start().await;
    let other = waybill.another_gateway().await;
    let channels = [waybill.channel(), other.channel()];
    let calls = (0..100).map(|i| {
        let mut client = OrderServiceClient::new(channels[i % 2].clone());
        async move { client.create_order(request()).await.unwrap().into_inner().order.unwrap() }
    });
    let orders = join_all(calls).await;

    // Only status, revision and update_time may have moved on meanwhile.
    let same: HashSet<_> = orders
        .iter()
        .map(|order| (&order.order_id, order.create_time.map(|time| (time.seconds, time.nanos))))
        .collect();
    assert_eq!(same.len(), 1, "{same:?}");
    each_is_carried_out_once(&waybill, &orders[..1]).await;
}

#[tokio::test]
async fn a_repeat_long_after_and_to_a_new_gateway_answers_with_the_same_order() {
    let mut waybill = Deployment::start().await;
    let order = waybill.place(request()).await.unwrap();
    let finished = waybill.finished(&order.order_id).await;
    assert_eq!(finished.status(), OrderStatus::Fulfilled);
    assert_eq!(waybill.place(request()).await.unwrap(), finished);

    waybill.restart_gateway().await;
    assert_eq!(waybill.place(request()).await.unwrap(), finished);
    assert_eq!(waybill.history(&order.order_id).await, WHOLE_WAY);
}
