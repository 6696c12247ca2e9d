//! Who calls, and what they may do.

mod directory;
mod jwks;
mod tokens;

pub(crate) use directory::Directory;
#[cfg(any(test, fuzzing))]
pub(crate) use directory::Kind;
pub(crate) use tokens::{TokenConfig, Tokens};

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::{OptionFuture, join3};
use http::{HeaderMap, HeaderValue, Request};
use tokio::select;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;

use crate::errors;
use crate::gate::Admit;
use crate::transport::connections::Peer;

/// Metadata that carries an API key.
const API_KEY: &str = "x-api-key";
/// Metadata that carries a token.
const AUTHORIZATION: &str = "authorization";
/// How a token is marked in it (RFC 6750), in any case.
const BEARER: &str = "bearer ";
/// Longest tenant name, in characters.
const TENANT_CHARS_MAX: usize = 64;

/// How often the clock is looked at for a credential's end: it may be set, or stand while the machine sleeps.
const CLOCK_INTERVAL: Duration = Duration::from_secs(10);

/// Services of this package are for callers who order; all others are for operators.
const ORDERS: &str = "/orders.v1.";

/// On whose behalf a call is made. A tenant sees its own customers and orders, and no others.
#[derive(Debug)]
pub(crate) struct Principal {
    pub(crate) tenant: Arc<str>,
    roles: Vec<Role>,
    /// From when on the credential is no longer good, if it says so itself.
    expires: Option<SystemTime>,
    /// Cancelled when the credential is taken away.
    withdrawn: CancellationToken,
}

/// What a principal may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Create and cancel orders.
    Write,
    /// Read, list and watch orders.
    Read,
    /// Handle parked orders.
    Operations,
}

impl Role {
    const ALL: [Self; 3] = [Self::Write, Self::Read, Self::Operations];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Write => "orders:write",
            Self::Read => "orders:read",
            Self::Operations => "operations",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }

    /// What a method asks for. A method of OrderService that is not known here asks for the most.
    fn of_method(path: &str) -> Self {
        if !path.starts_with(ORDERS) {
            return Self::Operations;
        }
        match path.rsplit('/').next() {
            Some("GetOrder" | "ListOrders" | "ListOrderEvents" | "WatchOrder" | "WatchOrders") => Self::Read,
            Some(_) | None => Self::Write,
        }
    }
}

impl Principal {
    fn new(tenant: &str, roles: Vec<Role>) -> Self {
        Self { tenant: tenant.into(), roles, expires: None, withdrawn: CancellationToken::new() }
    }

    /// Waits until the credential is no longer good; says why.
    pub(crate) async fn ended(&self) -> Status {
        let expired = OptionFuture::from(self.expires.map(async |at| {
            // None is left of a time that is past.
            while let Ok(left) = at.duration_since(SystemTime::now())
                && !left.is_zero()
            {
                sleep(left.min(CLOCK_INTERVAL)).await;
            }
        }));
        select! {
            Some(()) = expired => errors::credential_expired(),
            () = self.withdrawn.cancelled() => errors::credential_invalid(),
        }
    }

    fn has_expired(&self) -> bool {
        self.expires.is_some_and(|at| at <= SystemTime::now())
    }

    fn withdraw(&self) {
        self.withdrawn.cancel();
    }

    #[cfg(test)]
    fn is_withdrawn(&self) -> bool {
        self.withdrawn.is_cancelled()
    }

    /// Whether both may do the same.
    fn is_like(&self, other: &Self) -> bool {
        self.tenant == other.tenant && self.roles == other.roles
    }
}

/// Whether `text` can be a tenant's name.
fn is_tenant(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=TENANT_CHARS_MAX).contains(&text.len()) && text.chars().all(good)
}

/// How callers prove who they are: by any of these, or not at all if there is none.
#[derive(Clone, Debug)]
pub(crate) struct Authentication {
    api_keys: Option<Directory>,
    tokens: Option<Tokens>,
    clients: Option<Directory>,
    /// Whoever calls a gateway that asks for no credential: one tenant without a name, that may do everything.
    anonymous: Arc<Principal>,
}

impl Authentication {
    pub(crate) fn new(
        api_keys: Option<Directory>,
        tokens: Option<Tokens>,
        clients: Option<Directory>,
    ) -> Self {
        let anonymous = Arc::new(Principal::new("", Role::ALL.to_vec()));
        Self { api_keys, tokens, clients, anonymous }
    }

    /// Whether nobody is asked who they are.
    pub(crate) fn is_anonymous(&self) -> bool {
        self.api_keys.is_none() && self.tokens.is_none() && self.clients.is_none()
    }

    /// Keeps what credentials are checked with up to date. Runs for as long as the server does.
    pub(crate) async fn follow(self) {
        join3(
            OptionFuture::from(self.api_keys.map(Directory::follow)),
            OptionFuture::from(self.tokens.map(Tokens::follow)),
            OptionFuture::from(self.clients.map(Directory::follow)),
        )
        .await;
    }

    /// What a call shows says more of who makes it than the connection that it comes by, which may be a proxy's.
    fn principal(&self, request: &Request<Body>) -> Result<Arc<Principal>, Status> {
        let headers = request.headers();
        if let Some(keys) = &self.api_keys
            && let Some(key) = only(headers, API_KEY)?
        {
            return keys.find(key.as_bytes()).ok_or_else(errors::credential_invalid);
        }
        if let Some(tokens) = &self.tokens
            && let Some(token) = only(headers, AUTHORIZATION)?.and_then(bearer)
        {
            return tokens.check(token);
        }
        if let Some(clients) = &self.clients
            && let Some(names) = request.extensions().get::<Peer>().and_then(Peer::certificate_names)
        {
            let found = names.iter().find_map(|name| clients.find(name.as_bytes()));
            return found.ok_or_else(errors::credential_invalid);
        }
        if self.is_anonymous() {
            return Ok(self.anonymous.clone());
        }
        Err(errors::credential_missing(&self.accepted()))
    }

    fn accepted(&self) -> String {
        let ways = [
            self.api_keys.as_ref().map(|_| "an API key as x-api-key"),
            self.tokens.as_ref().map(|_| "a token as authorization: Bearer"),
            self.clients.as_ref().map(|_| "a client certificate"),
        ];
        ways.into_iter().flatten().collect::<Vec<_>>().join(", or ")
    }
}

/// The value of a header, if there is one and no other. Of several, a proxy may have gone by one that is not read here.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a HeaderValue>, Status> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        (_, Some(_)) => Err(errors::credential_ambiguous()),
    }
}

/// The token in an `authorization`, if it holds one.
fn bearer(value: &HeaderValue) -> Option<&str> {
    let value = value.to_str().ok()?;
    let (scheme, token) = value.split_at_checked(BEARER.len())?;
    scheme.eq_ignore_ascii_case(BEARER).then(|| token.trim())
}

impl Admit for Authentication {
    fn admit(&self, request: &mut Request<Body>) -> Result<(), Status> {
        let principal = self.principal(request)?;
        let role = Role::of_method(request.uri().path());
        if !principal.roles.contains(&role) {
            return Err(errors::role_missing(role.as_str()));
        }
        request.extensions_mut().insert(principal);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_order_service_is_for_operators() {
        for (path, role) in [
            ("/orders.v1.OrderService/GetOrder", Role::Read),
            ("/orders.v1.OrderService/CreateOrder", Role::Write),
            ("/orders.v1.OrderService/LaterMethod", Role::Write),
            ("/operations.v1.DeadLetterService/ListDeadLetters", Role::Operations),
            ("/inventory.v1.StockService/ListStock", Role::Operations),
            ("/later.v1.Service/GetOrder", Role::Operations),
        ] {
            assert_eq!(Role::of_method(path), role, "{path}");
        }
    }

    #[test]
    fn a_token_is_what_follows_bearer_in_any_case() {
        let of = |value: &str| {
            let value: HeaderValue = value.parse().unwrap();
            bearer(&value).map(str::to_owned)
        };
        assert_eq!(of("Bearer a.b.c").as_deref(), Some("a.b.c"));
        assert_eq!(of("bearer  a.b.c").as_deref(), Some("a.b.c"));
        for other in ["", "Bearer", "Basic a.b.c", "a.b.c"] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_principal_ends_when_its_time_is_over_or_it_is_withdrawn() {
        let principal = |expires| Principal { expires, ..Principal::new("shop", vec![Role::Read]) };
        let past = SystemTime::now() - Duration::from_secs(1);
        let future = SystemTime::now() + Duration::from_secs(1);
        for (expires, expected) in [(past, true), (future, false)] {
            assert_eq!(principal(Some(expires)).has_expired(), expected);
            let ended = principal(Some(expires)).ended().await;
            assert_eq!(ended.message(), errors::credential_expired().message());
        }
        let withdrawn = principal(None);
        withdrawn.withdraw();
        assert_eq!(withdrawn.ended().await.message(), errors::credential_invalid().message());
    }
}
