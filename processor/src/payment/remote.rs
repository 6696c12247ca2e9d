//! A payment provider in another process: `payments.v1.PaymentService`.

use std::error::Error;
use std::time::Duration;

use program::backoff::Backoff;
use program::trace::{self, attribute};
use proto::orders::v1::Money;
use proto::payments::v1::payment_service_client::PaymentServiceClient;
use proto::payments::v1::{self as payments, CaptureRequest, RefundRequest};
use proto::payments::v1::{capture_response, refund_response};
use tokio::time::{Instant, sleep, timeout};
use tonic::metadata::{AsciiMetadataKey, MetadataMap};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use tracing::field::Empty;
use tracing::{Instrument, Span, debug, info_span};

use super::provider::{Capture, CaptureError, NoAnswer, PaymentProvider, Refund};

/// Calls made for one attempt at an order. More of them would keep a worker from the orders that could go on.
const CALLS_MAX: u64 = 3;
const RETRY: Backoff = Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(1) };
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection with open calls may be silent before it is probed, and how long the probe may take. Not
/// probed while idle: servers take more than a ping in five minutes for abuse, unless there are calls.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// What the system does about a connection that is idle.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// An answer is a reference and an amount.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// References and messages go into the order's history.
const TEXT_CHARS_MAX: usize = 256;

/// The service at some address. Connects when it is first called, and again whenever the connection is lost.
#[derive(Clone, Debug)]
pub struct Remote {
    client: PaymentServiceClient<Channel>,
    /// Where it is, for spans.
    host: String,
    port: i64,
    call_timeout: Duration,
    /// For all calls together that are made for one answer.
    answer_timeout: Duration,
}

impl Remote {
    /// The service at `endpoint`. One call may take `call_timeout`, and a call with all its repeats
    /// `answer_timeout`.
    pub fn new(endpoint: Endpoint, call_timeout: Duration, answer_timeout: Duration) -> Self {
        let uri = endpoint.uri();
        let host = uri.host().unwrap_or_default().to_owned();
        let default_port = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let port = uri.port_u16().unwrap_or(default_port).into();
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(false)
            .tcp_keepalive(Some(TCP_KEEPALIVE))
            .tcp_nodelay(true)
            .connect_lazy();
        let client = PaymentServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        Self { client, host, port, call_timeout, answer_timeout }
    }

    /// Makes a call, and repeats it while that may help and there is time.
    async fn call<T: Clone, R>(
        &self,
        name: &'static str,
        order_id: &str,
        request: T,
        method: impl AsyncFn(PaymentServiceClient<Channel>, Request<T>) -> Result<Response<R>, Status>,
    ) -> Result<R, NoAnswer> {
        let deadline = Instant::now() + self.answer_timeout;
        let mut calls = 0;
        loop {
            let time = self.call_timeout.min(deadline - Instant::now());
            let mut request = Request::new(request.clone());
            // So that the service need not finish what nobody waits for.
            request.set_timeout(time);
            let span = self.calling(name, order_id);
            span.in_scope(|| pass_on(request.metadata_mut()));
            let called = timeout(time, method(self.client.clone(), request));
            let status = match called.instrument(span.clone()).await {
                Ok(Ok(response)) => {
                    answered(&span, Code::Ok);
                    return Ok(response.into_inner());
                }
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded(format!("not within {time:?}")),
            };
            answered(&span, status.code());
            trace::fail(&span, attribute::grpc_status(status.code().into()), &shortened(status.message()));
            drop(span);
            calls += 1;
            let pause = RETRY.after(calls);
            if calls == CALLS_MAX || !may_pass(&status) || Instant::now() + pause >= deadline {
                return Err(no_answer(&status));
            }
            debug!(code = ?status.code(), reason = status.message(), ?pause, "payment service called again");
            sleep(pause).await;
        }
    }
}

impl Remote {
    /// The span of one call.
    fn calling(&self, name: &'static str, order_id: &str) -> Span {
        info_span!(
            "call",
            otel.name = name,
            otel.kind = "client",
            rpc.system.name = "grpc",
            rpc.method = name,
            rpc.response.status_code = Empty,
            server.address = self.host,
            server.port = self.port,
            waybill.order.id = order_id,
        )
    }
}

/// Tells the service which trace the call belongs to.
fn pass_on(metadata: &mut MetadataMap) {
    trace::inject(|key, value| {
        // Both are made of what a header may hold.
        if let (Ok(key), Ok(value)) = (key.parse::<AsciiMetadataKey>(), value.parse()) {
            metadata.insert(key, value);
        }
    });
}

fn answered(span: &Span, code: Code) {
    span.record("rpc.response.status_code", attribute::grpc_status(code.into()));
}

impl PaymentProvider for Remote {
    async fn capture(&self, capture: Capture<'_>) -> Result<String, CaptureError> {
        let request = CaptureRequest {
            idempotency_key: capture.idempotency_key.to_owned(),
            order_id: capture.order_id.to_owned(),
            customer_id: capture.customer_id.to_owned(),
            amount: Some(to_payments(capture.amount)),
        };
        let call = async |mut client: PaymentServiceClient<_>, request| client.capture(request).await;
        let response =
            self.call("payments.v1.PaymentService/Capture", capture.order_id, request, call).await?;
        match response.outcome {
            Some(capture_response::Outcome::Captured(captured)) => {
                Ok(reference("payment_id", captured.payment_id)?)
            }
            Some(capture_response::Outcome::Declined(declined)) => {
                Err(CaptureError::Declined(shortened(&declined.message)))
            }
            Some(capture_response::Outcome::AlreadyRefunded(_)) => Err(CaptureError::Refunded),
            None => Err(unusable("a capture without an outcome").into()),
        }
    }

    async fn refund(&self, idempotency_key: &str) -> Result<Option<Refund>, NoAnswer> {
        let request = RefundRequest { idempotency_key: idempotency_key.to_owned() };
        let call = async |mut client: PaymentServiceClient<_>, request| client.refund(request).await;
        // The key begins with the order's id.
        let order_id = idempotency_key.rsplit_once('-').map_or(idempotency_key, |(order_id, _)| order_id);
        let response = self.call("payments.v1.PaymentService/Refund", order_id, request, call).await?;
        match response.outcome {
            Some(refund_response::Outcome::Refunded(refunded)) => {
                let amount = refunded.amount.ok_or_else(|| unusable("a refund without an amount"))?;
                Ok(Some(Refund {
                    refund_id: reference("refund_id", refunded.refund_id)?,
                    amount: from_payments(amount)?,
                }))
            }
            Some(refund_response::Outcome::NothingCaptured(_)) => Ok(None),
            None => Err(unusable("a refund without an outcome")),
        }
    }
}

/// Whether the same call may have another outcome in a moment.
fn may_pass(status: &Status) -> bool {
    // A status that our own side made up has the error of the connection as its source.
    status.source().is_some()
        || matches!(
            status.code(),
            Code::Unavailable
                | Code::DeadlineExceeded
                | Code::Cancelled
                | Code::Aborted
                | Code::ResourceExhausted
        )
}

/// What a call came to in the end. That we are not let in, or that there is no such service, is no fault of the
/// order either, though repeating it at once does not help.
fn no_answer(status: &Status) -> NoAnswer {
    let text = format!("{:?}: {}", status.code(), shortened(status.message()));
    let refused =
        matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented);
    if refused || may_pass(status) { NoAnswer::Unavailable(text) } else { NoAnswer::Unusable(text) }
}

fn unusable(what: &str) -> NoAnswer {
    NoAnswer::Unusable(what.to_owned())
}

fn reference(field: &str, text: String) -> Result<String, NoAnswer> {
    if !text.chars().all(is_plain) {
        return Err(unusable(&format!("a {field} with control characters")));
    }
    match text.chars().count() {
        1..=TEXT_CHARS_MAX => Ok(text),
        chars => Err(unusable(&format!("a {field} of {chars} characters"))),
    }
}

/// A text for people, without what would do something to their terminal instead of being read.
fn shortened(text: &str) -> String {
    let plain = |c| if is_plain(c) { c } else { char::REPLACEMENT_CHARACTER };
    text.chars().take(TEXT_CHARS_MAX).map(plain).collect()
}

/// Whether it is neither a control character nor one that changes the order in which others are shown.
fn is_plain(c: char) -> bool {
    let is_layout =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !c.is_control() && !is_layout
}

fn to_payments(amount: &Money) -> payments::Money {
    payments::Money { currency_code: amount.currency_code.clone(), minor_units: amount.minor_units }
}

fn from_payments(amount: payments::Money) -> Result<Money, NoAnswer> {
    let payments::Money { currency_code, minor_units } = amount;
    let is_code = currency_code.len() == 3 && currency_code.bytes().all(|byte| byte.is_ascii_uppercase());
    if !is_code || minor_units < 0 {
        return Err(unusable("a refund of an impossible amount"));
    }
    Ok(Money { currency_code, minor_units })
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    use proto::payments::v1::payment_service_server::{PaymentService, PaymentServiceServer};
    use proto::payments::v1::{
        AlreadyRefunded, CaptureResponse, Captured, Declined, NothingCaptured, RefundResponse, Refunded,
    };
    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::transport::Server;

    use program::trace::{FutureExt, SpanContext, TRACEPARENT, TRACESTATE};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

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
        async fn capture(
            &self,
            request: Request<CaptureRequest>,
        ) -> Result<Response<CaptureResponse>, Status> {
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
        (Remote::new(script.clone().serve().await, LONG, LONG), script)
    }

    fn euros(minor_units: i64) -> Money {
        Money { currency_code: "EUR".to_owned(), minor_units }
    }

    async fn capture(remote: &Remote) -> Result<String, CaptureError> {
        let amount = &euros(350);
        remote.capture(Capture { idempotency_key: "k", order_id: "order", customer_id: "ada", amount }).await
    }

    fn outcome(outcome: capture_response::Outcome) -> Result<CaptureResponse, Status> {
        Ok(CaptureResponse { outcome: Some(outcome) })
    }

    fn captured(payment_id: &str) -> Result<CaptureResponse, Status> {
        outcome(capture_response::Outcome::Captured(Captured { payment_id: payment_id.to_owned() }))
    }

    #[tokio::test]
    async fn every_call_is_told_the_orders_trace() {
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
    async fn what_may_pass_is_repeated_as_the_same_call() {
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
        assert!(matches!(&error, CaptureError::NoAnswer(NoAnswer::Unavailable(_))), "{error}");
        assert_eq!(script.seen.lock().unwrap().len() as u64, CALLS_MAX);
    }

    #[tokio::test]
    async fn calls_that_find_nobody_or_no_end_are_given_up_in_time() {
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let nobody = Endpoint::from_shared(format!("http://{nobody}")).unwrap();
        let (_, silent) = serving_captures(Vec::new()).await;
        for (endpoint, call) in [(nobody, LONG), (silent.serve().await, Duration::from_millis(20))] {
            let remote = Remote::new(endpoint, call, Duration::from_millis(200));
            let error = capture(&remote).await.unwrap_err();
            assert!(matches!(&error, CaptureError::NoAnswer(NoAnswer::Unavailable(_))), "{error}");
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
    async fn nonsense_is_told_from_absence_and_not_repeated() {
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
            assert!(
                matches!(&error, CaptureError::NoAnswer(NoAnswer::Unusable(_))),
                "{nonsense:?} is {error}"
            );
            assert_eq!(script.seen.lock().unwrap().len(), 1);
        }
    }

    #[tokio::test]
    async fn what_would_reach_into_a_terminal_is_refused_or_replaced() {
        let declined = Declined { message: "\u{1b}[2J\u{202e}no\n".to_owned() };
        let (remote, _) = serving_captures(vec![
            captured("p\u{1b}]0;paid\u{7}"),
            outcome(capture_response::Outcome::Declined(declined)),
            Err(Status::internal("\u{9b}31m no")),
        ])
        .await;
        let error = capture(&remote).await.unwrap_err();
        assert!(matches!(&error, CaptureError::NoAnswer(NoAnswer::Unusable(_))), "{error}");
        let declined = capture(&remote).await.unwrap_err();
        assert_eq!(declined.to_string(), "declined: \u{fffd}[2J\u{fffd}no\u{fffd}");
        let internal = capture(&remote).await.unwrap_err();
        assert_eq!(internal.to_string(), "an answer of no use: Internal: \u{fffd}31m no");
    }

    #[tokio::test]
    async fn a_service_that_serves_us_not_at_all_is_away_and_not_asked_again_at_once() {
        for refusal in [Status::unauthenticated(""), Status::permission_denied(""), Status::unimplemented("")]
        {
            let (remote, script) = serving_captures(vec![Err(refusal)]).await;
            let error = capture(&remote).await.unwrap_err();
            assert!(matches!(&error, CaptureError::NoAnswer(NoAnswer::Unavailable(_))), "{error}");
            assert_eq!(script.seen.lock().unwrap().len(), 1);
        }
    }

    #[tokio::test]
    async fn a_refund_says_what_went_back() {
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
        let remote = Remote::new(script.serve().await, LONG, LONG);
        let refund = Refund { refund_id: "r-1".to_owned(), amount: euros(350) };
        assert_eq!(remote.refund("k").await.unwrap(), Some(refund));
        assert_eq!(remote.refund("k").await.unwrap(), None);
        for _ in 0..5 {
            let error = remote.refund("k").await.unwrap_err();
            assert!(matches!(error, NoAnswer::Unusable(_)), "{error}");
        }
    }
}
