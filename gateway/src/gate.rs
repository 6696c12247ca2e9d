//! The gate before a service: a layer that admits or rejects a call.

use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Either};
use http::{Request, Response};
use http_body_util::{BodyExt, Limited};
use tokio::time::timeout;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::{Layer, Service};

/// How much of a rejected call's message is read, and for how long.
const UNREAD_BYTES_MAX: usize = 64 * 1024;
const UNREAD_TIMEOUT: Duration = Duration::from_secs(1);

/// A check that can reject a call.
pub(crate) trait Admit {
    /// Admits the call, or returns the status that rejects it. Must not wait.
    fn admit(&self, request: &mut Request<Body>) -> Result<(), Status>;

    /// The answer to a rejected call.
    fn answer(&self, status: Status) -> Response<Body> {
        status.into_http()
    }
}

/// The layer that asks an [`Admit`].
#[derive(Clone, Debug)]
pub(crate) struct Gate<A>(pub(crate) A);

impl<A: Clone, S> Layer<S> for Gate<A> {
    type Service = Gated<A, S>;

    fn layer(&self, inner: S) -> Self::Service {
        Gated { admit: self.0.clone(), inner }
    }
}

/// A service behind a [`Gate`].
#[derive(Clone, Debug)]
pub(crate) struct Gated<A, S> {
    admit: A,
    inner: S,
}

impl<A, S> Service<Request<Body>> for Gated<A, S>
where
    A: Admit,
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, RejectionFuture>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        match self.admit.admit(&mut request) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(status) => Either::Right(reject(request, self.admit.answer(status))),
        }
    }
}

/// The answer to a rejected call.
pub(crate) type RejectionFuture = BoxFuture<'static, Result<Response<Body>, Infallible>>;

/// Answers a rejected call. Its message is read from the connection first: data that arrives for a call that is over
/// counts as an error of the client, and many of those close its connection.
pub(crate) fn reject(request: Request<Body>, answer: Response<Body>) -> RejectionFuture {
    let mut message = Limited::new(request.into_body(), UNREAD_BYTES_MAX);
    async move {
        // A read error or timeout does not change the answer.
        let taken_off = async { while let Some(Ok(_)) = message.frame().await {} };
        timeout(UNREAD_TIMEOUT, taken_off).await.ok();
        Ok(answer)
    }
    .boxed()
}

impl<A, S: NamedService> NamedService for Gated<A, S> {
    const NAME: &'static str = S::NAME;
}
