//! What it costs to prove that an order is not there. A measurement, not a test: run it by
//! `cargo test --release -p waybill-tests --test scenarios what_a_barrier_costs -- --ignored --nocapture`, with
//! PREVIOUS_BINARIES naming the folder of programs to compare with.

use std::path::PathBuf;
use std::time::Duration;

use backbone::broker::streams::ORDERS;
use backbone::log::ids::{CustomerKey, OrderId, OrderKey};
use futures::future::join_all;
use harness::{Cluster, Deployment, Load, Options, SERVERS, item, order_of};
use proto::orders::v1::order_service_client::OrderServiceClient;
use proto::orders::v1::{GetOrderRequest, ListOrdersRequest};
use tokio::time::Instant;
use tonic::Code;
use tonic::transport::Channel;

/// How long each figure is measured.
const MEASURED: Duration = Duration::from_secs(3);
const CALLERS: usize = 64;

type Orders = OrderServiceClient<Channel>;

#[tokio::test]
#[ignore = "a measurement"]
async fn what_a_barrier_costs() {
    let previous = std::env::var_os("PREVIOUS_BINARIES").map(PathBuf::from);
    for programs in previous.into_iter().map(Some).chain([None]) {
        let name = if programs.is_some() { "before" } else { "now" };
        // Without steps, which would need the CPU too.
        let options = Options { programs, replicas: 0, servers: SERVERS, ..Options::default() };
        let mut waybill = Deployment::start_without_broker(options).await;
        let cluster = Cluster::start(&mut waybill);
        waybill.ready().await;
        cluster.has_copies(&waybill, ORDERS).await;
        let requests = (0..50).map(|n| order_of("customer", &format!("r-{n}"), vec![item("widget", 1)]));
        let orders = Load::start(waybill.channel(), requests.collect()).all().await;
        let there = orders[0].order_id.clone();
        let channel = waybill.channel();

        let missing = async |callers| rate(&channel, callers, |orders, _| not_found(orders)).await;
        let found = rate(&channel, CALLERS, |orders, _| get(orders, there.clone())).await;
        let (one, many) = (missing(1).await, missing(CALLERS).await);
        let listed = rate(&channel, CALLERS, |orders, _| list(orders)).await;
        let alone = rate(&channel, CALLERS, |orders, n| create(orders, "alone", n)).await;
        let (beside, _) =
            tokio::join!(rate(&channel, CALLERS, |orders, n| create(orders, "beside", n)), missing(CALLERS));
        eprintln!(
            "{name}: GetOrder found {found:.0}/s, NOT_FOUND {one:.0}/s by one caller, {many:.0}/s by {CALLERS}; \
             ListOrders {listed:.0}/s; CreateOrder {alone:.0}/s, {beside:.0}/s beside {CALLERS} callers of what is not \
             there"
        );
    }
}

/// Calls a second.
async fn rate<F: Future<Output = ()>>(
    channel: &Channel,
    callers: usize,
    call: impl Fn(Orders, String) -> F,
) -> f64 {
    let begun = Instant::now();
    let calls = (0..callers).map(async |caller| {
        let mut calls = 0;
        while begun.elapsed() < MEASURED {
            call(OrderServiceClient::new(channel.clone()), format!("{caller}-{calls}")).await;
            calls += 1;
        }
        calls
    });
    let calls: u32 = join_all(calls).await.into_iter().sum();
    f64::from(calls) / begun.elapsed().as_secs_f64()
}

async fn get(mut orders: Orders, order_id: String) {
    orders.get_order(GetOrderRequest { order_id }).await.unwrap();
}

async fn not_found(mut orders: Orders) {
    let id = OrderId { customer: CustomerKey::of("", "customer"), order: OrderKey::unique() };
    let answer = orders.get_order(GetOrderRequest { order_id: id.to_string() }).await;
    assert_eq!(answer.unwrap_err().code(), Code::NotFound);
}

async fn list(mut orders: Orders) {
    let request = ListOrdersRequest {
        customer_id: "customer".to_owned(),
        page_size: 10,
        page_token: String::new(),
        statuses: Vec::new(),
    };
    // A page is short when time is.
    assert!(!orders.list_orders(request).await.unwrap().into_inner().orders.is_empty());
}

async fn create(mut orders: Orders, kind: &str, n: String) {
    let request = order_of(&format!("customer-{n}"), &format!("{kind}-{n}"), vec![item("widget", 1)]);
    orders.create_order(request).await.unwrap();
}
