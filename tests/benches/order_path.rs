//! The whole way of an order: from the CreateOrder call to its last status, through the gateway and the three
//! processors with their default settings. The end is taken where the stream republishes `fulfilled`.
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
use harness::measure::{Measured, closed_loop, histogram, spread};
use harness::{Deployment, Options, item, order_of};
use proto::orders::v1::order_service_client::OrderServiceClient;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};
use tonic::transport::Channel;

const ROUNDS: usize = 5;
const IN_FLIGHT: usize = 64;
const TURN: Duration = Duration::from_secs(5);
const PACED_RATE: u32 = 200;
const PACED_ORDERS: u32 = 4000;
/// Longest wait for the next order to end.
const SILENCE_MAX: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() {
    let options = Options { processors: Vec::new(), ..Options::default() };
    let waybill = Deployment::start_with(options).await;
    let client = waybill.client().await;
    at_full_load(&waybill, client.clone()).await;
    at_a_pace(&waybill, client).await;
}

async fn at_full_load(waybill: &Deployment, client: OrderServiceClient<Channel>) {
    println!(
        "\nFrom CreateOrder to FULFILLED, {IN_FLIGHT} calls in flight for {TURN:?}, until the last order has ended:"
    );
    let mut rates = Vec::new();
    for round in 0..=ROUNDS {
        let mut fulfilled = fulfilled(waybill).await;
        let start = Instant::now();
        let ended = tokio::spawn(async move {
            let mut times = Vec::new();
            while let Ok(Some(_)) = timeout(SILENCE_MAX.min(TURN), fulfilled.next()).await {
                times.push(start.elapsed());
            }
            times
        });
        let client = client.clone();
        let created = closed_loop(IN_FLIGHT, TURN, move |_, call| {
            let mut client = client.clone();
            async move {
                let request = order_of(
                    &format!("customer-{}", call % 1000),
                    "",
                    vec![item("widget", 1), item("gadget", 1)],
                );
                client.create_order(request).await.expect("order accepted");
            }
        })
        .await;
        let times = ended.await.expect("subscriber");
        assert_eq!(times.len() as u64, created.latencies_us.len(), "every order ends FULFILLED");
        let last = times.last().expect("orders").as_secs_f64();
        let rate = times.len() as f64 / last;
        if round == 0 {
            continue; // warm-up
        }
        println!(
            "  {} orders in {last:.2} s: {rate:.0} orders/s (accepted at {:.0}/s)",
            times.len(),
            created.rate()
        );
        rates.push(rate);
    }
    let (median, lowest, highest) = spread(&rates);
    println!("  median {median:.0} [{lowest:.0}-{highest:.0}] orders/s");
}

async fn at_a_pace(waybill: &Deployment, client: OrderServiceClient<Channel>) {
    let mut fulfilled = fulfilled(waybill).await;
    let called: Arc<Mutex<HashMap<String, Instant>>> = Arc::default();
    let placing = tokio::spawn({
        let called = called.clone();
        async move {
            let mut ticks = interval(Duration::from_secs(1) / PACED_RATE);
            let mut calls = JoinSet::new();
            for n in 0..PACED_ORDERS {
                ticks.tick().await;
                let (mut client, called) = (client.clone(), called.clone());
                calls.spawn(async move {
                    let request =
                        order_of(&format!("customer-{n}"), &format!("paced-{n}"), vec![item("widget", 1)]);
                    let start = Instant::now();
                    let order =
                        client.create_order(request).await.expect("order accepted").into_inner().order;
                    called.lock().expect("lock").insert(order.expect("order").order_id, start);
                });
            }
            calls.join_all().await;
        }
    });
    let start = Instant::now();
    let mut ended = HashMap::new();
    while ended.len() < PACED_ORDERS as usize {
        let message = timeout(SILENCE_MAX, fulfilled.next()).await.expect("orders end").expect("connection");
        let (_, id) =
            backbone::subjects::parse(message.subject.trim_start_matches("live.")).expect("subject");
        ended.insert(id.to_string(), Instant::now());
    }
    placing.await.expect("client");
    let called = called.lock().expect("lock");
    let mut latencies_us = histogram();
    for (id, end) in &ended {
        latencies_us.saturating_record((*end - called[id]).as_micros() as u64);
    }
    let whole = Measured { elapsed: start.elapsed(), latencies_us };
    println!(
        "\nThe whole way at {PACED_RATE} orders/s, {PACED_ORDERS} orders: p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
        whole.percentile_ms(50.0),
        whole.percentile_ms(99.0),
        whole.percentile_ms(100.0)
    );
}

/// Every `fulfilled` event from now on.
async fn fulfilled(waybill: &Deployment) -> async_nats::Subscriber {
    let client = waybill.jetstream().await.client();
    let subscriber = client.subscribe("live.ORDER.fulfilled.>").await.expect("subscription");
    client.flush().await.expect("broker");
    subscriber
}
