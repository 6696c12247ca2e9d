//! What asks nobody who they are: health, reflection and the HTTP port. Whoever holds on to them keeps nobody from
//! an answer.

use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use harness::{Deployment, Options, PATIENCE, eventually, health};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use proto::operations::v1::ListDeadLettersRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;
use tower::{Service, ServiceExt};

use crate::http2::Raw;

/// More than there are places for, from addresses each of which has a share of 1,024.
const ADDRESSES: u8 = 9;
const WATCHES: usize = 1_000;
/// As many connections as the operators' address takes, and more than the HTTP port does.
const OPERATORS: usize = 64;
const HTTP_CONNECTIONS: usize = 300;

async fn gateway_only() -> Deployment {
    Deployment::start_with(Options { replicas: 0, ..Options::default() }).await
}

fn endpoint(addr: &str) -> Endpoint {
    Channel::from_shared(format!("http://{addr}")).unwrap()
}

#[tokio::test]
async fn health_checks_are_answered_however_many_watches_are_open() {
    let waybill = gateway_only().await;
    let mut open = Vec::new();
    for last in 1..=ADDRESSES {
        let endpoint = endpoint(&waybill.gateway.grpc_addr);
        let endpoint = endpoint.local_address(Some(Ipv4Addr::new(127, 0, 1, last).into()));
        let channel = endpoint.connect().await.unwrap();
        let watches = stream::iter(0..WATCHES).map(|_| {
            let mut client = HealthClient::new(channel.clone());
            async move { client.watch(HealthCheckRequest::default()).await }
        });
        open.extend(watches.buffer_unordered(100).collect::<Vec<_>>().await);
    }
    let refused = open.iter().filter(|watch| watch.is_err()).count();
    eprintln!("{} watches, {refused} refused", open.len());
    assert!(refused > 0, "there is a place left");
    assert_eq!(waybill.gateway.health("").await, Some(ServingStatus::Serving));
    let more = HealthClient::new(waybill.channel()).watch(HealthCheckRequest::default()).await;
    assert_eq!(more.unwrap_err().get_details_error_info().unwrap().reason, "OVERLOADED");
    drop(open);
    assert_eq!(waybill.http("/livez").await.0, 200);
}

/// What a health check is answered whose request is this.
async fn check(channel: &Channel, body: Body) -> Status {
    let request = http::Request::post("http://gateway/grpc.health.v1.Health/Check")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap();
    let mut channel = channel.clone();
    let answering = async {
        let response = channel.ready().await.unwrap().call(request).await.unwrap();
        let (head, body) = response.into_parts();
        let trailers = match Status::from_header_map(&head.headers) {
            Some(status) => return status,
            None => body.collect().await.unwrap().trailers().cloned().unwrap_or_default(),
        };
        Status::from_header_map(&trailers).unwrap()
    };
    timeout(PATIENCE, answering).await.expect("an answer in time")
}

#[tokio::test]
async fn a_health_check_whose_request_has_no_end_is_refused() {
    let waybill = gateway_only().await;
    let channel = endpoint(&waybill.gateway.grpc_addr).connect().await.unwrap();
    // Empty messages again and again, not so fast that the connection counts as abused.
    let messages = stream::unfold((), async |()| {
        sleep(Duration::from_millis(1)).await;
        Some((Ok::<_, Status>(Frame::data(Bytes::from_static(&[0; 1_025]))), ()))
    });
    let endless = Body::new(StreamBody::new(messages));
    assert_eq!(check(&channel, endless).await.code(), Code::OutOfRange);
    let silent = Body::new(StreamBody::new(stream::pending::<Result<Frame<Bytes>, Status>>()));
    assert_eq!(check(&channel, silent).await.code(), Code::DeadlineExceeded);
    assert_eq!(health(channel, "").await, Some(ServingStatus::Serving));
}

#[tokio::test]
async fn connections_that_show_no_credential_do_not_keep_operators_out() {
    let waybill = gateway_only().await;
    let mut silent = Vec::new();
    for _ in 0..OPERATORS {
        // A client that answers pings, and says nothing.
        silent.push(endpoint(&waybill.gateway.operations_addr).connect().await.unwrap());
    }
    let mut operator = waybill.operations();
    let listed = operator.list_dead_letters(ListDeadLettersRequest::default());
    timeout(PATIENCE, listed).await.expect("an answer in time").unwrap();
    drop(silent);
}

#[tokio::test]
async fn half_requests_do_not_keep_probes_out() {
    let waybill = gateway_only().await;
    let mut half = Vec::new();
    for _ in 0..HTTP_CONNECTIONS {
        let mut connection = TcpStream::connect(&waybill.gateway.ops_addr).await.unwrap();
        connection.write_all(b"GET /livez HTTP/1.1\r\nx-slow: ").await.unwrap();
        half.push(connection);
    }
    assert_eq!(waybill.http("/livez").await.0, 200);
    assert_eq!(waybill.http("/readyz").await.0, 200);
    // The oldest had to make room.
    let mut nothing = Vec::new();
    drop(timeout(PATIENCE, half[0].read_to_end(&mut nothing)).await.expect("an end in time"));
    // The youngest has a time of its own.
    drop(
        timeout(PATIENCE, half[HTTP_CONNECTIONS - 1].read_to_end(&mut nothing))
            .await
            .expect("an end in time"),
    );
}

#[tokio::test]
async fn what_asks_for_no_credential_does_not_hold_up_a_gateway_that_stops() {
    // Nobody waits as long as this.
    let gateway = vec![("DRAIN_TIMEOUT", "1h".to_owned())];
    let mut waybill = Deployment::start_with(Options { replicas: 0, gateway, ..Options::default() }).await;
    let mut watches = Vec::new();
    for addr in [&waybill.gateway.grpc_addr, &waybill.gateway.operations_addr] {
        let channel = endpoint(addr).connect().await.unwrap();
        let mut watch =
            HealthClient::new(channel).watch(HealthCheckRequest::default()).await.unwrap().into_inner();
        // Each port is told a moment after the other.
        while watch.message().await.unwrap().unwrap().status() != ServingStatus::Serving {}
        watches.push(watch);
    }
    let mut reflecting = Vec::new();
    for addr in [&waybill.gateway.grpc_addr, &waybill.gateway.operations_addr] {
        let mut raw = Raw::greet(addr).await;
        raw.begin("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo").await;
        raw.all_read().await;
        reflecting.push(raw);
    }
    let mut half = TcpStream::connect(&waybill.gateway.grpc_addr).await.unwrap();
    half.write_all(b"POST /orders.v1.OrderService/GetOrder HTTP/1.1\r\nx-slow: ").await.unwrap();
    // The gateway has read what came before.
    eventually("an answer", async || waybill.gateway.health("").await).await;

    assert!(waybill.gateway.process.stop().await.success());
    for mut watch in watches {
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        let status = watch.message().await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert_eq!(status.get_details_error_info().unwrap().reason, "DRAINING");
    }
}
