//! Who is let in: the layers that a call passes before its handler sees it, each of which can refuse it.

mod calls;
mod metadata;
mod places;
mod probes;
mod rate_limit;
mod turns;

pub(crate) use calls::Calls;
pub(crate) use metadata::Metadata;
pub(crate) use places::{Place, Places};
pub(crate) use probes::Probes;
pub(crate) use rate_limit::{COST_MAX, RateLimit, RateLimits};

use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Either};
use http::{Extensions, Request, Response};
use http_body_util::{BodyExt, Limited};
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
    /// Lets the call in, or says why not. Must not wait.
    fn admit(&self, request: &mut Request<Body>) -> Result<(), Status>;

    /// What a call that is not let in is answered.
    fn answer(&self, refusal: Status) -> Response<Body> {
        refusal.into_http()
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
    type Future = Either<S::Future, Refusal>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        match self.admit.admit(&mut request) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(status) => Either::Right(refuse(request, self.admit.answer(status))),
        }
    }
}

/// The answer to a call that is not let in.
type Refusal = BoxFuture<'static, Result<Response<Body>, Infallible>>;

/// Answers a call that is not let in. Its message is taken off the connection first: what arrived for a call
/// that is over already would count as a fault of the client, and many of those close its connection.
fn refuse(request: Request<Body>, answer: Response<Body>) -> Refusal {
    let mut message = Limited::new(request.into_body(), UNREAD_BYTES_MAX);
    async move {
        // However it ends, the answer is the same.
        let taken_off = async { while let Some(Ok(_)) = message.frame().await {} };
        timeout(UNREAD_TIMEOUT, taken_off).await.ok();
        Ok(answer)
    }
    .boxed()
}

impl<A, S: NamedService> NamedService for Gated<A, S> {
    const NAME: &'static str = S::NAME;
}

/// Whose quota a call uses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Caller {
    /// A tenant that has shown a credential.
    Tenant(Arc<str>),
    /// Somebody at an address, or in a network of IPv6; `None` of a connection that is gone already.
    Peer(Option<IpAddr>),
}

impl Caller {
    pub(crate) fn of(extensions: &Extensions) -> Self {
        match extensions.get::<Arc<Principal>>() {
            Some(principal) if !principal.tenant.is_empty() => Self::Tenant(principal.tenant.clone()),
            Some(_) | None => Self::Peer(extensions.get::<Peer>().and_then(|peer| peer.addr).map(counted)),
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

/// What counts as one address. Whoever has one of IPv6 has the other 2^64 of its network too (RFC 6177).
fn counted(addr: IpAddr) -> IpAddr {
    match addr.to_canonical() {
        IpAddr::V6(addr) => Ipv6Addr::from_bits(addr.to_bits() & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_network_of_ipv6_are_one_caller() {
        let same = |one: &str, other: &str| counted(one.parse().unwrap()) == counted(other.parse().unwrap());
        assert!(same("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert!(same("::ffff:10.0.0.1", "10.0.0.1"));
        assert!(!same("2001:db8:1:2::1", "2001:db8:1:3::1"));
        assert!(!same("::ffff:10.0.0.1", "::ffff:10.0.0.2"));
        assert!(!same("10.0.0.1", "10.0.0.2"));
    }
}
