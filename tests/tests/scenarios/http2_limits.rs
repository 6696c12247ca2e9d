//! The limits that the servers hand to the library that speaks HTTP, each by what it does on the wire, at both addresses.

use futures::{future, stream};
use harness::{Deployment, Options, PATIENCE};
use proto::operations::v1::GetDeadLetterRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::Channel;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

use crate::below_grpc::with_metadata;
use crate::http2::{
    ACK, END_HEADERS, Frame, HEADERS, PING, RST_STREAM, Raw, SETTINGS, call_headers_of, frame, header,
    stream_ids,
};

const WATCH: &str = "/grpc.health.v1.Health/Watch";
/// Settings of RFC 9113, section 6.5.2.
const MAX_CONCURRENT_STREAMS: u16 = 3;
const MAX_HEADER_LIST_SIZE: u16 = 6;
/// Error codes of RFC 9113, section 7.
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

async fn gateway_only() -> Deployment {
    Deployment::start_with(Options { replicas: 0, ..Options::default() }).await
}

fn addresses(waybill: &Deployment) -> [&str; 2] {
    [&waybill.gateway.grpc_addr, &waybill.gateway.operations_addr]
}

/// The next frame of this type.
async fn next_of(raw: &mut Raw, kind: u8) -> Frame {
    loop {
        let frame = raw.next_of_client().await.expect("an open connection");
        if frame.kind == kind {
            return frame;
        }
    }
}

/// The error that the gateway closes the connection with.
async fn goaway_code(raw: &mut Raw) -> u32 {
    loop {
        let frame = raw.next_of_client().await.expect("a GOAWAY before the end");
        if let Some(code) = frame.goaway_code() {
            return code;
        }
    }
}

fn open(stream_id: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream_id, &call_headers_of(WATCH))
}

#[tokio::test]
async fn a_client_that_answers_no_ping_is_dropped() {
    let waybill = gateway_only().await;
    future::join_all(addresses(&waybill).map(async |addr| {
        let mut raw = Raw::greet(addr).await;
        let mut is_asked = false;
        let ending = async {
            while let Some(frame) = raw.next_silently().await {
                is_asked |= frame.kind == PING && frame.flags & ACK == 0;
            }
        };
        timeout(PATIENCE, ending).await.expect("an end in time");
        assert!(is_asked, "dropped without a ping");
    }))
    .await;
}

#[tokio::test]
async fn a_connection_has_so_many_streams_and_the_next_one_is_refused() {
    let waybill = gateway_only().await;
    for (addr, streams_max) in addresses(&waybill).into_iter().zip([1_024, 64]) {
        let mut raw = Raw::greet(addr).await;
        let settings = next_of(&mut raw, SETTINGS).await;
        assert_eq!(settings.setting(MAX_CONCURRENT_STREAMS), Some(streams_max));
        let opened: Vec<u8> = stream_ids().take(streams_max as usize + 1).flat_map(open).collect();
        assert!(raw.write(&opened).await);
        let refused = next_of(&mut raw, RST_STREAM).await;
        assert_eq!(refused.stream_id, 2 * streams_max + 1, "the last one");
        assert_eq!(refused.payload, REFUSED_STREAM.to_be_bytes());
    }
}

#[tokio::test]
async fn headers_that_are_not_even_read_are_refused_by_http() {
    let waybill = gateway_only().await;
    for addr in addresses(&waybill) {
        let mut raw = Raw::greet(addr).await;
        let settings = next_of(&mut raw, SETTINGS).await;
        assert_eq!(settings.setting(MAX_HEADER_LIST_SIZE), Some(64 * 1024));
        let endpoint = Channel::from_shared(format!("http://{addr}")).unwrap();
        let mut client =
            tonic_health::pb::health_client::HealthClient::new(endpoint.connect().await.unwrap());
        let request = || tonic_health::pb::HealthCheckRequest::default();
        let status = client.check(with_metadata(request(), 70_000)).await.unwrap_err();
        assert_eq!(status.code(), Code::Unknown, "{status:?}");
        assert!(status.message().contains("431"), "{status:?}");
        client.check(request()).await.expect("an answer on the same connection");
    }
}

#[tokio::test]
async fn a_client_that_opens_and_resets_streams_is_asked_to_calm_down() {
    const RESETS: usize = 2_000;
    let waybill = gateway_only().await;
    for addr in addresses(&waybill) {
        let mut raw = Raw::greet(addr).await;
        let reset = |id| frame(RST_STREAM, 0, id, &8_u32.to_be_bytes());
        let flood: Vec<u8> =
            stream_ids().take(RESETS).flat_map(|id| [open(id), reset(id)].concat()).collect();
        raw.write(&flood).await;
        assert_eq!(goaway_code(&mut raw).await, ENHANCE_YOUR_CALM);
    }
}

#[tokio::test]
async fn a_client_whose_streams_are_all_at_fault_is_asked_to_calm_down() {
    const FAULTS: usize = 257;
    let waybill = gateway_only().await;
    for addr in addresses(&waybill) {
        let mut raw = Raw::greet(addr).await;
        // No header of HTTP/2 (RFC 9113, section 8.2.2).
        let mut block = call_headers_of(WATCH);
        block.extend(header("connection", "close"));
        let faults: Vec<u8> =
            stream_ids().take(FAULTS).flat_map(|id| frame(HEADERS, END_HEADERS, id, &block)).collect();
        raw.write(&faults).await;
        assert_eq!(goaway_code(&mut raw).await, ENHANCE_YOUR_CALM);
    }
}

#[tokio::test]
async fn http_1_is_spoken_where_web_pages_call_and_its_heads_have_to_come() {
    let waybill = gateway_only().await;
    // More than is awaited of a client that says nothing, and less than a whole head.
    let half = b"POST /orders.v1.OrderService/GetOrder HTTP/1.1\r\nhost: gateway\r\nx-slow: ";
    let whole = b"POST /operations.v1.DeadLetterService/GetDeadLetter HTTP/1.1\r\nhost: gateway\r\n\r\n";
    let ended = async |addr: &str, said: &[u8]| {
        let mut connection = TcpStream::connect(addr).await.unwrap();
        connection.write_all(said).await.unwrap();
        let mut answer = Vec::new();
        // How it ends, in order or by a reset, is all the same.
        drop(timeout(PATIENCE, connection.read_to_end(&mut answer)).await.expect("an end in time"));
        String::from_utf8_lossy(&answer).into_owned()
    };
    let [orders, operators] = addresses(&waybill);
    let (half, whole) = future::join(ended(orders, half), ended(operators, whole)).await;
    assert!(half.is_empty() || half.starts_with("HTTP/1.1 408"), "{half}");
    assert!(!whole.contains("HTTP/1.1"), "{whole}");
}

#[tokio::test]
async fn requests_beyond_their_size_are_refused_at_the_operators_address_and_by_reflection() {
    const OPERATORS_BYTES_MAX: usize = 128 * 1024;
    const REFLECTION_BYTES_MAX: usize = 4 * 1024;
    let waybill = gateway_only().await;
    let too_long = GetDeadLetterRequest { dead_letter_id: "d".repeat(OPERATORS_BYTES_MAX) };
    let status = waybill.operations().get_dead_letter(too_long).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    assert!(status.message().contains(&OPERATORS_BYTES_MAX.to_string()), "{status:?}");

    for channel in [waybill.channel(), waybill.operations_channel()] {
        let symbol = MessageRequest::FileContainingSymbol("s".repeat(REFLECTION_BYTES_MAX));
        let request = ServerReflectionRequest { message_request: Some(symbol), ..Default::default() };
        let mut client = ServerReflectionClient::new(channel);
        let mut answers = client.server_reflection_info(stream::iter([request])).await.unwrap().into_inner();
        let status = answers.message().await.unwrap_err();
        assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    }
}
