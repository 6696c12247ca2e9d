//! Health and reflection, which need no credential. Callers that hold theirs open never block a health check, and these
//! streams end with the gateway.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, Limited};
use pin_project_lite::pin_project;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::{Layer, Service};

use super::{Caller, ConcurrencyLimit, Permit};
use crate::errors;
use crate::gate::reject;

/// Health checks in flight, in all and of one peer address.
const CHECKS_MAX: usize = 16_384;
const CHECKS_PER_PEER_MAX: usize = 256;
/// Open streams of health and reflection, and those of one peer address.
const STREAMS_MAX: usize = 8_192;
const STREAMS_PER_PEER_MAX: usize = 1_024;
/// Largest request to health: a name.
const MESSAGE_BYTES_MAX: usize = 4 * 1024;
/// How long it may take to come.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(2);
/// The call that is answered at once.
const CHECK: &str = "/grpc.health.v1.Health/Check";
/// Its service, all of whose requests are one message.
const HEALTH: &str = "/grpc.health.v1.";

/// The layer that gives each call a permit.
#[derive(Clone, Debug)]
pub(crate) struct Probes {
    checks: ConcurrencyLimit,
    streams: ConcurrencyLimit,
    draining: CancellationToken,
}

impl Probes {
    /// Streams end when `draining` is cancelled.
    pub(crate) fn new(draining: CancellationToken) -> Self {
        let limit = |all, per_peer| ConcurrencyLimit::new(all, per_peer, errors::too_many_calls);
        Self {
            checks: limit(CHECKS_MAX, CHECKS_PER_PEER_MAX),
            streams: limit(STREAMS_MAX, STREAMS_PER_PEER_MAX),
            draining,
        }
    }
}

impl<S> Layer<S> for Probes {
    type Service = Probed<S>;

    fn layer(&self, inner: S) -> Probed<S> {
        Probed { probes: self.clone(), inner }
    }
}

/// A service behind [`Probes`].
#[derive(Clone, Debug)]
pub(crate) struct Probed<S> {
    probes: Probes,
    inner: S,
}

impl<S> Service<Request<Body>> for Probed<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let is_check = request.uri().path() == CHECK;
        let limit = if is_check { &self.probes.checks } else { &self.probes.streams };
        let permit = match limit.acquire(Caller::of(request.extensions())) {
            Ok(permit) => permit,
            Err(status) => return reject(request, status.into_http()),
        };
        let draining = (!is_check).then(|| Box::pin(self.probes.draining.clone().cancelled_owned()));
        // These services are always ready, so the clone needs no `poll_ready`.
        let mut inner = self.inner.clone();
        async move {
            let request = match read_whole(request).await {
                Ok(request) => request,
                Err(status) => return Ok(status.into_http()),
            };
            let answer = inner.call(request).await?;
            Ok(answer.map(|body| Body::new(ProbeBody { body, draining, is_ended: false, _permit: permit })))
        }
        .boxed()
    }
}

impl<S: NamedService> NamedService for Probed<S> {
    const NAME: &'static str = S::NAME;
}

/// Reads the whole request. A request of reflection is a stream, and is passed on as it is.
async fn read_whole(request: Request<Body>) -> Result<Request<Body>, Status> {
    if !request.uri().path().starts_with(HEALTH) {
        return Ok(request);
    }
    let (head, body) = request.into_parts();
    let message = Limited::new(body, MESSAGE_BYTES_MAX).collect();
    let message = timeout(MESSAGE_TIMEOUT, message).await.map_err(|_| errors::request_timed_out())?;
    let message =
        message.map_err(|error| Status::out_of_range(format!("the request cannot be read: {error}")))?;
    Ok(Request::from_parts(head, Body::new(Full::new(message.to_bytes()))))
}

pin_project! {
    /// An answer that holds its call's permit until it is read, and ends with DRAINING when the gateway drains.
    struct ProbeBody {
        #[pin]
        body: Body,
        draining: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
        is_ended: bool,
        _permit: Permit,
    }
}

impl http_body::Body for ProbeBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.project();
        if *this.is_ended {
            return Poll::Ready(None);
        }
        // Pending frames come first.
        if let Poll::Ready(frame) = this.body.poll_frame(cx) {
            return Poll::Ready(frame);
        }
        let Some(draining) = this.draining else { return Poll::Pending };
        ready!(draining.as_mut().poll(cx));
        *this.is_ended = true;
        let mut trailers = HeaderMap::new();
        let written = errors::draining().add_header(&mut trailers);
        Poll::Ready(Some(written.map(|()| Frame::trailers(trailers))))
    }

    /// A rejection without a body must be distinguished from one with a body to come: it ends with its headers.
    fn is_end_stream(&self) -> bool {
        self.is_ended || self.body.is_end_stream()
    }
}
