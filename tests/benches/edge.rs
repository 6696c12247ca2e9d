//! Reading, listing, watching and refusing at the gateway.
//!
//! `cargo bench --workspace --bench edge`

#![allow(
    clippy::print_stdout,
    clippy::expect_used,
    missing_docs,
    reason = "a benchmark prints what it measured, or fails"
)]

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backbone::broker::streams::ORDERS;
use backbone::log::ids::OrderId;
use backbone::log::subjects;
use futures::{StreamExt, stream};
use harness::measure::{Measured, closed_loop, cpu_time, histogram, resident_kib, spread};
use harness::{Deployment, Options, item, order_of};
use proto::orders::v1::order_service_client::OrderServiceClient;
use proto::orders::v1::{
    CancelOrderRequest, GetOrderRequest, ListOrdersRequest, OrderStatus, WatchOrderRequest,
    WatchOrderResponse,
};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const ROUNDS: usize = 7;
const TURN: Duration = Duration::from_secs(2);
const LISTED: i32 = 100;
const IDLE_WATCHES: usize = 20_000;
const UPDATED_WATCHES: usize = 1_000;
/// Below what the gateway grants to one connection.
const WATCHES_PER_CONNECTION: usize = 1_000;
const CALLS_AT_ONCE: usize = 32;
const PERMITTED_PER_SECOND: u32 = 1_000;
const OVERLOAD: u32 = 10;
const REFUSALS_TURN: Duration = Duration::from_secs(4);
/// Where the process of a [`Crowd`] finds its gateway.
const CROWD_TO: &str = "CROWD_TO";

#[tokio::main]
async fn main() {
    if let Ok(grpc_addr) = std::env::var(CROWD_TO) {
        return crowd(&grpc_addr).await;
    }
    let waybill = gateway_only(1_000_000).await;
    reads(&waybill).await;
    lists(&waybill).await;
    watches(&waybill).await;
    drop(waybill);
    refusals().await;
}

async fn gateway_only(rate_limit: u32) -> Deployment {
    let limit = rate_limit.to_string();
    let gateway = vec![("RATE_LIMIT", limit.clone()), ("RATE_BURST", limit)];
    Deployment::start_with(Options { replicas: 0, gateway, ..Options::default() }).await
}

/// GetOrder, and the two things that it is made of: the direct get, made by this process, and a call that does
/// nothing.
async fn reads(waybill: &Deployment) {
    let order = waybill.place(order_of("reader", "", vec![item("widget", 2)])).await.expect("order");
    let subject = subjects::order(&order.order_id.parse::<OrderId>().expect("order id"));
    let stream = waybill.jetstream().await.get_stream_no_info(ORDERS).await.expect("stream");
    let client = waybill.client().await;
    let health = HealthClient::new(waybill.channel());
    let (mut raw, mut empty, mut gateway) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (stream, subject) = (stream.clone(), subject.clone());
        let direct = closed_loop(1, TURN, move |_, _| {
            let (stream, subject) = (stream.clone(), subject.clone());
            async move { drop(stream.direct_get_last_for_subject(subject).await.expect("message")) }
        });
        raw.push(direct.await.percentile_ms(50.0));
        let health = health.clone();
        let check = closed_loop(1, TURN, move |_, _| {
            let mut health = health.clone();
            async move { drop(health.check(HealthCheckRequest::default()).await.expect("health")) }
        });
        empty.push(check.await.percentile_ms(50.0));
        let (client, order_id) = (client.clone(), order.order_id.clone());
        let get = closed_loop(1, TURN, move |_, _| {
            let (mut client, order_id) = (client.clone(), order_id.clone());
            async move { drop(client.get_order(GetOrderRequest { order_id }).await.expect("order")) }
        });
        gateway.push(get.await.percentile_ms(50.0));
    }
    let ratios: Vec<_> = gateway.iter().zip(&raw).map(|(gateway, raw)| gateway / raw).collect();
    println!("\nGetOrder, 1 in flight, {ROUNDS} turns of {TURN:?} each: median [lowest-highest] of the p50");
    let both = gateway.iter().zip(raw.iter().zip(&empty));
    let both: Vec<_> = both.map(|(gateway, (raw, empty))| gateway / (raw + empty)).collect();
    for (name, values, unit) in [
        ("raw direct get", &raw, " ms"),
        ("health check", &empty, " ms"),
        ("gateway", &gateway, " ms"),
        ("gateway / raw", &ratios, ""),
        ("gateway / (raw + check)", &both, ""),
    ] {
        let (median, lowest, highest) = spread(values);
        println!("  {name:<23} {median:.2} [{lowest:.2}-{highest:.2}]{unit}");
    }
}

async fn lists(waybill: &Deployment) {
    place(waybill, "lister", usize::try_from(LISTED).expect("number")).await;
    let client = waybill.client().await;
    let listed = closed_loop(1, 2 * TURN, move |_, _| {
        let mut client = client.clone();
        let request = ListOrdersRequest {
            customer_id: "lister".to_owned(),
            page_size: LISTED,
            ..ListOrdersRequest::default()
        };
        async move {
            let orders = client.list_orders(request).await.expect("list").into_inner().orders;
            assert_eq!(i32::try_from(orders.len()), Ok(LISTED));
        }
    })
    .await;
    println!("\nListOrders of {LISTED} orders, 1 in flight: {}", percentiles(&listed));
}

async fn watches(waybill: &Deployment) {
    let orders = place(waybill, "watcher", IDLE_WATCHES).await;
    let before = resident_kib(waybill.gateway.process.pid());
    let mut watches = Vec::new();
    for orders in orders.chunks(WATCHES_PER_CONNECTION) {
        let client = waybill.client().await;
        let opened = stream::iter(orders).map(|order_id| watch(client.clone(), order_id.clone()));
        watches.extend(opened.buffer_unordered(CALLS_AT_ONCE).collect::<Vec<_>>().await);
    }
    let after = resident_kib(waybill.gateway.process.pid());
    println!(
        "\n{IDLE_WATCHES} idle WatchOrder streams on as many orders: {:.1} KiB each ({:.0} MiB before, {:.0} MiB after)",
        (after - before) / IDLE_WATCHES as f64,
        before / 1024.0,
        after / 1024.0
    );

    // Each update is a cancel, timed from the call to the watcher's event.
    let latencies = Arc::new(Mutex::new(histogram()));
    let start = Instant::now();
    let client = waybill.client().await;
    let updates = stream::iter(watches.drain(..UPDATED_WATCHES)).map(|(order_id, mut watch)| {
        let (mut client, latencies) = (client.clone(), latencies.clone());
        async move {
            let called = Instant::now();
            let cancel = CancelOrderRequest { order_id, message: String::new() };
            let (cancelled, event) = tokio::join!(client.cancel_order(cancel), watch.message());
            cancelled.expect("cancelled");
            let order = event.expect("event").and_then(|response| response.event?.order);
            assert_eq!(order.map(|order| order.status()), Some(OrderStatus::Cancelled));
            let micros = u64::try_from(called.elapsed().as_micros()).expect("micros");
            latencies.lock().expect("no panic").saturating_record(micros);
        }
    });
    updates.buffer_unordered(CALLS_AT_ONCE).collect::<Vec<_>>().await;
    let latencies_us = latencies.lock().expect("no panic").clone();
    let measured = Measured { elapsed: start.elapsed(), latencies_us };
    println!(
        "CancelOrder to the watcher's event, {UPDATED_WATCHES} of those orders, {CALLS_AT_ONCE} at a time: {}",
        percentiles(&measured)
    );
}

/// A watch that has returned the order's history.
async fn watch(
    mut client: OrderServiceClient<Channel>,
    order_id: String,
) -> (String, Streaming<WatchOrderResponse>) {
    let request = WatchOrderRequest { order_id: order_id.clone(), after_revision: 0 };
    let mut watch = client.watch_order(request).await.expect("watch").into_inner();
    watch.message().await.expect("created").expect("created");
    (order_id, watch)
}

/// Accepted calls alone, and beside ten times as many as are permitted. The excess comes from a `nice` process of its
/// own, so that its cost does not count as the gateway's.
async fn refusals() {
    let waybill = gateway_only(PERMITTED_PER_SECOND).await;
    let client = waybill.client().await;
    let (mut alone, mut beside, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    let (mut of_accepted_us, mut of_refused_us) = (Vec::new(), Vec::new());
    let pid = waybill.gateway.process.pid();
    for _ in 0..ROUNDS {
        let before = cpu_time(pid);
        let turn = paced(&client, PERMITTED_PER_SECOND, REFUSALS_TURN).await;
        let of_accepted = (cpu_time(pid) - before).as_micros() as f64 / turn.latencies_us.len() as f64;
        of_accepted_us.push(of_accepted);
        alone.push(turn);

        let before = cpu_time(pid);
        let mut crowd = Crowd::start(&waybill.gateway.grpc_addr).await;
        let turn = paced(&client, PERMITTED_PER_SECOND, REFUSALS_TURN).await;
        let of_crowd = crowd.accepted().await;
        let spent = (cpu_time(pid) - before).as_micros() as f64;
        let accepted = turn.latencies_us.len() as f64 + of_crowd;
        let offered = f64::from(OVERLOAD * PERMITTED_PER_SECOND) * REFUSALS_TURN.as_secs_f64();
        of_refused_us.push((spent - accepted * of_accepted) / (offered - accepted));
        rates.push(accepted / turn.elapsed.as_secs_f64());
        beside.push(turn);
    }
    println!(
        "\nCreateOrder at {PERMITTED_PER_SECOND} permitted calls/s, {ROUNDS} turns of {REFUSALS_TURN:?} each: median [lowest-highest]"
    );
    let alone_rates: Vec<_> = alone.iter().map(Measured::rate).collect();
    for (offered, rates, turns) in [(1, &alone_rates, &alone), (OVERLOAD, &rates, &beside)] {
        let (rate, slowest, fastest) = spread(rates);
        let p99s: Vec<_> = turns.iter().map(|turn| turn.percentile_ms(99.0)).collect();
        let (p99, lowest, highest) = spread(&p99s);
        println!(
            "  offered {offered:>2} times as many: accepted {rate:.0} [{slowest:.0}-{fastest:.0}]/s, p99 {p99:.2} [{lowest:.2}-{highest:.2}] ms"
        );
    }
    for (name, values) in [("an accepted", &of_accepted_us), ("a refused", &of_refused_us)] {
        let (median, lowest, highest) = spread(values);
        println!("  the gateway's CPU time for {name} call: {median:.0} [{lowest:.0}-{highest:.0}] us");
    }
    let ratio = |ratios: Vec<f64>| {
        let (median, lowest, highest) = spread(&ratios);
        format!("{median:.2} [{lowest:.2}-{highest:.2}]")
    };
    let of_rates = rates.iter().zip(&alone_rates).map(|(beside, alone)| beside / alone).collect();
    let p99 = |turn: &Measured| turn.percentile_ms(99.0);
    let of_p99s = beside.iter().zip(&alone).map(|(beside, alone)| p99(beside) / p99(alone)).collect();
    println!("  ratio: accepted {}, p99 {}", ratio(of_rates), ratio(of_p99s));
}

/// A process that offers more than is permitted.
struct Crowd(Child);

impl Crowd {
    async fn start(grpc_addr: &str) -> Self {
        let mut command = Command::new("nice");
        command.args(["-n", "19"]).arg(std::env::current_exe().expect("own path")).env(CROWD_TO, grpc_addr);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("crowd");
        let mut ready = [0];
        child.stdout.as_mut().expect("pipe").read_exact(&mut ready).await.expect("crowd is ready");
        Self(child)
    }

    /// How many of its calls were accepted.
    async fn accepted(&mut self) -> f64 {
        let mut output = String::new();
        self.0.stdout.as_mut().expect("pipe").read_to_string(&mut output).await.expect("output");
        self.0.wait().await.expect("end");
        output.trim().parse().expect("a number")
    }
}

/// What the process of a [`Crowd`] does.
async fn crowd(grpc_addr: &str) {
    let channel = Channel::from_shared(format!("http://{grpc_addr}")).expect("address");
    let client = OrderServiceClient::new(channel.connect().await.expect("gateway"));
    println!();
    let measured = paced(&client, (OVERLOAD - 1) * PERMITTED_PER_SECOND, REFUSALS_TURN).await;
    println!("{}", measured.latencies_us.len());
}

/// Open loop: a fixed number of calls each second, with any outcome. Measures those that were accepted.
async fn paced(client: &OrderServiceClient<Channel>, per_second: u32, duration: Duration) -> Measured {
    const TICK: Duration = Duration::from_millis(1);
    let (mut calls, mut latencies_us) = (JoinSet::new(), histogram());
    let start = Instant::now();
    let mut ticks = tokio::time::interval(TICK);
    let mut called = 0;
    while start.elapsed() < duration {
        ticks.tick().await;
        let due = (start.elapsed().as_secs_f64() * f64::from(per_second)) as u64;
        for call in called..due {
            let mut client = client.clone();
            calls.spawn(async move {
                let request = order_of(&format!("customer-{}", call % 1000), "", vec![item("widget", 1)]);
                let called = Instant::now();
                match client.create_order(request).await {
                    Ok(_) => u64::try_from(called.elapsed().as_micros()).ok(),
                    Err(status) if status.code() == Code::ResourceExhausted => None,
                    Err(status) => panic!("{status:?}"),
                }
            });
        }
        called = due;
    }
    let elapsed = start.elapsed();
    while let Some(accepted) = calls.join_next().await {
        if let Some(micros) = accepted.expect("call") {
            latencies_us.saturating_record(micros);
        }
    }
    Measured { elapsed, latencies_us }
}

async fn place(waybill: &Deployment, customer_id: &str, count: usize) -> Vec<String> {
    let client = waybill.client().await;
    let calls = stream::iter(0..count).map(|_| {
        let mut client = client.clone();
        let request = order_of(customer_id, "", vec![item("widget", 1)]);
        async move {
            let response = client.create_order(request).await.expect("order");
            response.into_inner().order.expect("order").order_id
        }
    });
    calls.buffer_unordered(CALLS_AT_ONCE).collect().await
}

fn percentiles(measured: &Measured) -> String {
    let ms = |percentile| measured.percentile_ms(percentile);
    format!("p50 {:.2} ms, p99 {:.2} ms", ms(50.0), ms(99.0))
}
