//! The whole way of an order: from the CreateOrder call to its last status, through the gateway and the three
//! processors. The end is taken where the stream republishes `fulfilled`.
//!
//! `cargo bench --workspace --bench order_path`

#![allow(
    clippy::print_stdout,
    clippy::expect_used,
    missing_docs,
    reason = "a benchmark prints what it measured, or fails"
)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use harness::measure::{closed_loop, histogram, spread};
use harness::{Deployment, Options, item, order_of};
use proto::orders::v1::OrderItem;
use proto::orders::v1::order_service_client::OrderServiceClient;
use tokio::select;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};
use tonic::transport::Channel;

const ROUNDS: usize = 5;
const IN_FLIGHT: usize = 64;
const TURN: Duration = Duration::from_secs(5);
const PACED_RATE: u32 = 200;
const PACED_ORDERS: u32 = 2000;
/// Longest wait for the next order to end.
const SILENCE_MAX: Duration = Duration::from_secs(30);
const STOCK: u64 = 100_000_000;
/// All calls come from one address, which may make no more than 10,000 in a second by default.
const UNLIMITED: [(&str, &str); 2] = [("RATE_LIMIT", "1000000"), ("RATE_BURST", "1000000")];

#[tokio::main]
async fn main() {
    at_a_pace().await;
    let both = || vec![item("widget", 1), item("gadget", 1)];
    at_full_load("default settings", options(&[]), 1, both).await;
    let wide = [("WORKER_POOL_SIZE", "128")];
    at_full_load("WORKER_POOL_SIZE=128", options(&wide), 1, both).await;
    let remote = Options { payment_sandbox: true, ..options(&wide) };
    at_full_load("WORKER_POOL_SIZE=128, payments over gRPC", remote, 1, both).await;
    let one = || vec![item("widget", 1)];
    at_full_load("WORKER_POOL_SIZE=128, one SKU, two inventories", options(&wide), 2, one).await;
}

fn options(processors: &[(&'static str, &str)]) -> Options {
    let settings =
        |of: &[(&'static str, &str)]| of.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    let (gateway, processors) = (settings(&UNLIMITED), settings(processors));
    Options { stock: vec![("widget", STOCK), ("gadget", STOCK)], gateway, processors, ..Options::default() }
}

async fn at_full_load(settings: &str, options: Options, inventories: usize, items: fn() -> Vec<OrderItem>) {
    let mut waybill = Deployment::start_with(options).await;
    for _ in 1..inventories {
        waybill.start_processor("inventory");
    }
    let client = waybill.client().await;
    println!(
        "\nFrom CreateOrder to FULFILLED, {IN_FLIGHT} calls in flight for {TURN:?}, until the last order has ended\n({settings}):"
    );
    let (mut rates, mut placed) = (Vec::new(), 0);
    for round in 0..=ROUNDS {
        let mut fulfilled = fulfilled(&waybill).await;
        let (all, mut expected) = watch::channel(u64::MAX);
        let start = Instant::now();
        let ended = tokio::spawn(async move {
            let mut count = 0;
            while count < *expected.borrow_and_update() {
                select! {
                    message = timeout(SILENCE_MAX, fulfilled.next()) => {
                        message.expect("every order ends FULFILLED").expect("connection");
                        count += 1;
                    }
                    _ = expected.changed() => {}
                }
            }
            start.elapsed()
        });
        let client = client.clone();
        let created = closed_loop(IN_FLIGHT, TURN, move |_, call| {
            let mut client = client.clone();
            async move {
                let request = order_of(&format!("customer-{}", call % 1000), "", items());
                client.create_order(request).await.expect("order accepted");
            }
        })
        .await;
        let orders = created.latencies_us.len();
        placed += orders;
        all.send_replace(orders);
        let elapsed_s = ended.await.expect("subscriber").as_secs_f64();
        if round == 0 {
            continue; // warm-up
        }
        let (rate, accepted) = (orders as f64 / elapsed_s, created.rate());
        println!("  {orders} orders in {elapsed_s:.2} s: {rate:.0} orders/s (accepted at {accepted:.0}/s)");
        rates.push(rate);
    }
    assert_eq!(waybill.available("widget").await, STOCK - placed, "one unit for each order");
    let (median, lowest, highest) = spread(&rates);
    println!("  median {median:.0} [{lowest:.0}-{highest:.0}] orders/s");
}

async fn at_a_pace() {
    let waybill = Deployment::start_with(options(&[])).await;
    let client = waybill.client().await;
    let percentiles = [50.0, 99.0, 100.0];
    let mut rounds = vec![Vec::new(); percentiles.len()];
    for round in 0..=ROUNDS {
        let latencies_us = paced(&waybill, &client, round).await;
        if round == 0 {
            continue; // warm-up
        }
        for (values, percentile) in rounds.iter_mut().zip(percentiles) {
            values.push(latencies_us.value_at_percentile(percentile) as f64 / 1e3);
        }
    }
    println!(
        "\nThe whole way at {PACED_RATE} orders/s, {ROUNDS} turns of {PACED_ORDERS} orders: median [lowest-highest]"
    );
    for (values, name) in rounds.iter().zip(["p50", "p99", "max"]) {
        let (median, lowest, highest) = spread(values);
        println!("  {name} {median:.2} [{lowest:.2}-{highest:.2}] ms");
    }
}

async fn paced(
    waybill: &Deployment,
    client: &OrderServiceClient<Channel>,
    round: usize,
) -> hdrhistogram::Histogram<u64> {
    let mut fulfilled = fulfilled(waybill).await;
    let called: Arc<Mutex<HashMap<String, Instant>>> = Arc::default();
    let placing = tokio::spawn({
        let (client, called) = (client.clone(), called.clone());
        async move {
            let mut ticks = interval(Duration::from_secs(1) / PACED_RATE);
            let mut calls = JoinSet::new();
            for n in 0..PACED_ORDERS {
                ticks.tick().await;
                let (mut client, called) = (client.clone(), called.clone());
                calls.spawn(async move {
                    let request_id = format!("paced-{round}-{n}");
                    let request = order_of(&format!("customer-{n}"), &request_id, vec![item("widget", 1)]);
                    let start = Instant::now();
                    let order =
                        client.create_order(request).await.expect("order accepted").into_inner().order;
                    called.lock().expect("lock").insert(order.expect("order").order_id, start);
                });
            }
            calls.join_all().await;
        }
    });
    let mut ended = HashMap::new();
    while ended.len() < PACED_ORDERS as usize {
        let message = timeout(SILENCE_MAX, fulfilled.next()).await.expect("orders end").expect("connection");
        let subject = message.subject.trim_start_matches("live.");
        let id = backbone::log::subjects::parse(subject).expect("subject").id;
        ended.insert(id.to_string(), Instant::now());
    }
    placing.await.expect("client");
    let called = called.lock().expect("lock");
    let mut latencies_us = histogram();
    for (id, end) in &ended {
        latencies_us.saturating_record((*end - called[id]).as_micros() as u64);
    }
    latencies_us
}

/// Every `fulfilled` event from now on.
async fn fulfilled(waybill: &Deployment) -> async_nats::Subscriber {
    let client = waybill.jetstream().await.client();
    let subscriber = client.subscribe("live.ORDER.*.*.*.fulfilled.*").await.expect("subscription");
    client.flush().await.expect("broker");
    subscriber
}
