//! A program that is told to stop finishes what it has begun, and leaves the rest to others.

use std::collections::HashSet;
use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use backbone::log::subjects::EventKind;
use futures::{StreamExt, stream};
use harness::{Deployment, Load, Options, Process, eventually, item, order_of};
use nix::sys::signal::Signal;
use proto::orders::v1::order_service_client::OrderServiceClient;
use proto::orders::v1::{GetOrderRequest, Order};
use proto::payments::v1::Fault;
use serde_json::Value;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_types::StatusExt;

use crate::accounting::{each_is_carried_out_once, widgets};
use crate::events::kind;

const ORDERS: usize = 1000;
const MIDDLE: usize = 300;
/// Orders that a processor works on at the same time.
const WORKERS: usize = 10;

/// A drain timeout that no test waits for: who uses it up fails.
fn patient(replicas: usize) -> Options {
    let drain = ("DRAIN_TIMEOUT", "1h".to_owned());
    let workers = ("WORKER_POOL_SIZE", WORKERS.to_string());
    let processors = vec![("ACK_WAIT", "2s".to_owned()), workers, drain.clone()];
    Options { replicas, gateway: vec![drain], processors, ..Options::default() }
}

#[tokio::test]
async fn a_gateway_drains_under_load_and_sends_its_watchers_away() {
    let mut waybill = Deployment::start_with(patient(1)).await;
    waybill.kill_processors("fulfilment");
    let mut load = Load::start(waybill.channel(), widgets(ORDERS));
    load.acknowledged(MIDDLE).await;

    // Orders that do not end by themselves at present.
    let mut watchers = Vec::new();
    for order_id in waybill.histories().await.into_keys().take(10) {
        let mut watcher = waybill.watch(&order_id, 0).await.unwrap();
        kind(&watcher.event().await);
        watchers.push(watcher);
    }
    let status = waybill.gateway.process.stop().await;
    assert!(status.success(), "{status}");
    for mut watcher in watchers {
        let status = loop {
            match watcher.next().await {
                Ok(event) => assert!(event.is_some(), "ended as if the order was finished"),
                Err(status) => break status,
            }
        };
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert_eq!(status.get_details_error_info().unwrap().reason, "DRAINING");
        assert!(status.get_details_retry_info().is_some());
    }

    waybill.restart_gateway().await;
    waybill.start_processor("fulfilment");
    each_is_carried_out_once(&waybill, &load.all().await).await;
}

#[tokio::test]
async fn a_gateway_stops_on_sigint_too() {
    let mut waybill = Deployment::start_with(patient(0)).await;
    waybill.gateway.process.signal(Signal::SIGINT);
    assert!(waybill.gateway.process.ended().await.success());
}

#[tokio::test]
async fn processors_that_stop_under_load_leave_the_work_to_their_replicas() {
    let mut waybill = Deployment::start_with(patient(2)).await;
    let mut load = Load::start(waybill.channel(), widgets(ORDERS));
    load.acknowledged(MIDDLE).await;
    for step in ["inventory", "payment", "fulfilment"] {
        let status = waybill.processor(step).stop().await;
        assert!(status.success(), "{step}: {status}");
    }
    each_is_carried_out_once(&waybill, &load.all().await).await;
}

#[tokio::test]
async fn a_processor_that_stops_gives_back_no_more_than_it_had_in_hand() {
    let mut waybill = Deployment::start_with(patient(1)).await;
    // One that has not begun yet has nothing to give back.
    waybill.consumer("inventory").await;
    let mut load = Load::start(waybill.channel(), widgets(ORDERS));
    load.acknowledged(MIDDLE).await;
    let status = waybill.processor("inventory").stop().await;
    assert!(status.success(), "{status}");
    let in_hand = waybill.consumer("inventory").await.cached_info().num_ack_pending;
    assert!(in_hand <= WORKERS, "{in_hand} orders taken and given back");

    waybill.start_processor("inventory");
    each_is_carried_out_once(&waybill, &load.all().await).await;
}

#[tokio::test]
async fn what_is_not_finished_in_time_is_given_back_and_done_by_a_replica() {
    let processors = [
        // Whatever is not given back stays away for longer than any test waits.
        ("ACK_WAIT", "1h"),
        ("ATTEMPT_TIMEOUT", "1h"),
        ("PAYMENT_TIMEOUT", "1h"),
        ("DRAIN_TIMEOUT", "200ms"),
    ];
    let processors = processors.map(|(name, value)| (name, value.to_owned())).to_vec();
    let mut waybill =
        Deployment::start_with(Options { payment_sandbox: true, processors, ..Options::default() }).await;
    waybill.sandbox().fail("", Fault::LostReply, 0).await;
    let orders = Load::start(waybill.channel(), widgets(WORKERS)).all().await;
    eventually("calls without a reply", async || {
        (waybill.sandbox().ledger("").await.capture_calls == WORKERS as i64).then_some(())
    })
    .await;
    waybill.sandbox().recover().await;
    waybill.start_processor("payment");
    let first = &mut waybill.processors.get_mut("payment").unwrap()[0];
    let status = first.stop().await;
    assert!(status.success(), "{status}");
    let unfinished = |fields: &Value| fields["unfinished"].as_u64();
    assert_eq!(first.logged("what was not finished", unfinished).await, WORKERS as u64);

    each_is_carried_out_once(&waybill, &orders).await;
    let ledger = waybill.sandbox().ledger("").await;
    assert_eq!((ledger.captures, ledger.refunds), (WORKERS as i64, 0));
    assert_eq!(ledger.capture_calls, 2 * WORKERS as i64, "once more each, by the replica");
}

#[tokio::test]
async fn a_rolling_restart_of_all_processors_redelivers_nothing() {
    const STEPS: [(&str, &[EventKind]); 3] = [
        ("inventory", &[EventKind::Created]),
        ("payment", &[EventKind::Reserved]),
        ("fulfilment", &[EventKind::Paid]),
    ];
    let mut options = patient(2);
    // Messages that are redelivered only after ACK_WAIT would fail the test: it does not wait that long.
    options.processors.push(("ACK_WAIT", "1h".to_owned()));
    // At this level a step logs each message that it asks the broker to redeliver.
    options.processors.push(("RUST_LOG", "info,processor=debug".to_owned()));
    let mut waybill = Deployment::start_with(options).await;
    let mut load = Load::start(waybill.channel(), widgets(3 * ORDERS));
    load.acknowledged(MIDDLE).await;
    let (mut in_flight, mut outputs) = (0, Vec::new());
    for (step, _) in STEPS {
        for _ in 0..2 {
            in_flight += waybill.consumer(step).await.cached_info().num_ack_pending;
            // An orchestrator starts the replacement first, too.
            waybill.start_processor(step);
            let mut leaving = waybill.processors.get_mut(step).unwrap().remove(0);
            let before = leaving.output().len();
            let status = leaving.stop().await;
            assert!(status.success(), "{step}: {status}");
            let output = leaving.output();
            let last_lines = output[before..].to_owned();
            assert_eq!(
                redelivery_requests(&last_lines).count(),
                0,
                "{step} gave back messages: {last_lines}"
            );
            outputs.push(output);
        }
    }
    assert!(load.count() < 3 * ORDERS, "restarted too late to matter");
    let orders = load.all().await;
    each_is_carried_out_once(&waybill, &orders).await;
    let mut redelivered = 0;
    for (step, events) in STEPS {
        waybill.idle(step).await;
        let histories = waybill.histories().await.into_values().flatten();
        let messages = histories.filter(|kind| events.contains(kind)).count() as u64;
        redelivered += waybill.consumer(step).await.cached_info().delivered.consumer_sequence - messages;
    }
    assert!(in_flight > 0, "no message to give back");
    // Replicas of inventory conflict over one SKU, and a stalled machine makes a step postpone messages: both ask for a
    // redelivery. A restart must add none.
    outputs.extend(waybill.processors.values().flatten().map(Process::output));
    let requested: HashSet<_> = outputs.iter().flat_map(|output| redelivery_requests(output)).collect();
    eprintln!("{redelivered} messages redelivered, {} on request, {in_flight} in flight", requested.len());
    assert!(
        redelivered <= requested.len() as u64,
        "{redelivered} redelivered, requested were {requested:#?}"
    );
}

/// The log lines by which a step says that it has asked the broker to redeliver a message.
fn redelivery_requests(output: &str) -> impl Iterator<Item = &str> {
    output.lines().filter(|line| line.contains("redelivery requested"))
}

#[tokio::test]
async fn processors_that_stop_on_sigint_leave_the_work_to_the_next_run() {
    let mut waybill = Deployment::start_with(patient(1)).await;
    let mut load = Load::start(waybill.channel(), widgets(ORDERS));
    load.acknowledged(MIDDLE).await;
    for step in ["inventory", "payment", "fulfilment"] {
        let process = waybill.processor(step);
        process.signal(Signal::SIGINT);
        let status = process.ended().await;
        assert!(status.success(), "{step}: {status}");
    }
    let orders = load.all().await;
    for step in ["inventory", "payment", "fulfilment"] {
        waybill.start_processor(step);
    }
    each_is_carried_out_once(&waybill, &orders).await;
}

#[tokio::test]
async fn a_gateway_that_leaves_answers_until_everybody_knows() {
    let mut options = patient(0);
    options.gateway.push(("DRAIN_DELAY", "3s".to_owned()));
    let mut waybill = Deployment::start_with(options).await;
    waybill.gateway.process.signal(Signal::SIGTERM);
    eventually("not ready", async || (waybill.http("/readyz").await.0 == 503).then_some(())).await;
    assert_eq!(waybill.http("/livez").await.0, 200);
    assert_eq!(waybill.gateway.health("").await, Some(ServingStatus::NotServing));
    // On a connection of its own.
    waybill.place(order_of("ada", "r-1", vec![item("widget", 1)])).await.unwrap();
    assert!(waybill.gateway.process.ended().await.success());
}

#[tokio::test]
async fn a_gateway_stops_though_its_broker_stands_still() {
    // More than the sockets between them hold.
    const ORDERS: usize = 1_500;
    let gateway = vec![("REQUEST_TIMEOUT", "1s".to_owned()), ("DRAIN_TIMEOUT", "2s".to_owned())];
    let mut waybill = Deployment::start_with(Options { replicas: 0, gateway, ..Options::default() }).await;
    let client = waybill.client().await;
    waybill.broker.pause();
    let items: Vec<_> = (0..100).map(|i| item(&format!("{}-{i}", "s".repeat(58)), 1)).collect();
    let calls = stream::iter(0..ORDERS).map(|i| {
        let (mut client, items) = (client.clone(), items.clone());
        async move { client.create_order(order_of(&format!("customer-{i}"), "", items)).await.is_err() }
    });
    let refused: Vec<bool> = calls.buffer_unordered(ORDERS).collect().await;
    assert!(refused.into_iter().all(|refused| refused), "stored without a broker");
    assert!(waybill.gateway.process.stop().await.success());
    waybill.broker.resume();
}

#[tokio::test]
async fn a_rolling_restart_fails_no_call_of_a_client_that_repeats() {
    const CALLS: usize = 10_000;
    let unlimited = "1000000".to_owned();
    let gateway = vec![
        ("DRAIN_DELAY", "500ms".to_owned()),
        ("RATE_LIMIT", unlimited.clone()),
        ("RATE_BURST", unlimited),
    ];
    let mut waybill = Deployment::start_with(Options { gateway, ..Options::default() }).await;
    let mut second = waybill.another_gateway().await;
    let addresses = [waybill.gateway.grpc_addr.clone(), second.grpc_addr.clone()];
    let done = Arc::new(AtomicUsize::new(0));
    let calls = mixed_calls(addresses, CALLS, done.clone());
    let reached = async |count: usize| {
        eventually("calls", async || (done.load(Ordering::Relaxed) >= count).then_some(())).await;
    };
    let restarts = async {
        for round in 0..2 {
            reached(CALLS / 10 + round * CALLS / 3).await;
            waybill.gateway.process.stop().await;
            waybill.restart_gateway().await;
            second.process.stop().await;
            let addr = second.grpc_addr.clone();
            second = waybill.gateway_at("gateway-2", &addr).await;
        }
        assert!(done.load(Ordering::Relaxed) < CALLS, "the calls were over before the restarts");
    };
    let (orders, ()) = tokio::join!(calls, restarts);
    let once: HashSet<_> = orders.iter().map(|order| &order.order_id).collect();
    assert_eq!(once.len(), CALLS / 2, "one order for each request_id");
    assert_eq!(waybill.histories().await.len(), CALLS / 2);
}

/// Creates and reads orders through two gateways, by clients that repeat what is UNAVAILABLE at the other one.
async fn mixed_calls(addresses: [String; 2], calls: usize, done: Arc<AtomicUsize>) -> Vec<Order> {
    let clients = addresses.map(|addr| {
        OrderServiceClient::new(Channel::from_shared(format!("http://{addr}")).unwrap().connect_lazy())
    });
    let pairs = stream::iter(0..calls / 2).map(|i| {
        let (clients, done) = (clients.clone(), done.clone());
        async move {
            let request =
                order_of(&format!("customer-{}", i % 50), &format!("r-{i}"), vec![item("widget", 1)]);
            let created =
                repeat(&clients, async |mut client| client.create_order(request.clone()).await).await;
            let order = created.order.unwrap();
            done.fetch_add(1, Ordering::Relaxed);
            let request = GetOrderRequest { order_id: order.order_id.clone() };
            let read = repeat(&clients, async |mut client| client.get_order(request.clone()).await).await;
            assert_eq!(read.order.unwrap().order_id, order.order_id);
            done.fetch_add(1, Ordering::Relaxed);
            order
        }
    });
    pairs.buffer_unordered(16).collect().await
}

/// One call, which may be repeated five times, as a gRPC service config would have it.
async fn repeat<T>(
    clients: &[OrderServiceClient<Channel>; 2],
    call: impl AsyncFn(OrderServiceClient<Channel>) -> Result<Response<T>, Status>,
) -> T {
    const ATTEMPTS: usize = 5;
    let mut last = None;
    for attempt in 0..ATTEMPTS {
        match call(clients[attempt % 2].clone()).await {
            Ok(response) => return response.into_inner(),
            Err(status) if status.code() == Code::Unavailable || status.source().is_some() => {
                last = Some(status);
                tokio::time::sleep(Duration::from_millis(20 << attempt)).await;
            }
            Err(status) => panic!("failed: {status:?}"),
        }
    }
    panic!("failed {ATTEMPTS} times: {last:?}");
}
