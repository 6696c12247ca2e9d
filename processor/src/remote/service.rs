//! A service that a step calls: one connection, and a few retries of a call.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use program::backoff::Backoff;
use program::trace::{self, FutureExt};
use tokio::time::{Instant, sleep, timeout};
use tonic::metadata::{AsciiMetadataKey, MetadataMap};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use tracing::field::Empty;
use tracing::{Span, debug, info_span};

use super::answers::{CallError, call_error, may_pass, shortened};
use super::credentials::{CredentialFiles, Secured, UnusableCredentials};

/// Maximum number of calls for one attempt at an order. More would keep a worker from orders that can progress.
pub(crate) const CALLS_MAX: u64 = 3;
const RETRY: Backoff = Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(1) };
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection with open calls may be silent before it is probed, and how long the probe may take. Not
/// probed while idle: servers take more than a ping in five minutes for abuse, unless there are calls.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// TCP keepalive of an idle connection.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// Largest answer of a service, in bytes.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// The service at some address. Connects when it is first called, and again whenever the connection is lost. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    secured: Arc<Mutex<Secured>>,
    /// The address, for spans.
    host: String,
    port: i64,
    call_timeout: Duration,
    /// For all calls together that are made for one answer.
    answer_timeout: Duration,
}

impl Service {
    /// The service at `endpoint`. One call may take `call_timeout`, and a call with all its retries `answer_timeout`.
    pub(crate) fn new(
        endpoint: Endpoint,
        files: CredentialFiles,
        call_timeout: Duration,
        answer_timeout: Duration,
    ) -> Result<Self, UnusableCredentials> {
        let uri = endpoint.uri();
        let host = uri.host().unwrap_or_default().to_owned();
        let default_port = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let port = uri.port_u16().unwrap_or(default_port).into();
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(false)
            .tcp_keepalive(Some(TCP_KEEPALIVE))
            .tcp_nodelay(true);
        let secured = Arc::new(Mutex::new(Secured::new(endpoint, files)?));
        Ok(Self { secured, host, port, call_timeout, answer_timeout })
    }

    /// Makes a call, and retries it while that may help and there is time.
    pub(crate) async fn call<T: Clone, R>(
        &self,
        name: &'static str,
        (order_id, payment_method): (&str, &str),
        request: T,
        method: impl AsyncFn(Channel, Request<T>) -> Result<Response<R>, Status>,
    ) -> Result<R, CallError> {
        let deadline = Instant::now() + self.answer_timeout;
        let mut calls = 0;
        loop {
            let time = self.call_timeout.min(deadline - Instant::now());
            let mut request = Request::new(request.clone());
            // The service can stop when the caller no longer waits.
            request.set_timeout(time);
            // No holder panics, so a poisoned lock is used as it is.
            let (channel, token) = self.secured.lock().unwrap_or_else(PoisonError::into_inner).current();
            if let Some(token) = token {
                request.metadata_mut().insert("authorization", token);
            }
            let span = self.call_span(name, order_id);
            let context = trace::within(&span);
            {
                let _current = context.clone().attach();
                inject_trace(request.metadata_mut());
            }
            let called = timeout(time, method(channel, request));
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
                return Err(call_error(&status, payment_method));
            }
            debug!(method = name, code = ?status.code(), reason, ?pause, "call retried");
            sleep(pause).await;
        }
    }

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
