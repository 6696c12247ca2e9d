//! A file of credentials counts as it stands, whatever was in the way when it was read first.

use std::path::Path;
use std::process::Command;

use harness::{Deployment, Options, Process, binary, eventually, item, order_of};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;
use tokio::net::TcpStream;
use tonic::{Code, Status};

use crate::http2::{PREFACE, SETTINGS, frame};
use crate::tenants::{BOTH, Client, client, with_keys, write_keys};

/// Open files that a gateway has enough of, until it has some dozens of connections.
const OPEN_FILES: &str = "64";

async fn place(client: &mut Client) -> Result<(), Status> {
    client.create_order(order_of("ada", "", vec![item("widget", 1)])).await.map(drop)
}

fn not_read(fields: &Value) -> Option<()> {
    fields["message"].as_str()?.contains("not reloaded").then_some(())
}

#[tokio::test]
async fn a_key_is_revoked_though_the_file_could_not_be_opened_at_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys");
    write_keys(&path, &[("leaked", "shop", BOTH), ("good", "shop", BOTH)]);
    let mut waybill = Deployment::start_with(Options { replicas: 0, ..Options::default() }).await;
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {OPEN_FILES}; exec \"$0\"")]).arg(binary("waybill-gateway"));
    let addr = "127.0.0.1:0";
    command.env_clear().env("NATS_URL", waybill.broker.url()).env("GRPC_ADDR", addr).env("OPS_ADDR", addr);
    command.env("API_KEYS_FILE", &path).env("LOG_FORMAT", "json");
    let mut gateway = Process::start("gateway-of-few-files", command, dir.path());
    // What the harness knows of a gateway is where it is.
    waybill.gateway.grpc_addr =
        gateway.logged("address", |fields| Some(fields["grpc_addr"].as_str()?.to_owned())).await;
    let mut leaked = client(&waybill, Some("leaked"));
    let mut good = client(&waybill, Some("good"));
    eventually("orders", async || place(&mut leaked).await.ok()).await;
    place(&mut good).await.unwrap();

    let mut flood = Vec::new();
    let mut greeting = PREFACE.to_vec();
    greeting.extend(frame(SETTINGS, 0, 0, &[]));
    for _ in 0..100 {
        let connection = TcpStream::connect(&waybill.gateway.grpc_addr).await.unwrap();
        connection.try_write(&greeting).unwrap();
        flood.push(connection);
    }
    gateway
        .logged("want of files", |fields| (fields["message"] == "connection not accepted").then_some(()))
        .await;
    // Replaced in one step, and as long and as old as it will be.
    let new = dir.path().join("new");
    write_keys(&new, &[("good", "shop", BOTH)]);
    std::fs::rename(&new, &path).unwrap();
    gateway.logged("the file not read", not_read).await;
    drop(flood);
    let refused = async || place(&mut leaked).await.err().filter(|s| s.code() == Code::Unauthenticated);
    eventually("an end of the leaked key", refused).await;
    place(&mut good).await.unwrap();
    assert!(gateway.stop().await.success());
}

async fn replaced_by_a_pipe(waybill: &mut Deployment, path: &Path) {
    let pipe = path.with_extension("pipe");
    mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    std::fs::rename(&pipe, path).unwrap();
    waybill.gateway.process.logged("the file not read", not_read).await;
}

#[tokio::test]
async fn a_pipe_in_place_of_the_file_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys");
    write_keys(&path, &[("old", "shop", BOTH)]);
    let mut waybill = with_keys(&path).await;
    replaced_by_a_pipe(&mut waybill, &path).await;
    place(&mut client(&waybill, Some("old"))).await.unwrap();
    assert_eq!(waybill.http("/livez").await.0, 200);

    write_keys(&path.with_extension("new"), &[("new", "shop", BOTH)]);
    std::fs::rename(path.with_extension("new"), &path).unwrap();
    let mut new = client(&waybill, Some("new"));
    eventually("the new key", async || place(&mut new).await.ok()).await;
    replaced_by_a_pipe(&mut waybill, &path).await;
    assert!(waybill.gateway.process.stop().await.success());
}
