//! A connection that has reached MAX_CONNECTION_AGE: its client is asked to open another one (GOAWAY), calls and
//! streams that are open go on until the grace is over, and no unary call fails.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures::future::{join, join_all};
use harness::{Deployment, Gateway, Options, PATIENCE, item, order_of};
use prost::Message;
use proto::operations::v1::ListDeadLettersRequest;
use proto::orders::v1::{GetOrderRequest, WatchOrderRequest};
use tokio::time::timeout;
use tonic_health::pb::HealthCheckRequest;

use crate::http2::{
    DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, Raw, WINDOW_UPDATE, call_headers,
    call_headers_of, frame, grpc_message, stream_ids,
};

const NO_ERROR: u32 = 0;

async fn gateway_of_age(age: &str, grace: &str) -> Deployment {
    let gateway =
        vec![("MAX_CONNECTION_AGE", age.to_owned()), ("MAX_CONNECTION_AGE_GRACE", grace.to_owned())];
    Deployment::start_with(Options { replicas: 0, gateway, ..Options::default() }).await
}

/// Begins a stream on the connection's first stream id: nothing ends it but its caller or the gateway.
async fn open_stream(raw: &mut Raw, headers: &[u8], request: &impl Message) {
    let message = grpc_message(&request.encode_to_vec());
    assert!(raw.write(&frame(HEADERS, END_HEADERS, 1, headers)).await);
    assert!(raw.write(&frame(DATA, END_STREAM, 1, &message)).await);
}

/// Reads until the gateway has sent GOAWAY, and says whether that came before the end of the connection.
async fn is_asked_to_leave(raw: &mut Raw) -> bool {
    let asked = async {
        while let Some(frame) = raw.next_of_client().await {
            if frame.kind == GOAWAY {
                return frame.goaway_code() == Some(NO_ERROR);
            }
        }
        false
    };
    timeout(PATIENCE, asked).await.expect("a GOAWAY or an end")
}

#[tokio::test]
async fn an_old_connection_gets_a_goaway_and_its_stream_goes_on_until_the_grace_is_over() {
    let waybill = gateway_of_age("1s", "8s").await;
    let order = waybill.place(order_of("ada", "", vec![item("widget", 1)])).await.unwrap();
    let mut raw = Raw::greet(&waybill.gateway.grpc_addr).await;
    let watch = WatchOrderRequest { order_id: order.order_id.clone(), after_revision: 0 };
    open_stream(&mut raw, &call_headers("WatchOrder"), &watch).await;
    assert!(is_asked_to_leave(&mut raw).await, "closed without a GOAWAY");

    // The stream still says what happens.
    waybill.cancel(&order.order_id).await.unwrap();
    let mut is_told = false;
    while let Some(frame) = raw.next_of_client().await {
        is_told |= frame.kind == DATA && frame.stream_id == 1;
    }
    // And the connection has ended, its stream still open: the order owes an undo that no processor does.
    assert!(is_told, "closed before the stream was told of the cancel");
}

#[tokio::test]
async fn the_operators_connections_grow_old_too() {
    let waybill = gateway_of_age("1s", "2s").await;
    let mut raw = Raw::greet(&waybill.gateway.operations_addr).await;
    let watch = HealthCheckRequest::default();
    open_stream(&mut raw, &call_headers_of("/grpc.health.v1.Health/Watch"), &watch).await;
    assert!(is_asked_to_leave(&mut raw).await, "closed without a GOAWAY");
    while raw.next_of_client().await.is_some() {}
}

#[tokio::test]
async fn connections_without_an_open_call_end_at_their_age() {
    let waybill = gateway_of_age("1s", "1h").await;
    let mut raw = Raw::greet(&waybill.gateway.grpc_addr).await;
    assert!(is_asked_to_leave(&mut raw).await, "closed without a GOAWAY");
    // Without waiting for the grace.
    while raw.next_of_client().await.is_some() {}
}

#[tokio::test]
async fn connections_that_were_opened_together_do_not_end_together() {
    const CONNECTIONS: usize = 20;
    let waybill = gateway_of_age("5s", "1h").await;
    let ends = join_all((0..CONNECTIONS).map(async |_| {
        let mut raw = Raw::greet(&waybill.gateway.grpc_addr).await;
        let opened = Instant::now();
        assert!(is_asked_to_leave(&mut raw).await, "closed without a GOAWAY");
        opened.elapsed()
    }))
    .await;
    let (first, last) = (ends.iter().min().unwrap(), ends.iter().max().unwrap());
    // A tenth of 5 s each way: twenty within a fifth of that are no chance.
    assert!(*last - *first > Duration::from_millis(200), "all between {first:?} and {last:?}");
}

/// Calls made on one connection after the other, some of them at a time, as a client does that keeps to RFC 9113: after a
/// GOAWAY it opens no stream on that connection, and takes the answers that are on their way. (One made of tonic 0.14
/// fails a call that it has not sent yet, with CANCELLED: no server can help that.)
async fn calls_until(until: Instant, addr: &str, call: &[u8], path: &str) -> usize {
    const AT_ONCE: usize = 8;
    let mut answered = 0;
    while Instant::now() < until {
        let mut raw = Raw::greet(addr).await;
        // All answers together may be as large as they like.
        assert!(raw.write(&frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes())).await);
        let (mut stream_ids, mut open) = (stream_ids(), HashSet::new());
        let mut is_asked = false;
        loop {
            while open.len() < AT_ONCE && !is_asked {
                let id = stream_ids.next().unwrap();
                assert!(raw.write(&frame(HEADERS, END_HEADERS, id, &call_headers_of(path))).await, "cut");
                assert!(raw.write(&frame(DATA, END_STREAM, id, call)).await, "cut");
                open.insert(id);
            }
            if open.is_empty() {
                break;
            }
            let Some(frame) = raw.next_of_client().await else { panic!("cut with calls open: {open:?}") };
            assert_ne!(frame.kind, RST_STREAM, "{frame:?}");
            assert!(frame.goaway_code().is_none_or(|code| code == NO_ERROR), "{frame:?}");
            is_asked |= frame.kind == GOAWAY;
            if frame.kind == HEADERS && frame.flags & END_STREAM != 0 {
                assert!(open.remove(&frame.stream_id));
                answered += 1;
            }
        }
    }
    answered
}

#[tokio::test]
async fn no_unary_call_fails_while_connections_grow_old() {
    let waybill = gateway_of_age("1s", "5s").await;
    let order = waybill.place(order_of("ada", "", vec![item("widget", 1)])).await.unwrap();
    let get = grpc_message(&GetOrderRequest { order_id: order.order_id }.encode_to_vec());
    let list = grpc_message(&ListDeadLettersRequest::default().encode_to_vec());
    let until = Instant::now() + Duration::from_secs(8);
    let Gateway { grpc_addr, operations_addr, .. } = &waybill.gateway;
    let answered = join(
        calls_until(until, grpc_addr, &get, "/orders.v1.OrderService/GetOrder"),
        calls_until(until, operations_addr, &list, "/operations.v1.DeadLetterService/ListDeadLetters"),
    )
    .await;
    eprintln!("{answered:?} calls, all of them answered");
}
