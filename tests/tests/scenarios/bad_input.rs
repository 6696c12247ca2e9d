//! What the gateway refuses, and that it says so in a way that a program can act on.

use futures::stream;
use harness::{Deployment, Options, PATIENCE, item, order_of};
use http::uri::PathAndQuery;
use proto::orders::v1::{CreateOrderRequest, ListOrdersRequest, ListOrdersResponse, Money, OrderItem};
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt;

async fn gateway_only() -> Deployment {
    Deployment::start_with(Options { replicas: 0, ..Options::default() }).await
}

/// The fields that a call was refused for.
fn fields(status: &Status) -> Vec<String> {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let violations = status.get_details_bad_request().unwrap().field_violations;
    assert!(violations.iter().all(|violation| !violation.description.is_empty()));
    violations.into_iter().map(|violation| violation.field).collect()
}

fn price(currency_code: &str, minor_units: i64) -> Option<Money> {
    Some(Money { currency_code: currency_code.to_owned(), minor_units })
}

#[tokio::test]
async fn every_broken_rule_is_named_at_once() {
    let waybill = gateway_only().await;
    let items = vec![
        OrderItem { sku: String::new(), quantity: 0, unit_price: price("XYZ", -1), ..OrderItem::default() },
        OrderItem { sku: "not a sku".to_owned(), quantity: -5, ..OrderItem::default() },
        item("widget", 1),
        OrderItem {
            sku: "s".repeat(65),
            quantity: 1_000_001,
            unit_price: price("", 0),
            ..OrderItem::default()
        },
    ];
    let status = waybill.place(order_of("no customer", "no request", items)).await.unwrap_err();
    assert_eq!(
        fields(&status),
        [
            "request_id",
            "customer_id",
            "items[0].sku",
            "items[0].quantity",
            "items[0].unit_price.currency_code",
            "items[0].unit_price.minor_units",
            "items[1].sku",
            "items[1].quantity",
            "items[1].unit_price",
            "items[3].sku",
            "items[3].quantity",
            "items[3].unit_price.currency_code",
        ]
    );
    let status = waybill.place(CreateOrderRequest::default()).await.unwrap_err();
    assert_eq!(fields(&status), ["customer_id", "items"]);
    assert_eq!(waybill.subjects().await.len(), 0, "nothing of it is stored");
}

#[tokio::test]
async fn an_order_has_one_currency_and_a_total_that_fits() {
    let waybill = gateway_only().await;
    let priced = |unit_price| OrderItem { unit_price, ..item("widget", 2) };
    let mixed = vec![priced(price("EUR", 1)), priced(price("USD", 1))];
    let status = waybill.place(order_of("customer", "", mixed)).await.unwrap_err();
    assert_eq!(fields(&status), ["items[1].unit_price.currency_code"]);

    let half = i64::MAX / 2;
    let too_much = vec![priced(price("EUR", half)), priced(price("EUR", 1))];
    let status = waybill.place(order_of("customer", "", too_much)).await.unwrap_err();
    assert_eq!(fields(&status), ["items"]);
    let just_enough = vec![priced(price("EUR", half))];
    let order = waybill.place(order_of("customer", "", just_enough)).await.unwrap();
    assert_eq!(order.total, price("EUR", i64::MAX - 1));
}

#[tokio::test]
async fn an_order_as_large_as_the_rules_allow_is_accepted() {
    let waybill = gateway_only().await;
    let items = (0..100).map(|i| item(&format!("{:s<64}", format!("sku-{i}-")), 1_000_000)).collect();
    let request = order_of(&"c".repeat(128), &"r".repeat(128), items);
    let order = waybill.place(request).await.unwrap();
    assert_eq!(order.items.len(), 100);
}

#[tokio::test]
async fn an_order_beyond_60_kibibytes_is_refused_with_what_to_shorten() {
    let waybill = gateway_only().await;
    let mut request = order_of("customer", "", vec![item("widget", 1); 100]);
    for item in &mut request.items {
        item.metadata = [("k".to_owned(), "v".repeat(500)), ("l".to_owned(), "v".repeat(110))].into();
    }
    let status = waybill.place(request.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert_eq!(fields(&status), ["items"]);
    assert!(status.message().contains("61440"), "{}", status.message());
    request.items.truncate(90);
    waybill.place(request).await.unwrap();
}

#[tokio::test]
async fn a_request_beyond_64_kibibytes_is_refused_with_its_size() {
    let waybill = gateway_only().await;
    let request = order_of(&"c".repeat(64 * 1024), "", vec![item("widget", 1)]);
    let status = waybill.place(request).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    assert!(status.message().contains("65536"), "{}", status.message());
    waybill.place(order_of("customer", "", vec![item("widget", 1)])).await.unwrap();
}

#[tokio::test]
async fn a_call_that_sends_messages_without_end_is_refused() {
    let waybill = gateway_only().await;
    let mut client = Grpc::new(waybill.channel());
    client.ready().await.unwrap();
    let endless = Request::new(stream::repeat(ListOrdersRequest::default()));
    let path = PathAndQuery::from_static("/orders.v1.OrderService/ListOrders");
    let codec = ProstCodec::<ListOrdersRequest, ListOrdersResponse>::default();
    let answer = timeout(PATIENCE, client.client_streaming(endless, path, codec)).await.unwrap();
    let status = answer.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    assert!(status.message().contains("131072"), "{}", status.message());
}

#[tokio::test]
async fn an_order_id_that_is_none_is_refused_and_an_unknown_one_not_found() {
    let waybill = gateway_only().await;
    for malformed in ["", "1", "ORDER.*", "aaaaaaaaaaaaaaaa-", "AAAAAAAAAAAAAAAA-aaaaaaaaaaaaaaaaaaaaaaaaaa"]
    {
        assert_eq!(fields(&waybill.get(malformed).await.unwrap_err()), ["order_id"], "{malformed}");
    }
    let unknown = "aaaaaaaaaaaaaaaa-aaaaaaaaaaaaaaaaaaaaaaaaaa";
    let status = waybill.get(unknown).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let resource = status.get_details_resource_info().unwrap();
    assert_eq!(
        (resource.resource_type.as_str(), resource.resource_name.as_str()),
        ("orders.v1.Order", unknown)
    );
}
