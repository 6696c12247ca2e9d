//! Who is let in: the layers that a call passes before its handler sees it, each of which can refuse it.

mod load_shed;
mod rate_limit;
mod streams;

pub(crate) use load_shed::LoadShed;
pub(crate) use rate_limit::{COST_MAX, RateLimit, RateLimits};
pub(crate) use streams::{StreamPlace, StreamPlaces};

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Either};
use http::{Extensions, Request, Response};
use http_body_util::{BodyExt, Limited};
use pin_project_lite::pin_project;
use tokio::time::timeout;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::{Layer, Service};

use crate::auth::Principal;
use crate::connections::Peer;

/// Most of a refused call's message that is waited for, and for how long.
const UNREAD_BYTES_MAX: usize = 64 * 1024;
const UNREAD_TIMEOUT: Duration = Duration::from_secs(1);

/// One reason to refuse a call.
pub(crate) trait Admit {
    /// Held until the call is answered.
    type Pass;

    /// Lets the call in, or says why not. Must not wait.
    fn admit(&self, request: &mut Request<Body>) -> Result<Self::Pass, Status>;
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
    type Future =
        Either<Admitted<S::Future, A::Pass>, BoxFuture<'static, Result<Response<Body>, Infallible>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        match self.admit.admit(&mut request) {
            Ok(pass) => Either::Left(Admitted { answer: self.inner.call(request), pass: Some(pass) }),
            Err(status) => Either::Right(refuse(request, status).boxed()),
        }
    }
}

/// Answers a call that is not let in. Its message is taken off the connection first: what arrived for a call
/// that is over already would count as a fault of the client, and many of those close its connection.
async fn refuse(request: Request<Body>, status: Status) -> Result<Response<Body>, Infallible> {
    let message = Limited::new(request.into_body(), UNREAD_BYTES_MAX);
    // However it ends, the answer is the same.
    drop(timeout(UNREAD_TIMEOUT, message.collect()).await);
    Ok(status.into_http())
}

impl<A, S: NamedService> NamedService for Gated<A, S> {
    const NAME: &'static str = S::NAME;
}

pin_project! {
    /// A call that was let in.
    pub(crate) struct Admitted<F, P> {
        #[pin]
        answer: F,
        pass: Option<P>,
    }
}

impl<F: Future, P> Future for Admitted<F, P> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let answer = ready!(this.answer.poll(cx));
        *this.pass = None;
        Poll::Ready(answer)
    }
}

/// Whose quota a call uses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Caller {
    /// A tenant that has shown a credential.
    Tenant(Arc<str>),
    /// Somebody at an address; `None` of a connection that is gone already.
    Peer(Option<IpAddr>),
}

impl Caller {
    pub(crate) fn of(extensions: &Extensions) -> Self {
        match extensions.get::<Arc<Principal>>() {
            Some(principal) if !principal.tenant.is_empty() => Self::Tenant(principal.tenant.clone()),
            Some(_) | None => Self::Peer(extensions.get::<Peer>().and_then(|peer| peer.addr)),
        }
    }

    /// What a client is told.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Tenant(_) => "tenant",
            Self::Peer(_) => "peer",
        }
    }
}
