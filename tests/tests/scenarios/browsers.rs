//! gRPC-Web: what a page in a browser sends over HTTP/1.1, and what it gets.

use harness::{Deployment, Gateway, Options};
use prost::Message;
use proto::orders::v1::{CreateOrderRequest, CreateOrderResponse, OrderStatus};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PATH: &str = "/orders.v1.OrderService/CreateOrder";
const ORIGIN: &str = "https://shop.example.org";

async fn with_origins(origins: &str) -> Deployment {
    let gateway = vec![("CORS_ALLOWED_ORIGINS", origins.to_owned())];
    Deployment::start_with(Options { replicas: 0, gateway, ..Options::default() }).await
}

/// One request, and the whole answer: head in lower case, and body.
async fn exchange(
    gateway: &Gateway,
    method: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> (String, Vec<u8>) {
    let mut connection = TcpStream::connect(&gateway.grpc_addr).await.unwrap();
    let mut head = format!("{method} {PATH} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    connection.write_all(head.as_bytes()).await.unwrap();
    connection.write_all(body).await.unwrap();
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a whole head");
    (String::from_utf8(answer[..end].to_vec()).unwrap().to_lowercase(), answer[end + 4..].to_vec())
}

/// A message as gRPC frames it.
fn frame(message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend(message);
    frame
}

#[tokio::test]
async fn a_page_of_an_allowed_origin_can_order() {
    let waybill = with_origins(ORIGIN).await;
    let request = harness::order_of("ada", "r-1", vec![harness::item("widget", 1)]);
    let headers = [("origin", ORIGIN), ("content-type", "application/grpc-web+proto"), ("x-grpc-web", "1")];
    let (head, body) = exchange(&waybill.gateway, "POST", &headers, &frame(&request)).await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(head.contains(&format!("access-control-allow-origin: {ORIGIN}")), "{head}");
    assert!(head.contains("grpc-status-details-bin"), "details can be read: {head}");

    let text = String::from_utf8_lossy(&body);
    assert!(text.contains("grpc-status:0"), "trailers are in the body: {text:?}");
    // The answer may be in chunks: the message begins behind the frame's five bytes.
    let start = body.windows(2).position(|window| window == b"\r\n").unwrap() + 2;
    let length = u32::from_be_bytes(body[start + 1..start + 5].try_into().unwrap()) as usize;
    let response = CreateOrderResponse::decode(&body[start + 5..start + 5 + length]).unwrap();
    assert_eq!(response.order.unwrap().status(), OrderStatus::Accepted);
}

#[tokio::test]
async fn a_refusal_reaches_a_page_with_its_details() {
    let waybill = with_origins(ORIGIN).await;
    let headers = [("origin", ORIGIN), ("content-type", "application/grpc-web+proto")];
    let (head, _) =
        exchange(&waybill.gateway, "POST", &headers, &frame(&CreateOrderRequest::default())).await;
    assert!(head.contains("grpc-status: 3") && head.contains("grpc-status-details-bin: "), "{head}");
}

#[tokio::test]
async fn other_pages_may_not_call() {
    let preflight = |origin| {
        [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "content-type,x-grpc-web"),
        ]
    };
    let waybill = with_origins(ORIGIN).await;
    let (head, _) = exchange(&waybill.gateway, "OPTIONS", &preflight(ORIGIN), b"").await;
    assert!(head.starts_with("http/1.1 200") && head.contains("access-control-allow-origin"), "{head}");
    let (head, _) = exchange(&waybill.gateway, "OPTIONS", &preflight("https://evil.example.org"), b"").await;
    assert!(!head.contains("access-control-allow-origin"), "{head}");

    let closed = Deployment::start_with(Options { replicas: 0, ..Options::default() }).await;
    let (head, _) = exchange(&closed.gateway, "OPTIONS", &preflight(ORIGIN), b"").await;
    assert!(!head.contains("access-control-allow-origin"), "{head}");
}
