//! The server span of each call, and its duration: from before any layer can reject it until its answer is read.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::task::{self, Poll, ready};
use std::time::Instant;

use backbone::log::ids::OrderId;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use pin_project_lite::pin_project;
use program::trace::{self, Context, KeyValue, TRACEPARENT, TRACESTATE, attribute};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::field::Empty;
use tracing::{Span, info_span};

use crate::errors::{Fault, Reason, Rejection};
use crate::methods::Method;
use crate::{deadline, metrics};

const GRPC_STATUS: &str = "grpc-status";
const GRPC_MESSAGE: &str = "grpc-message";

/// The layer that measures each call, and begins a span for it, in the caller's trace or in a new one. Probes have none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spans;

/// Records the order of the current call.
pub(crate) fn record_order(id: &OrderId) {
    trace::with_current(|call| call.set_attribute(KeyValue::new(attribute::ORDER_ID, id.to_string())));
}

impl<S> Layer<S> for Spans {
    type Service = Spanned<S>;

    fn layer(&self, inner: S) -> Spanned<S> {
        Spanned(inner)
    }
}

/// A service behind [`Spans`].
#[derive(Clone, Debug)]
pub(crate) struct Spanned<S>(S);

impl<S> Service<Request<Body>> for Spanned<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = SpanFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let began = Instant::now();
        let method = Method::at(request.uri().path());
        let span = if method.has_span { Traced::begin(&request, method.name) } else { Traced::none() };
        let is_hasty = deadline::is_hasty(request.headers());
        let open = OpenCall { span, method: method.name, is_hasty, began };
        let work = open.span.clone();
        let answer = work.within(|| self.0.call(request));
        SpanFuture { answer, work, call: Call(Some(open)) }
    }
}

/// The span of a call, and its trace context, which exists without a span too.
#[derive(Clone, Debug)]
struct Traced {
    span: Span,
    context: Context,
}

impl Traced {
    fn begin(request: &Request<Body>, method: &'static str) -> Self {
        let all = |key| request.headers().get_all(key).iter().map(HeaderValue::as_bytes);
        let span = info_span!(
            "call",
            otel.name = method,
            otel.kind = "server",
            rpc.system.name = "grpc",
            rpc.method = request.uri().path().trim_start_matches('/'),
            rpc.response.status_code = Empty,
        );
        let context = trace::continue_in(&span, trace::extract(all(TRACEPARENT), all(TRACESTATE)));
        Self { span, context }
    }

    fn none() -> Self {
        Self { span: Span::none(), context: Context::new() }
    }

    fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        let _current = self.context.clone().attach();
        work()
    }
}

/// A call until it is known how it ended. One that is dropped before was cancelled by its caller.
struct Call(Option<OpenCall>);

struct OpenCall {
    span: Traced,
    method: &'static str,
    /// Whether the caller's deadline is too short for any answer.
    is_hasty: bool,
    began: Instant,
}

impl Call {
    /// Ends the call if these headers or trailers contain its status. Removes the mark of a rejection.
    fn end(&mut self, headers: &mut HeaderMap) {
        let rejection = Rejection::take(headers);
        let Some(code) = headers.get(GRPC_STATUS) else { return };
        let code = code.to_str().ok().and_then(|code| code.parse().ok()).unwrap_or(-1);
        let message = headers.get(GRPC_MESSAGE).and_then(|message| message.to_str().ok()).unwrap_or_default();
        self.end_as(Code::from(code), rejection, message);
    }

    fn end_as(&mut self, code: Code, rejection: Option<Rejection>, message: &str) {
        let Some(OpenCall { span, method, is_hasty, began }) = self.0.take() else { return };
        let status = proto::code_name(code);
        let fault = if code == Code::Ok {
            None
        } else if code == Code::DeadlineExceeded && is_hasty {
            Some(Fault::Theirs)
        } else {
            Some(rejection.map_or_else(|| Fault::of_code(code), |rejection| rejection.fault))
        };
        metrics::answered(method, status, fault, began.elapsed());
        if let Some((rejection, fault)) = rejection.zip(fault) {
            metrics::rejected(Rejection { fault, ..rejection });
        }
        span.span.record("rpc.response.status_code", status);
        if attribute::is_server_error(status) {
            trace::fail(&span.span, status, &message);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end_as(Code::Cancelled, None, "");
    }
}

pin_project! {
    /// A call whose answer has not begun.
    pub(crate) struct SpanFuture<F> {
        #[pin]
        answer: F,
        work: Traced,
        call: Call,
    }
}

impl<F> Future for SpanFuture<F>
where
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        // The outer layer answers a panic. Without this it would be counted as a call that its caller cancelled.
        let polled = catch_unwind(AssertUnwindSafe(|| this.work.within(|| this.answer.poll(cx))))
            .unwrap_or_else(|panic| {
                let rejection = Rejection { reason: Reason::Internal, fault: Fault::Ours };
                this.call.end_as(Code::Internal, Some(rejection), "panic");
                resume_unwind(panic)
            });
        let Ok(mut answer) = ready!(polled);
        this.call.end(answer.headers_mut());
        let call = Call(this.call.0.take());
        Poll::Ready(Ok(match &call.0 {
            Some(_) => answer.map(|body| Body::new(SpanBody { body, work: this.work.clone(), call })),
            None => answer,
        }))
    }
}

pin_project! {
    /// An answer whose trailers end its call.
    struct SpanBody {
        #[pin]
        body: Body,
        work: Traced,
        call: Call,
    }
}

impl http_body::Body for SpanBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.project();
        let mut frame = ready!(this.work.within(|| this.body.poll_frame(cx)));
        match &mut frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    this.call.end(trailers);
                }
            }
            Some(Err(status)) => this.call.end_as(status.code(), None, status.message()),
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
