use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use program::trace::{self, FutureExt, SpanContext, TRACEPARENT, TRACESTATE};
use proto::orders::v1::Money;
use proto::payments::v1 as payments;
use proto::payments::v1::payment_service_server::{PaymentService, PaymentServiceServer};
use proto::payments::v1::{
    AlreadyRefunded, CaptureResponse, Captured, Declined, NothingCaptured, RefundResponse, Refunded,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::*;
use crate::remote::{CALLS_MAX, TEXT_CHARS_MAX};

const LONG: Duration = Duration::from_secs(60);
const TOKEN: &str = "tok_4242";

fn remote(endpoint: Endpoint, call_timeout: Duration, answer_timeout: Duration) -> Remote {
    Remote::new(endpoint, CredentialFiles::default(), call_timeout, answer_timeout).unwrap()
}

/// Gives the answers of a test in turn; after them none.
#[derive(Clone, Default)]
struct Script {
    captures: Arc<Mutex<VecDeque<Result<CaptureResponse, Status>>>>,
    refunds: Arc<Mutex<VecDeque<Result<RefundResponse, Status>>>>,
    seen: Arc<Mutex<Vec<CaptureRequest>>>,
    traces: Arc<Mutex<Vec<Option<SpanContext>>>>,
}

#[tonic::async_trait]
impl PaymentService for Script {
    async fn capture(&self, request: Request<CaptureRequest>) -> Result<Response<CaptureResponse>, Status> {
        assert!(request.metadata().contains_key("grpc-timeout"));
        let all = |key| request.metadata().get_all(key).into_iter().map(|value| value.as_encoded_bytes());
        let trace = trace::extract(all(TRACEPARENT), all(TRACESTATE));
        self.traces.lock().unwrap().push(trace);
        self.seen.lock().unwrap().push(request.into_inner());
        let answer = self.captures.lock().unwrap().pop_front();
        match answer {
            Some(answer) => answer.map(Response::new),
            None => std::future::pending().await,
        }
    }

    async fn refund(&self, _: Request<RefundRequest>) -> Result<Response<RefundResponse>, Status> {
        let answer = self.refunds.lock().unwrap().pop_front();
        match answer {
            Some(answer) => answer.map(Response::new),
            None => std::future::pending().await,
        }
    }
}

impl Script {
    async fn serve(self) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let server = Server::builder().add_service(PaymentServiceServer::new(self));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Endpoint::from_shared(format!("http://{addr}")).unwrap()
    }
}

async fn serving_captures(answers: Vec<Result<CaptureResponse, Status>>) -> (Remote, Script) {
    let script = Script { captures: Arc::new(Mutex::new(answers.into())), ..Script::default() };
    (remote(script.clone().serve().await, LONG, LONG), script)
}

fn euros(minor_units: i64) -> Money {
    Money { currency_code: "EUR".to_owned(), minor_units }
}

async fn capture(remote: &Remote) -> Result<String, CaptureError> {
    let amount = &euros(350);
    let (idempotency_key, order_id, customer_id) = ("k", "order", "ada");
    let capture = Capture { idempotency_key, order_id, customer_id, amount, payment_method: TOKEN };
    remote.capture(capture).await
}

fn outcome(outcome: capture_response::Outcome) -> Result<CaptureResponse, Status> {
    Ok(CaptureResponse { outcome: Some(outcome) })
}

fn captured(payment_id: &str) -> Result<CaptureResponse, Status> {
    outcome(capture_response::Outcome::Captured(Captured { payment_id: payment_id.to_owned() }))
}

#[tokio::test]
async fn every_call_carries_the_orders_trace() {
    let answers = vec![captured("p-1"), Err(Status::unavailable("away")), captured("p-1")];
    let (remote, script) = serving_captures(answers).await;
    capture(&remote).await.unwrap();
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let order = trace::extract([parent.as_bytes()], [&b"congo=t61rcWkgMzE"[..]]).unwrap();
    capture(&remote).with_context(trace::remote(order.clone())).await.unwrap();
    let traces = script.traces.lock().unwrap();
    let none = traces[0].clone().unwrap();
    assert_ne!(none.trace_id(), order.trace_id(), "made for no order");
    // While no spans are exported, it passes through unchanged.
    assert_eq!(traces[1..], [Some(order.clone()), Some(order)]);
}

#[tokio::test]
async fn a_transient_error_is_retried_as_the_same_call() {
    let answers = vec![Err(Status::unavailable("away")), Err(Status::aborted("busy")), captured("p-1")];
    let (remote, script) = serving_captures(answers).await;
    assert_eq!(capture(&remote).await.unwrap(), "p-1");
    let seen = script.seen.lock().unwrap();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|request| *request == seen[0] && request.order_id == "order"));
}

#[tokio::test]
async fn an_outage_is_not_the_orders_fault_and_ends_after_some_calls() {
    let answers = vec![Err(Status::unavailable("away")); 10];
    let (remote, script) = serving_captures(answers).await;
    let error = capture(&remote).await.unwrap_err();
    assert!(matches!(&error, CaptureError::Provider(CallError::Unavailable(_))), "{error}");
    assert_eq!(script.seen.lock().unwrap().len() as u64, CALLS_MAX);
}

#[tokio::test]
async fn calls_without_a_server_or_an_answer_time_out() {
    let unbound = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let unbound = Endpoint::from_shared(format!("http://{unbound}")).unwrap();
    let (_, silent) = serving_captures(Vec::new()).await;
    for (endpoint, call) in [(unbound, LONG), (silent.serve().await, Duration::from_millis(20))] {
        let remote = remote(endpoint, call, Duration::from_millis(200));
        let error = capture(&remote).await.unwrap_err();
        assert!(matches!(&error, CaptureError::Provider(CallError::Unavailable(_))), "{error}");
    }
}

#[tokio::test]
async fn business_answers_are_answers() {
    let declined = Declined { message: "no".repeat(1000) };
    let (remote, script) = serving_captures(vec![
        outcome(capture_response::Outcome::Declined(declined)),
        outcome(capture_response::Outcome::AlreadyRefunded(AlreadyRefunded {})),
    ])
    .await;
    let declined = capture(&remote).await.unwrap_err();
    let CaptureError::Declined(message) = &declined else { panic!("{declined}") };
    assert_eq!(message.len(), TEXT_CHARS_MAX);
    assert!(matches!(capture(&remote).await, Err(CaptureError::Refunded)));
    assert_eq!(script.seen.lock().unwrap().len(), 2, "neither is repeated");
}

#[tokio::test]
async fn an_unusable_answer_is_distinguished_from_no_answer_and_not_retried() {
    for nonsense in [
        Ok(CaptureResponse { outcome: None }),
        captured(""),
        captured(&"p".repeat(TEXT_CHARS_MAX + 1)),
        captured(&"p".repeat(2 * ANSWER_BYTES_MAX)),
        Err(Status::already_exists("another amount")),
        Err(Status::invalid_argument("what?")),
        Err(Status::internal("panic")),
        Err(Status::unknown("")),
    ] {
        let (remote, script) = serving_captures(vec![nonsense.clone()]).await;
        let error = capture(&remote).await.unwrap_err();
        assert!(matches!(&error, CaptureError::Provider(CallError::Unusable(_))), "{nonsense:?} is {error}");
        assert_eq!(script.seen.lock().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn control_characters_are_rejected_or_replaced() {
    let declined = Declined { message: "\u{1b}[2J\u{202e}no\n".to_owned() };
    let (remote, _) = serving_captures(vec![
        captured("p\u{1b}]0;paid\u{7}"),
        outcome(capture_response::Outcome::Declined(declined)),
        Err(Status::internal("\u{9b}31m no")),
    ])
    .await;
    let error = capture(&remote).await.unwrap_err();
    assert!(matches!(&error, CaptureError::Provider(CallError::Unusable(_))), "{error}");
    let declined = capture(&remote).await.unwrap_err();
    assert_eq!(declined.to_string(), "declined: \u{fffd}[2J\u{fffd}no\u{fffd}");
    let internal = capture(&remote).await.unwrap_err();
    assert_eq!(internal.to_string(), "unusable answer: Internal: \u{fffd}31m no");
}

#[tokio::test]
async fn the_service_gets_the_payment_method_and_its_texts_lose_it() {
    let message = format!("{TOKEN} expired, and so did {TOKEN}");
    let (remote, script) = serving_captures(vec![
        outcome(capture_response::Outcome::Declined(Declined { message: message.clone() })),
        Err(Status::internal(format!("{}{message}", "x".repeat(TEXT_CHARS_MAX - 4)))),
    ])
    .await;
    let declined = capture(&remote).await.unwrap_err();
    assert_eq!(declined.to_string(), "declined: [payment_method] expired, and so did [payment_method]");
    let internal = capture(&remote).await.unwrap_err();
    assert!(internal.to_string().ends_with("x[pay"), "{internal}");
    assert!(script.seen.lock().unwrap().iter().all(|request| request.payment_method == TOKEN));
}

#[tokio::test]
async fn a_service_that_rejects_every_call_is_unavailable_and_not_retried_at_once() {
    for refusal in [Status::unauthenticated(""), Status::permission_denied(""), Status::unimplemented("")] {
        let (remote, script) = serving_captures(vec![Err(refusal)]).await;
        let error = capture(&remote).await.unwrap_err();
        assert!(matches!(&error, CaptureError::Provider(CallError::Unavailable(_))), "{error}");
        assert_eq!(script.seen.lock().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_refund_returns_its_reference_and_amount() {
    let refunded = |refund_id: &str, amount| {
        let refunded = Refunded { refund_id: refund_id.to_owned(), amount };
        Ok(RefundResponse { outcome: Some(refund_response::Outcome::Refunded(refunded)) })
    };
    let nothing = refund_response::Outcome::NothingCaptured(NothingCaptured {});
    let answers = [
        refunded("r-1", Some(to_payments(&euros(350)))),
        Ok(RefundResponse { outcome: Some(nothing) }),
        refunded("", Some(to_payments(&euros(350)))),
        refunded("r-1", None),
        refunded("r-1", Some(to_payments(&euros(-1)))),
        refunded("r-1", Some(payments::Money::default())),
        Ok(RefundResponse { outcome: None }),
    ];
    let script = Script { refunds: Arc::new(Mutex::new(answers.into())), ..Script::default() };
    let remote = remote(script.serve().await, LONG, LONG);
    let refund = Refund { refund_id: "r-1".to_owned(), amount: euros(350) };
    assert_eq!(remote.refund("k").await.unwrap(), Some(refund));
    assert_eq!(remote.refund("k").await.unwrap(), None);
    for _ in 0..5 {
        let error = remote.refund("k").await.unwrap_err();
        assert!(matches!(error, CallError::Unusable(_)), "{error}");
    }
}
