//! Calls in flight. More than the gateway can answer in time would make all of them late. Each holds memory for as long
//! as its client is slow to send its message or read the answer.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::future::Either;
use http::{Request, Response};
use http_body::Frame;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::{Layer, Service};

use super::{Caller, ConcurrencyLimit, Permit};
use crate::errors;
use crate::gate::{RejectionFuture, reject};

/// The layer that gives each call a permit, from before its message is received until its answer is read.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    /// The limits of calls in flight.
    pub(crate) limit: ConcurrencyLimit,
    /// How long a message may take to arrive.
    pub(crate) message_timeout: Duration,
    /// The maximum size: a client that sends messages without end blocks only its own call.
    pub(crate) request_bytes_max: usize,
    /// Methods whose calls give their permit back when their answer begins: others count their streams.
    pub(crate) streams: &'static [&'static str],
}

impl<S> Layer<S> for Calls {
    type Service = Permitted<S>;

    fn layer(&self, inner: S) -> Permitted<S> {
        Permitted { calls: self.clone(), inner }
    }
}

/// A service behind [`Calls`].
#[derive(Clone, Debug)]
pub(crate) struct Permitted<S> {
    calls: Calls,
    inner: S,
}

impl<S> Service<Request<Body>> for Permitted<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<CallFuture<S::Future>, RejectionFuture>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let permit = match self.calls.limit.acquire(Caller::of(request.extensions())) {
            Ok(permit) => permit,
            Err(status) => return Either::Right(reject(request, status.into_http())),
        };
        let method = request.uri().path().rsplit('/').next();
        let is_stream = method.is_some_and(|method| self.calls.streams.contains(&method));
        let (timeout, bytes_max) = (self.calls.message_timeout, self.calls.request_bytes_max);
        let began = Instant::now();
        let request = request
            .map(|body| Body::new(LimitedBody { body, timeout, began, timer: None, bytes_max, bytes: 0 }));
        let answer = self.inner.call(request);
        Either::Left(CallFuture { answer, permit: Some(permit), is_stream })
    }
}

impl<S: NamedService> NamedService for Permitted<S> {
    const NAME: &'static str = S::NAME;
}

pin_project! {
    /// A call that has a permit.
    pub(crate) struct CallFuture<F> {
        #[pin]
        answer: F,
        permit: Option<Permit>,
        is_stream: bool,
    }
}

impl<F> Future for CallFuture<F>
where
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let Ok(answer) = ready!(this.answer.poll(cx));
        let permit = this.permit.take().filter(|_| !*this.is_stream);
        Poll::Ready(Ok(match permit {
            Some(permit) => answer.map(|body| Body::new(PermitBody { body, _permit: permit })),
            None => answer,
        }))
    }
}

pin_project! {
    /// A request body with a deadline and a size limit.
    struct LimitedBody {
        #[pin]
        body: Body,
        timeout: Duration,
        began: Instant,
        bytes: usize,
        bytes_max: usize,
        // Created lazily: most messages arrive at once.
        #[pin]
        timer: Option<Sleep>,
    }
}

impl http_body::Body for LimitedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut this = self.project();
        if let Poll::Ready(frame) = this.body.poll_frame(cx) {
            if let Some(Ok(frame)) = &frame {
                *this.bytes += frame.data_ref().map_or(0, Bytes::len);
                if *this.bytes > *this.bytes_max {
                    return Poll::Ready(Some(Err(errors::request_too_large(*this.bytes_max))));
                }
                // A body that is always ready would never poll the sleep.
                if this.began.elapsed() > *this.timeout {
                    return Poll::Ready(Some(Err(errors::request_timed_out())));
                }
            }
            return Poll::Ready(frame);
        }
        if this.timer.is_none() {
            this.timer.set(Some(sleep_until(*this.began + *this.timeout)));
        }
        let Some(timer) = this.timer.as_pin_mut() else { return Poll::Pending };
        ready!(timer.poll(cx));
        Poll::Ready(Some(Err(errors::request_timed_out())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

pin_project! {
    /// An answer that holds its call's permit until it is read, or its stream ends.
    struct PermitBody {
        #[pin]
        body: Body,
        _permit: Permit,
    }
}

impl http_body::Body for PermitBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
