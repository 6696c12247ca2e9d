//! Requests that are refused before a gRPC handler sees them: who speaks gRPC gets a gRPC status.

use std::net::IpAddr;

use harness::{Deployment, Options, item, order_of};
use http::Method;
use http_body_util::{BodyExt, Full};
use prost::Message;
use proto::operations::v1::ListDeadLettersRequest;
use proto::orders::v1::GetOrderRequest;
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;
use tower::{Service, ServiceExt};

use crate::http2::{ABUSER, grpc_message};

/// Beyond what a call may have, and within what is read.
const LARGE_BYTES: [usize; 2] = [17_000, 60_000];

async fn gateway_only() -> Deployment {
    Deployment::start_with(Options { replicas: 0, ..Options::default() }).await
}

/// Metadata as browsers' proxies add them: several values of some kilobytes.
pub(crate) fn with_metadata<T>(message: T, bytes: usize) -> Request<T> {
    const VALUE_BYTES: usize = 4_000;
    let mut request = Request::new(message);
    for i in 0..bytes.div_ceil(VALUE_BYTES) {
        let name = tonic::metadata::MetadataKey::from_bytes(format!("x-cookie-{i}").as_bytes()).unwrap();
        request
            .metadata_mut()
            .insert(name, "c".repeat(VALUE_BYTES.min(bytes - i * VALUE_BYTES)).parse().unwrap());
    }
    request
}

fn too_large(status: &Status) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert_eq!(status.get_details_error_info().unwrap().reason, "METADATA_TOO_LARGE");
    assert!(status.get_details_retry_info().is_none(), "the same call would be refused again");
    assert!(status.message().contains("16384"), "{status:?}");
}

#[tokio::test]
async fn metadata_beyond_the_limit_is_refused_with_a_status_and_the_connection_goes_on() {
    let waybill = gateway_only().await;
    let order = waybill.place(order_of("ada", "", vec![item("widget", 1)])).await.unwrap();
    let get = GetOrderRequest { order_id: order.order_id };
    let mut client = waybill.client().await;
    let mut operations = waybill.operations();
    for bytes in LARGE_BYTES {
        // More often than a client may be at fault on one connection.
        for _ in 0..300 {
            too_large(&client.get_order(with_metadata(get.clone(), bytes)).await.unwrap_err());
        }
        client.get_order(get.clone()).await.unwrap();
        let list = ListDeadLettersRequest::default();
        too_large(&operations.list_dead_letters(with_metadata(list, bytes)).await.unwrap_err());
    }
    client.get_order(with_metadata(get, 15_000)).await.unwrap();
}

/// HTTP's status of the answer, and gRPC's if there is one.
async fn answer(
    channel: &Channel,
    method: Method,
    path: &str,
    content_type: &[&str],
) -> (u16, Option<Status>) {
    let request = GetOrderRequest { order_id: "none".to_owned() };
    let body = Body::new(Full::from(grpc_message(&request.encode_to_vec())));
    let mut request = http::Request::builder().method(method).uri(format!("http://gateway{path}"));
    for content_type in content_type {
        request = request.header("content-type", *content_type);
    }
    let request = request.header("te", "trailers").body(body).unwrap();
    let mut channel = channel.clone();
    let response = channel.ready().await.unwrap().call(request).await.unwrap();
    let (head, body) = response.into_parts();
    let trailers = body.collect().await.unwrap().trailers().cloned().unwrap_or_default();
    let status = Status::from_header_map(&head.headers).or_else(|| Status::from_header_map(&trailers));
    (head.status.as_u16(), status)
}

#[tokio::test]
async fn who_speaks_grpc_is_answered_in_grpc_and_who_does_not_in_http() {
    const GRPC: &[&str] = &["application/grpc"];
    let waybill = gateway_only().await;
    let addresses = [
        (&waybill.gateway.grpc_addr, "/orders.v1.OrderService/GetOrder"),
        (&waybill.gateway.operations_addr, "/operations.v1.DeadLetterService/GetDeadLetter"),
    ];
    for (addr, path) in addresses {
        let endpoint = Channel::from_shared(format!("http://{addr}")).unwrap();
        let channel = endpoint.local_address(Some(IpAddr::V4(ABUSER))).connect().await.unwrap();
        let code = async |method, path: &str, content_type| {
            let (http, status) = answer(&channel, method, path, content_type).await;
            (http, status.map(|status| status.code()))
        };
        assert_eq!(code(Method::POST, path, GRPC).await, (200, Some(Code::InvalidArgument)));
        for (method, path) in [
            (Method::POST, "/"),
            (Method::POST, "/nope"),
            (Method::POST, "/nope.Service/Method"),
            (Method::POST, &format!("{path}s")),
            (Method::POST, &format!("{path}/more")),
        ] {
            assert_eq!(code(method, path, GRPC).await, (200, Some(Code::Unimplemented)), "{path}");
        }
        // Not so that a request that anybody may repeat, or store the answer of, changes something.
        for method in [Method::GET, Method::PUT, Method::DELETE, Method::OPTIONS] {
            let (http, status) = answer(&channel, method.clone(), path, GRPC).await;
            let status = status.unwrap_or_else(|| panic!("{http} and no status for {method}"));
            assert_eq!((http, status.code()), (200, Code::InvalidArgument), "{method}");
            assert_eq!(status.get_details_error_info().unwrap().reason, "MALFORMED_REQUEST");
        }
        // Browsers send some of these for any page, without asking, and with the client's certificate.
        let others: [&[&str]; 5] = [
            &[],
            &["text/plain"],
            &["application/json"],
            &["application/grpcx"],
            &["application/grpc", "text/plain"],
        ];
        for content_type in others {
            assert_eq!(code(Method::POST, path, content_type).await, (415, None), "{content_type:?}");
        }
    }
}
