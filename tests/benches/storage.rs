//! The cost of an order at the broker: bytes on disk, and memory, while it runs and after a restart.
//!
//! `cargo bench --workspace --bench storage`

#![allow(
    clippy::print_stdout,
    clippy::expect_used,
    missing_docs,
    reason = "a benchmark prints what it measured, or fails"
)]

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use harness::measure::resident_kib;
use harness::{Deployment, Load, Options, item, order_of};

/// So many are finished when it is measured; each after the first adds to the orders of the previous one.
const ORDERS: [usize; 4] = [0, 10_000, 30_000, 60_000];
/// Orders of one customer have a subject prefix in common.
const CUSTOMERS: usize = 10_000;
const STREAMS: [&str; 2] = ["ORDERS", "KV_INVENTORY"];

#[tokio::main]
async fn main() {
    let mut options = Options { processors: Vec::new(), ..Options::default() };
    options.stock = vec![("widget", u64::MAX / 2), ("gadget", u64::MAX / 2)];
    let mut waybill = Deployment::start_with(options).await;
    // Once it is through, all is there.
    let first =
        waybill.place(order_of("customer", "first", vec![item("widget", 1)])).await.expect("accepted");
    waybill.finished(&first.order_id).await;
    println!("\nOrders of two items, each created, reserved, paid and fulfilled; one nats-server:");
    for pair in ORDERS.windows(2) {
        let before = Measured::of(&waybill).await;
        let orders = (pair[0]..pair[1]).map(|n| {
            let items = vec![item("widget", 1), item("gadget", 2)];
            order_of(&format!("customer-{:05}", n % CUSTOMERS), &format!("request-{n:09}"), items)
        });
        Load::start(waybill.channel(), orders.collect()).all().await;
        for step in ["inventory", "payment", "fulfilment"] {
            waybill.idle(step).await;
        }
        let after = Measured::of(&waybill).await;
        let of_each = |before: u64, after: u64| (after as f64 - before as f64) / (pair[1] - pair[0]) as f64;
        println!("  orders {} to {}, of each:", pair[0], pair[1]);
        for (n, stream) in STREAMS.iter().enumerate() {
            let bytes = of_each(before.streams[n].1, after.streams[n].1);
            let messages = of_each(before.streams[n].0, after.streams[n].0);
            println!("    {stream:12} {bytes:6.0} bytes in {messages:.2} messages");
        }
        println!("    on disk      {:6.0} bytes", of_each(before.disk_bytes, after.disk_bytes));
        println!("    in memory    {:6.0} bytes", of_each(before.resident_bytes, after.resident_bytes));
    }
    let running = Measured::of(&waybill).await;
    waybill.broker.kill();
    let start = Instant::now();
    waybill.broker.start().await;
    let took = start.elapsed();
    let anew = Measured::of(&waybill).await;
    let mib = |bytes: u64| bytes as f64 / (1024.0 * 1024.0);
    println!("  the broker holds {:.0} MiB with all of them", mib(running.resident_bytes));
    println!(
        "  killed and started again: answers after {took:.1?}, and holds {:.0} MiB",
        mib(anew.resident_bytes)
    );
}

struct Measured {
    /// Messages and bytes.
    streams: Vec<(u64, u64)>,
    disk_bytes: u64,
    resident_bytes: u64,
}

impl Measured {
    async fn of(waybill: &Deployment) -> Self {
        let jetstream = waybill.jetstream().await;
        let mut streams = Vec::new();
        for name in STREAMS {
            let state = jetstream.get_stream(name).await.expect("stream").cached_info().state.clone();
            streams.push((state.messages, state.bytes));
        }
        let resident_bytes = (1024.0 * resident_kib(waybill.broker.pid())) as u64;
        Self { streams, disk_bytes: disk_bytes(&waybill.broker.data()), resident_bytes }
    }
}

/// Blocks that the files below `dir` take.
fn disk_bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let each = entries.map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => disk_bytes(&entry.path()),
        Ok(found) => found.blocks() * 512,
        // Gone meanwhile.
        Err(_) => 0,
    });
    each.sum()
}
