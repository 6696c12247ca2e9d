//! A watcher that reads slowly, or not at all, loses nothing, costs the gateway little, and slows nobody.

use std::collections::HashMap;

use backbone::log::subjects::EventKind;
use harness::measure::resident_kib;
use harness::{Deployment, Load, PATIENCE, item, order_of};
use proto::orders::v1::order_service_client::OrderServiceClient;
use proto::orders::v1::{OrderEvent, WatchOrdersRequest, WatchOrdersResponse};
use tokio::time::timeout;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::accounting::WHOLE_WAY;
use crate::events::{after, kind, revisions};

const ORDERS: usize = 1_000;
const EVENTS: usize = ORDERS * WHOLE_WAY.len();
/// What a watcher is sent that it has not read.
const WINDOW_BYTES: u32 = 64 * 1024;
/// Watchers that stop reading, each of whom all of the events would be sent to.
const SLOW: usize = 100;
/// What they may cost. The events that they have not read come to five times as much.
const GROWTH_MAX_KIB: f64 = 96.0 * 1024.0;

/// A watch on a connection of its own, so that what is not read there holds back no other.
async fn watch(waybill: &Deployment) -> Streaming<WatchOrdersResponse> {
    let endpoint = Channel::from_shared(format!("http://{}", waybill.gateway.grpc_addr)).unwrap();
    let endpoint =
        endpoint.initial_stream_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
    let request = WatchOrdersRequest { customer_id: "ada".to_owned(), after_revision: 0 };
    OrderServiceClient::new(endpoint.connect_lazy()).watch_orders(request).await.unwrap().into_inner()
}

async fn next(watcher: &mut Streaming<WatchOrdersResponse>) -> OrderEvent {
    let message = timeout(PATIENCE, watcher.message()).await.expect("an event in time").unwrap();
    message.expect("a stream that goes on").event.unwrap()
}

/// All the events of all the orders, each once and in the log's order.
fn assert_all(events: &[OrderEvent]) {
    assert!(revisions(events).is_sorted_by(|one, next| one < next));
    let mut ways: HashMap<&str, Vec<EventKind>> = HashMap::new();
    for event in events {
        ways.entry(&after(event).order_id).or_default().push(kind(event));
    }
    assert_eq!(ways.len(), ORDERS);
    assert!(ways.values().all(|way| way == &WHOLE_WAY));
}

#[tokio::test]
async fn watchers_that_stop_reading_are_no_burden_and_miss_nothing() {
    let waybill = Deployment::start().await;
    let gateway = waybill.gateway.process.pid();
    let mut slow = Vec::new();
    for _ in 0..SLOW {
        slow.push(watch(&waybill).await);
    }
    let mut reader = watch(&waybill).await;
    let before_kib = resident_kib(gateway);

    // An order large enough that few events fit into what a connection holds.
    let items = vec![item("widget", 1); 20];
    let requests = (0..ORDERS).map(|i| order_of("ada", &format!("r-{i}"), items.clone()));
    let load = Load::start(waybill.channel(), requests.collect());
    let mut events = Vec::new();
    let mut highest_kib = before_kib;
    // Nobody but the slow ones reads: they have begun, and then stand still.
    while events.len() < EVENTS {
        events.push(next(&mut reader).await);
        highest_kib = highest_kib.max(resident_kib(gateway));
    }
    load.all().await;
    assert_all(&events);
    let growth_kib = highest_kib - before_kib;
    eprintln!("{SLOW} slow watchers of {EVENTS} events: {before_kib} KiB before, {growth_kib} KiB more");
    assert!(growth_kib < GROWTH_MAX_KIB, "{growth_kib} KiB more than before");

    // Two of them, of which neither knows of the other.
    for watcher in &mut slow[..2] {
        let mut late = Vec::new();
        while late.len() < EVENTS {
            late.push(next(watcher).await);
        }
        assert_eq!(late, events);
    }
}
