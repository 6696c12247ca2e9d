//! The log serves whoever reads it, and nobody else has to wait for them.

use std::io::{BufRead, BufReader, Read};
use std::process::{ChildStdout, Command, Stdio};
use std::time::Instant;

use futures::{StreamExt, stream};
use harness::{Deployment, Options, PATIENCE, binary, eventually, health, item, order_of};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::orders::v1::GetOrderRequest;
use proto::orders::v1::order_service_client::OrderServiceClient;
use serde_json::Value;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic_health::pb::health_check_response::ServingStatus;

/// At the finest level each call is told in dozens of lines: far more than a pipe holds and the gateway keeps.
const CALLS: usize = 1_500;

/// A gateway whose log is a pipe. Killed when dropped.
struct Piped {
    child: std::process::Child,
    log: BufReader<ChildStdout>,
    channel: Channel,
}

impl Piped {
    /// Starts it, and reads the log until it says where the gateway is.
    async fn start(waybill: &Deployment) -> Self {
        let addr = "127.0.0.1:0";
        let mut command = Command::new(binary("waybill-gateway"));
        command.env_clear().env("NATS_URL", waybill.broker.url()).env("GRPC_ADDR", addr);
        command.env("OPS_ADDR", addr).env("LOG_FORMAT", "json").env("RUST_LOG", "trace");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stdout.take().unwrap());
        let addr = loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "ended before it listened");
            let line: Value = serde_json::from_str(&line).unwrap();
            if let Some(addr) = line["fields"]["grpc_addr"].as_str() {
                break addr.to_owned();
            }
        };
        let channel = Channel::from_shared(format!("http://{addr}")).unwrap().connect_lazy();
        Self { child, log, channel }
    }

    /// Has it say more than anybody reads, and sees that it answers all the same.
    async fn flood(&self) {
        let calls = stream::iter(0..CALLS).map(|_| timeout(PATIENCE, health(self.channel.clone(), "")));
        let answers: Vec<_> = calls.buffer_unordered(16).collect().await;
        assert!(answers.iter().all(|answer| matches!(answer, Ok(Some(_)))), "calls without an answer");
        let ready =
            async || (health(self.channel.clone(), "").await? == ServingStatus::Serving).then_some(());
        eventually("readiness", ready).await;
    }

    async fn stop(&mut self) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        let status = eventually("end of the gateway", async || self.child.try_wait().unwrap()).await;
        assert!(status.success(), "{status}");
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}

#[tokio::test]
async fn a_log_that_nobody_reads_stops_nobody() {
    let waybill = Deployment::start_with(Options { replicas: 0, ..Options::default() }).await;
    let mut gateway = Piped::start(&waybill).await;
    gateway.flood().await;
    let order = order_of("ada", "", vec![item("widget", 1)]);
    OrderServiceClient::new(gateway.channel.clone()).create_order(order).await.unwrap();
    gateway.stop().await;
}

#[tokio::test]
async fn lines_that_were_dropped_are_counted_in_a_later_one_and_the_last_line_is_kept() {
    let waybill = Deployment::start_with(Options { replicas: 0, ..Options::default() }).await;
    let mut gateway = Piped::start(&waybill).await;
    gateway.flood().await;
    let mut dropped = 0;
    while dropped == 0 {
        let mut line = String::new();
        assert!(gateway.log.read_line(&mut line).unwrap() > 0, "ended by itself");
        let line: Value = serde_json::from_str(&line).expect("whole lines");
        if line["fields"]["message"].as_str().is_some_and(|text| text.contains("dropped")) {
            dropped = line["fields"]["lines"].as_u64().unwrap();
        }
    }
    eprintln!("{dropped} lines dropped");
    // Nobody has to read for the gateway to end, but here somebody does.
    let mut log = std::mem::replace(&mut gateway.log, BufReader::new(empty_output()));
    let reading = tokio::task::spawn_blocking(move || {
        let mut rest = String::new();
        log.read_to_string(&mut rest).unwrap();
        rest
    });
    gateway.stop().await;
    let rest = reading.await.unwrap();
    let stopped = rest.lines().rev().take(200).any(|line| line.contains("\"message\":\"stopped\""));
    assert!(stopped, "{:?}", rest.lines().last());
}

/// The output of a program that says nothing.
fn empty_output() -> ChildStdout {
    Command::new("true").stdout(Stdio::piped()).spawn().unwrap().stdout.unwrap()
}

#[tokio::test]
async fn callers_do_not_drive_the_log() {
    const CALLS: usize = 1_000;
    let mut waybill = Deployment::start_with(Options { replicas: 0, ..Options::default() }).await;
    let order = waybill.place(order_of("ada", "", vec![item("widget", 1)])).await.unwrap();
    waybill.broker.kill();
    let begun = Instant::now();
    let channel = waybill.channel();
    let calls = stream::iter(0..CALLS).map(|i| {
        let mut client = OrderServiceClient::new(channel.clone());
        let order_id = order.order_id.clone();
        async move {
            if i % 2 == 0 {
                client.create_order(order_of("ada", "", vec![item("widget", 1)])).await.is_err()
            } else {
                client.get_order(GetOrderRequest { order_id }).await.is_err()
            }
        }
    });
    let refused: Vec<bool> = calls.buffer_unordered(64).collect().await;
    assert!(refused.into_iter().all(|refused| refused), "answered without a broker");
    let lines = waybill.gateway.process.output().lines().filter(|line| line.contains("WARN")).count();
    // One a second of each of two or three kinds, and what is told of the broker itself.
    let lines_max = 4 * (usize::try_from(begun.elapsed().as_secs()).unwrap() + 1) + 20;
    eprintln!("{lines} lines of {CALLS} calls");
    assert!(lines <= lines_max, "{lines} lines");
}

#[tokio::test]
async fn dev_reads_the_addresses_of_its_programs_at_any_level_of_the_log() {
    const PORTS: [&str; 4] = ["--grpc-addr", "--ops-addr", "--operations-addr", "--payment-sandbox-addr"];
    let dir = tempfile::tempdir().unwrap();
    let mut dev = tokio::process::Command::new(binary("waybill"));
    dev.args(["dev", "--orders", "2", "--exit", "--nats-port", "0"]).current_dir(dir.path());
    for port in PORTS {
        dev.args([port, "127.0.0.1:0"]);
    }
    dev.env("RUST_LOG", "error").env("NATS_SERVER", harness::nats_server()).kill_on_drop(true);
    let output = timeout(PATIENCE, dev.output()).await.expect("dev ends").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
