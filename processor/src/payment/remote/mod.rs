//! A payment provider in another process: `payments.v1.PaymentService`.

mod answers;

use std::time::Duration;

use program::backoff::Backoff;
use program::trace::{self, FutureExt};
use proto::payments::v1::payment_service_client::PaymentServiceClient;
use proto::payments::v1::{CaptureRequest, RefundRequest, capture_response, refund_response};
use tokio::time::{Instant, sleep, timeout};
use tonic::metadata::{AsciiMetadataKey, MetadataMap};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use tracing::field::Empty;
use tracing::{Span, debug, info_span};

use self::answers::{from_payments, may_pass, provider_error, reference, shortened, to_payments, unusable};
use super::provider::{Capture, CaptureError, PaymentProvider, ProviderError, Refund};

/// Maximum number of calls for one attempt at an order. More would keep a worker from orders that can progress.
const CALLS_MAX: u64 = 3;
const RETRY: Backoff = Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(1) };
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection with open calls may be silent before it is probed, and how long the probe may take. Not
/// probed while idle: servers take more than a ping in five minutes for abuse, unless there are calls.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// TCP keepalive of an idle connection.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// An answer is a reference and an amount.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The service at some address. Connects when it is first called, and again whenever the connection is lost.
#[derive(Clone, Debug)]
pub struct Remote {
    client: PaymentServiceClient<Channel>,
    /// The address, for spans.
    host: String,
    port: i64,
    call_timeout: Duration,
    /// For all calls together that are made for one answer.
    answer_timeout: Duration,
}

impl Remote {
    /// The service at `endpoint`. One call may take `call_timeout`, and a call with all its retries `answer_timeout`.
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

    /// Makes a call, and retries it while that may help and there is time.
    async fn call<T: Clone, R>(
        &self,
        name: &'static str,
        (order_id, payment_method): (&str, &str),
        request: T,
        method: impl AsyncFn(PaymentServiceClient<Channel>, Request<T>) -> Result<Response<R>, Status>,
    ) -> Result<R, ProviderError> {
        let deadline = Instant::now() + self.answer_timeout;
        let mut calls = 0;
        loop {
            let time = self.call_timeout.min(deadline - Instant::now());
            let mut request = Request::new(request.clone());
            // The service can stop when the caller no longer waits.
            request.set_timeout(time);
            let span = self.call_span(name, order_id);
            let context = trace::within(&span);
            {
                let _current = context.clone().attach();
                inject_trace(request.metadata_mut());
            }
            let called = timeout(time, method(self.client.clone(), request));
            let status = match called.with_context(context).await {
                Ok(Ok(response)) => {
                    answered(&span, Code::Ok);
                    return Ok(response.into_inner());
                }
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded(format!("no answer within {time:?}")),
            };
            answered(&span, status.code());
            let reason = shortened(status.message(), payment_method);
            trace::fail(&span, proto::code_name(status.code()), &reason);
            drop(span);
            calls += 1;
            let pause = RETRY.after(calls);
            if calls == CALLS_MAX || !may_pass(&status) || Instant::now() + pause >= deadline {
                return Err(provider_error(&status, payment_method));
            }
            debug!(code = ?status.code(), reason, ?pause, "payment service call retried");
            sleep(pause).await;
        }
    }
}

impl Remote {
    /// The span of one call.
    fn call_span(&self, name: &'static str, order_id: &str) -> Span {
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

/// Propagates the trace context to the service.
fn inject_trace(metadata: &mut MetadataMap) {
    trace::inject(|key, value| {
        // Both consist of characters that a header allows.
        if let (Ok(key), Ok(value)) = (key.parse::<AsciiMetadataKey>(), value.parse()) {
            metadata.insert(key, value);
        }
    });
}

fn answered(span: &Span, code: Code) {
    span.record("rpc.response.status_code", proto::code_name(code));
}

impl PaymentProvider for Remote {
    async fn capture(&self, capture: Capture<'_>) -> Result<String, CaptureError> {
        let request = CaptureRequest {
            idempotency_key: capture.idempotency_key.to_owned(),
            order_id: capture.order_id.to_owned(),
            customer_id: capture.customer_id.to_owned(),
            amount: Some(to_payments(capture.amount)),
            payment_method: capture.payment_method.to_owned(),
        };
        let about = (capture.order_id, capture.payment_method);
        let call = async |mut client: PaymentServiceClient<_>, request| client.capture(request).await;
        let response = self.call("payments.v1.PaymentService/Capture", about, request, call).await?;
        match response.outcome {
            Some(capture_response::Outcome::Captured(captured)) => {
                Ok(reference("payment_id", captured.payment_id)?)
            }
            Some(capture_response::Outcome::Declined(declined)) => {
                Err(CaptureError::Declined(shortened(&declined.message, capture.payment_method)))
            }
            Some(capture_response::Outcome::AlreadyRefunded(_)) => Err(CaptureError::Refunded),
            None => Err(unusable("capture without an outcome").into()),
        }
    }

    async fn refund(&self, idempotency_key: &str) -> Result<Option<Refund>, ProviderError> {
        let request = RefundRequest { idempotency_key: idempotency_key.to_owned() };
        let call = async |mut client: PaymentServiceClient<_>, request| client.refund(request).await;
        // The key begins with the order's id.
        let order_id = idempotency_key.rsplit_once('-').map_or(idempotency_key, |(order_id, _)| order_id);
        let response = self.call("payments.v1.PaymentService/Refund", (order_id, ""), request, call).await?;
        match response.outcome {
            Some(refund_response::Outcome::Refunded(refunded)) => {
                let amount = refunded.amount.ok_or_else(|| unusable("refund without an amount"))?;
                Ok(Some(Refund {
                    refund_id: reference("refund_id", refunded.refund_id)?,
                    amount: from_payments(amount)?,
                }))
            }
            Some(refund_response::Outcome::NothingCaptured(_)) => Ok(None),
            None => Err(unusable("refund without an outcome")),
        }
    }
}

#[cfg(test)]
mod tests;
