//! How long the gateway takes to listen, and how much memory it holds when idle.
//!
//! `cargo bench --workspace --bench footprint`

#![allow(
    clippy::print_stdout,
    clippy::expect_used,
    missing_docs,
    reason = "a benchmark prints what it measured, or fails"
)]

use std::process::Command;
use std::time::Instant;

use harness::measure::{resident_kib, spread};
use harness::{Broker, Process, binary};
use tokio::net::TcpStream;

const STARTS: usize = 20;

#[tokio::main]
async fn main() {
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
