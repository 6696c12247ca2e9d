//! The cost of traces for CreateOrder: gateways side by side on one broker. They export nothing, or to a collector at
//! the default ratio or all of it, or to a collector that is unavailable. The collector is a process on the same
//! machine, and uses part of it.
//!
//! `cargo bench --workspace --bench traces`. The variable PROGRAMS names a folder of another version's programs, whose gateway
//! then takes part without traces.

#![allow(
    clippy::print_stdout,
    clippy::expect_used,
    missing_docs,
    reason = "a benchmark prints what it measured, or fails"
)]

use std::process::Command;
use std::time::Duration;

use harness::collector::Collector;
use harness::measure::{Measured, closed_loop, cpu_time, spread};
use harness::{Deployment, Gateway, Options, Process, item, order_of};
use proto::orders::v1::order_service_client::OrderServiceClient;
use tonic::transport::Channel;

const ROUNDS: usize = 9;
const WARM_UP: Duration = Duration::from_secs(2);
const TURN: Duration = Duration::from_secs(2);
const CONNECTIONS: usize = 4;
const IN_FLIGHT: usize = 64;
const LISTENING: &str = "listening on ";

#[tokio::main]
async fn main() {
    if std::env::args().nth(1).as_deref() == Some("collector") {
        let collector = Collector::start_forgetful().await;
        println!("{LISTENING}{}", collector.url());
        std::future::pending::<()>().await;
    }
    compare().await;
}

async fn compare() {
    let unlimited = "1000000".to_owned();
    let gateway = vec![("RATE_LIMIT", unlimited.clone()), ("RATE_BURST", unlimited)];
    let mut waybill = Deployment::start_with(Options { replicas: 0, gateway, ..Options::default() }).await;
    let (_collector, url) = collector().await;
    let to = |endpoint: &str, sampler: &[(&'static str, &str)]| {
        let protocol = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
        [&[protocol, endpoint], sampler]
            .concat()
            .into_iter()
            .map(|(name, value)| (name, value.to_owned()))
            .collect()
    };
    let all = [("OTEL_TRACES_SAMPLER", "always_on")];
    let mut gateways = vec![
        ("no traces", waybill.gateway_with("off", Vec::new()).await),
        ("no traces, again", waybill.gateway_with("off-2", Vec::new()).await),
        ("default ratio", waybill.gateway_with("ratio", to(&url, &[])).await),
        ("all traces", waybill.gateway_with("all", to(&url, &all)).await),
        ("all, no collector", waybill.gateway_with("dead", to("http://127.0.0.1:1", &all)).await),
    ];

    if let Some(programs) = std::env::var_os("PROGRAMS") {
        waybill.use_programs(Some(programs.into()));
        gateways.push(("no traces, before", waybill.gateway_with("before", Vec::new()).await));
    }
    for (_, gateway) in &gateways {
        turn(gateway, WARM_UP).await;
    }
    let mut turns: Vec<_> = gateways.iter().map(|_| Vec::new()).collect();
    for round in 0..ROUNDS {
        // Whoever comes first in a round must not always be the same.
        for i in 0..gateways.len() {
            let i = (i + round) % gateways.len();
            turns[i].push(turn(&gateways[i].1, TURN).await);
        }
    }
    println!(
        "\nCreateOrder, {IN_FLIGHT} in flight, {ROUNDS} turns of {TURN:?} each: median [lowest-highest]; ratios to no traces"
    );
    for ((name, _), of_gateway) in gateways.iter().zip(&turns) {
        let of = |value: fn(&Turn) -> f64| spread(&of_gateway.iter().map(value).collect::<Vec<_>>());
        let ratio = |value: fn(&Turn) -> f64| {
            let ratios = of_gateway.iter().zip(&turns[0]).map(|(with, without)| value(with) / value(without));
            let (median, lowest, highest) = spread(&ratios.collect::<Vec<_>>());
            format!("{median:.2} [{lowest:.2}-{highest:.2}]")
        };
        let (rate, slowest, fastest) = of(Turn::rate);
        let (p99, ..) = of(|turn| turn.load.percentile_ms(99.0));
        let (cpu, ..) = of(|turn| turn.cpu_us);
        println!(
            "  {name:<17} {rate:>6.0} [{slowest:.0}-{fastest:.0}] calls/s  {}   p99 {p99:.2} ms   CPU {cpu:.1} us a call  {}",
            ratio(Turn::rate),
            ratio(|turn| turn.cpu_us)
        );
    }
}

/// What one gateway did in one turn.
struct Turn {
    load: Measured,
    /// CPU time of the gateway for each call.
    cpu_us: f64,
}

impl Turn {
    fn rate(&self) -> f64 {
        self.load.rate()
    }
}

/// A collector in a process of its own.
async fn collector() -> (Process, String) {
    let dir = tempfile::tempdir().expect("directory");
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    command.arg("collector");
    let mut process = Process::start("collector", command, dir.path());
    let listening = |line: &str| Some(line.strip_prefix(LISTENING)?.to_owned());
    let url = process.line("the collector's address", listening).await;
    (process, url)
}

async fn turn(gateway: &Gateway, duration: Duration) -> Turn {
    let connect =
        || Channel::from_shared(format!("http://{}", gateway.grpc_addr)).expect("address").connect_lazy();
    let clients: Vec<_> = (0..CONNECTIONS).map(|_| OrderServiceClient::new(connect())).collect();
    let before = cpu_time(gateway.process.pid());
    let load = closed_loop(IN_FLIGHT, duration, move |caller, call| {
        let mut client = clients[caller % clients.len()].clone();
        async move {
            let items = vec![item("widget", 2), item("gadget", 1)];
            let request = order_of(&format!("customer-{}", call % 1000), "", items);
            client.create_order(request).await.expect("order accepted");
        }
    })
    .await;
    let cpu = cpu_time(gateway.process.pid()) - before;
    Turn { cpu_us: cpu.as_secs_f64() * 1e6 / load.latencies_us.len() as f64, load }
}
