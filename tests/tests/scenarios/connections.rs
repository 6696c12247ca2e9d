//! Connections that lead to no call keep nobody out for long.

use std::time::Duration;

use harness::{Deployment, Options, PATIENCE, eventually, item, order_of};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

#[tokio::test]
async fn a_client_that_says_nothing_is_sent_away_and_others_are_let_in() {
    let gateway = vec![("MAX_CONNECTIONS", "20".to_owned())];
    let waybill = Deployment::start_with(Options { replicas: 0, gateway, ..Options::default() }).await;
    let mut silent = Vec::new();
    for i in 0..40 {
        let mut connection = TcpStream::connect(&waybill.gateway.grpc_addr).await.unwrap();
        if i % 2 == 0 {
            connection.write_all(b"PRI * HT").await.unwrap();
        }
        silent.push(connection);
    }
    // Once they have been sent away.
    eventually("a place", async || {
        waybill.place(order_of("customer", "request", vec![item("widget", 1)])).await.ok()
    })
    .await;
    let mut greeting = Vec::new();
    // How it ends, in order or by a reset, is all the same.
    drop(timeout(PATIENCE, silent[0].read_to_end(&mut greeting)).await.expect("an end in time"));
}

#[tokio::test]
async fn a_gateway_does_not_wait_for_silent_clients_when_it_stops() {
    let mut waybill = Deployment::start_with(Options { replicas: 0, ..Options::default() }).await;
    let _silent = TcpStream::connect(&waybill.gateway.grpc_addr).await.unwrap();
    waybill.place(order_of("customer", "request", vec![item("widget", 1)])).await.unwrap();
    // Far less than a silent client has, and than the drain may take.
    let ended = timeout(Duration::from_secs(8), waybill.gateway.process.stop()).await;
    assert!(ended.expect("an end without waiting").success());
}
