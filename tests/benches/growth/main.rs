//! Measures the whole system at 10,000, 100,000, 1,000,000 orders and so on, as ratios to the first stage: rates, CPU,
//! reads, created to fulfilled, memory and restart of the broker.
//!
//! `cargo bench --workspace --bench growth`, with these variables:
//!
//! - GROWTH_ORDERS: size of the last stage. A million orders take some 4 GB in TMPDIR.
//! - GROWTH_IDLE_S: how long the broker idles before its memory is read.
//! - WORKER_POOL_SIZE: that of each step.
//! - PROGRAMS: a folder with programs of another version, which are measured instead.

#![allow(
    clippy::print_stdout,
    clippy::expect_used,
    missing_docs,
    reason = "a benchmark prints what it measured, or fails"
)]

mod load;
mod orders;
mod reads;
mod table;

use std::time::{Duration, Instant, SystemTime};

use harness::measure::{cpu_time, resident_kib};
use harness::{Deployment, Options, randomness};
use prost_types::Timestamp;
use proto::orders::v1::OrderStatus;
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::orders::Orders;
use crate::table::Column;

/// The default size of the last stage: some five minutes.
const ORDERS: u64 = 100_000;
const FIRST_STAGE: u64 = 10_000;
/// Each stage has so many times the orders of the one before.
const STAGE_FACTOR: u64 = 10;
/// The most orders at the end of a stage that are measured apart.
const LAST_MAX: u64 = 10_000;
const IDLE_S: u64 = 30;
const WORKER_POOL_SIZE: u64 = 128;
const PACED_ORDERS: u64 = 2000;
const STOCK: u64 = 100_000_000;
/// Longest wait for each stage of the broker's restart.
const RESTART_MAX: Duration = Duration::from_secs(600);
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
const STEPS: [&str; 3] = ["inventory", "payment", "fulfilment"];
const PROCESSES: [&str; 6] = ["broker", "gateway", STEPS[0], STEPS[1], STEPS[2], "client"];
/// All calls come from one address, which may make no more than 10,000 in a second by default.
const UNLIMITED: [(&str, &str); 2] = [("RATE_LIMIT", "1000000"), ("RATE_BURST", "1000000")];

#[tokio::main]
async fn main() {
    let sizes = sizes(setting("GROWTH_ORDERS", ORDERS));
    let mut randomness = randomness();
    let mut waybill = Deployment::start_with(options()).await;
    waybill.steps_are_open().await;
    println!("\n{}", setup(&waybill).await);
    let mut orders = Orders::new(&waybill, &sizes);
    let mut columns = Vec::new();
    for size in sizes {
        let mut column = Column::new(size);
        growth(&waybill, &mut orders, size, &mut column).await;
        memory(&waybill, &mut column).await;
        reads::all(&orders, size, &mut randomness, &mut column).await;
        let latencies_us = load::paced(&waybill, &mut orders, PACED_ORDERS).await;
        column.latencies("created to fulfilled at 200/s", &latencies_us);
        restart(&mut waybill, &mut orders, &mut column).await;
        columns.push(column);
    }
    table::print(&columns);
}

/// How many orders the log has at the end of each stage.
fn sizes(last: u64) -> Vec<u64> {
    let sizes = std::iter::successors(Some(FIRST_STAGE), |size| size.checked_mul(STAGE_FACTOR));
    // A stage is at least as large as all before it.
    sizes.take_while(|size| 2 * size <= last).chain([last]).collect()
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("a number in {name}")))
}

fn options() -> Options {
    let pool = setting("WORKER_POOL_SIZE", WORKER_POOL_SIZE).to_string();
    Options {
        stock: orders::SKUS.map(|sku| (sku, STOCK)).into(),
        programs: std::env::var_os("PROGRAMS").map(Into::into),
        gateway: UNLIMITED.map(|(name, value)| (name, value.to_owned())).into(),
        processors: vec![("WORKER_POOL_SIZE", pool)],
        ..Options::default()
    }
}

async fn setup(waybill: &Deployment) -> String {
    let now = Timestamp { nanos: 0, ..SystemTime::now().into() };
    let cores = std::thread::available_parallelism().expect("cores");
    let broker = waybill.jetstream().await.client().server_info().version;
    let programs =
        std::env::var("PROGRAMS").map_or("this build".to_owned(), |folder| format!("PROGRAMS={folder}"));
    let pool = setting("WORKER_POOL_SIZE", WORKER_POOL_SIZE);
    format!("{now}, {cores} cores, nats-server {broker}, programs of {programs}, WORKER_POOL_SIZE={pool}")
}

/// Lets the log grow to `size` orders. The last of them are measured apart, between two moments without an unfinished
/// order, so that the CPU time is that of whole orders.
async fn growth(waybill: &Deployment, orders: &mut Orders, size: u64, column: &mut Column) {
    let all = size.saturating_sub(orders.placed()).max(1);
    let last = LAST_MAX.min(all * 4 / 5).max(1);
    let before = cpu(waybill);
    let most = load::grow(waybill, orders, all - last).await;
    let between = cpu(waybill);
    let end = load::grow(waybill, orders, last).await;
    let after = cpu(waybill);
    let resident_mib = resident_kib(waybill.broker.pid()) / 1024.0;
    let per_second = |orders: u64, time: Duration| orders as f64 / time.as_secs_f64();
    column.add("accepted, last orders (orders/s)", per_second(last, end.accepted));
    column.add("finished, last orders (orders/s)", per_second(last, end.finished));
    column.add("accepted, whole stage (orders/s)", per_second(all, most.accepted + end.accepted));
    column.add("finished, whole stage (orders/s)", per_second(all, most.finished + end.finished));
    let micros = |from: Duration, to: Duration, orders: u64| (to - from).as_secs_f64() * 1e6 / orders as f64;
    for (n, process) in PROCESSES.into_iter().enumerate() {
        let name = format!("CPU of {process}, last orders (µs/order)");
        column.add(&name, micros(between[n], after[n], last));
    }
    column.add("CPU of broker, whole stage (µs/order)", micros(before[0], after[0], all));
    column.add("broker RSS, busy (MiB)", resident_mib);
}

/// CPU time that each process has used.
fn cpu(waybill: &Deployment) -> [Duration; PROCESSES.len()] {
    let [inventory, payment, fulfilment] = STEPS.map(|step| waybill.processors[step][0].pid());
    let (broker, gateway) = (waybill.broker.pid(), waybill.gateway.process.pid());
    [broker, gateway, inventory, payment, fulfilment, std::process::id()].map(cpu_time)
}

async fn memory(waybill: &Deployment, column: &mut Column) {
    let idle = setting("GROWTH_IDLE_S", IDLE_S);
    sleep(Duration::from_secs(idle)).await;
    let name = format!("broker RSS, idle for {idle} s (MiB)");
    column.add(&name, resident_kib(waybill.broker.pid()) / 1024.0);
}

/// Kills the broker and starts it again. The times count from its start until it has recovered its streams and listens,
/// until the gateway is ready, and until a new order is finished.
async fn restart(waybill: &mut Deployment, orders: &mut Orders, column: &mut Column) {
    waybill.broker.kill();
    until("gateway not ready", async || waybill.http("/readyz").await.0 != 200).await;
    let start = Instant::now();
    waybill.broker.start_configured("", "");
    let mut add = |until: &str| {
        let name = format!("restart after kill -9, {until} (s)");
        column.add(&name, start.elapsed().as_secs_f64());
    };
    until("broker listens", async || TcpStream::connect(waybill.broker.address()).await.is_ok()).await;
    add("broker listens");
    until("gateway ready", async || waybill.http("/readyz").await.0 == 200).await;
    add("gateway ready");
    let resident_mib = resident_kib(waybill.broker.pid()) / 1024.0;
    let order_id = orders.place_next().await;
    waybill.reached(&order_id, OrderStatus::Fulfilled).await;
    add("new order finished");
    column.add("broker RSS after restart (MiB)", resident_mib);
}

async fn until(what: &str, mut is_met: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !is_met().await {
        assert!(start.elapsed() < RESTART_MAX, "{what}: not within {RESTART_MAX:?}");
        sleep(LOOK_INTERVAL).await;
    }
}
