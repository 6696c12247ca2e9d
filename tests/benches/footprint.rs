//! How long the gateway takes to listen, and what gateway and processors hold and use when idle, and with a backlog.
//!
//! `cargo bench --workspace --bench footprint`

#![allow(
    clippy::print_stdout,
    clippy::expect_used,
    missing_docs,
    reason = "a benchmark prints what it measured, or fails"
)]

use std::process::Command;
use std::time::{Duration, Instant};

use backbone::log::ids::{CustomerKey, OrderId, OrderKey};
use futures::{StreamExt, stream};
use harness::measure::{cpu_time, resident_kib, spread};
use harness::{Broker, Deployment, Options, Process, binary, default_route, item};
use proto::orders::v1::OrderCreated;
use tokio::net::TcpStream;
use tokio::time::sleep;

const STARTS: usize = 20;
const STEPS: [&str; 3] = ["inventory", "payment", "fulfilment"];
const IDLE: Duration = Duration::from_secs(60);
const BACKLOG: u64 = 1_000_000;
const APPENDS_AT_ONCE: usize = 256;
const APPEND_TIMEOUT: Duration = Duration::from_secs(30);
const BUSY: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

#[tokio::main]
async fn main() {
    gateway().await;
    idle_processors().await;
    backlog().await;
}

async fn idle_processors() {
    let options = Options { payment_sandbox: true, processors: Vec::new(), ..Options::default() };
    let mut waybill = Deployment::start_with(options).await;
    for step in STEPS {
        waybill.idle(step).await;
    }
    let before: Vec<_> = STEPS.map(|step| cpu_time(waybill.processor(step).pid())).into();
    sleep(IDLE).await;
    println!("\nProcessors, idle for {IDLE:?}:");
    for (step, before) in STEPS.into_iter().zip(before) {
        let pid = waybill.processor(step).pid();
        let share = (cpu_time(pid) - before).as_secs_f64() / IDLE.as_secs_f64();
        println!("  {step:10} {:.1} MiB, {:.2} % of a core", resident_kib(pid) / 1024.0, 100.0 * share);
    }
}

/// Orders that were accepted while no step was running, as after a long outage of all of them.
async fn backlog() {
    let mut options = Options { payment_sandbox: true, processors: Vec::new(), ..Options::default() };
    options.stock = vec![("widget", 2 * BACKLOG)];
    let mut waybill = Deployment::start_with(options).await;
    for step in STEPS {
        waybill.kill_processors(step);
    }
    let log = waybill.order_log().await;
    let appends = stream::iter(0..BACKLOG).map(|n| {
        let customer_id = format!("customer-{}", n % 100_000);
        let id = OrderId { customer: CustomerKey::of("", &customer_id), order: OrderKey::unique() };
        let (order_id, items) = (id.to_string(), vec![item("widget", 1)]);
        let created = OrderCreated { order_id, customer_id, items, ..OrderCreated::default() };
        let deadline = tokio::time::Instant::now() + APPEND_TIMEOUT;
        let log = &log;
        async move { log.create(id, created, default_route(), deadline).await.map(|_| ()).expect("stored") }
    });
    appends.buffer_unordered(APPENDS_AT_ONCE).collect::<()>().await;
    for step in STEPS {
        waybill.start_processor(step);
    }
    let mut most = [0f64; STEPS.len()];
    let start = Instant::now();
    while start.elapsed() < BUSY {
        for (most, step) in most.iter_mut().zip(STEPS) {
            *most = most.max(resident_kib(waybill.processor(step).pid()) / 1024.0);
        }
        sleep(LOOK_INTERVAL).await;
    }
    println!("\nProcessors with {BACKLOG} orders waiting, the most they held within {BUSY:?}:");
    for (most, step) in most.into_iter().zip(STEPS) {
        println!("  {step:10} {most:.1} MiB");
    }
}

async fn gateway() {
    let dir = tempfile::tempdir().expect("directory");
    let mut broker = Broker::reserve(dir.path());
    broker.start().await;
    let (mut listening_ms, mut resident_mib) = (Vec::new(), Vec::new());
    for n in 0..STARTS {
        let grpc_addr = free_addr();
        let mut command = Command::new(binary("waybill-gateway"));
        command.env("NATS_URL", broker.url()).env("GRPC_ADDR", &grpc_addr).env("OPS_ADDR", "127.0.0.1:0");
        let start = Instant::now();
        let mut gateway = Process::start(&format!("gateway-{n}"), command, dir.path());
        while TcpStream::connect(&grpc_addr).await.is_err() {
            tokio::task::yield_now().await;
        }
        listening_ms.push(start.elapsed().as_secs_f64() * 1e3);
        gateway.line("readiness", |line| line.contains("ready").then_some(())).await;
        resident_mib.push(resident_kib(gateway.pid()) / 1024.0);
    }
    let (ms, fastest, slowest) = spread(&listening_ms);
    let (mib, least, most) = spread(&resident_mib);
    println!("\nGateway, {STARTS} starts with the broker up: median [lowest-highest]");
    println!("  exec to listening {ms:.1} [{fastest:.1}-{slowest:.1}] ms");
    println!("  resident when idle {mib:.1} [{least:.1}-{most:.1}] MiB");
}

fn free_addr() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("free port");
    listener.local_addr().expect("address").to_string()
}
