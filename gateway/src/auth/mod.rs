//! Who calls, and what they may do.

mod directory;

pub(crate) use directory::Directory;

use std::sync::Arc;

use futures::future::{OptionFuture, join};
use http::Request;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;

use crate::admission::Admit;
use crate::connections::Peer;
use crate::errors;

/// Metadata that carries an API key.
const API_KEY: &str = "x-api-key";
/// Longest tenant name, in characters.
const TENANT_CHARS_MAX: usize = 64;

/// On whose behalf a call is made. A tenant sees its own customers and orders, and no others.
#[derive(Debug)]
pub(crate) struct Principal {
    pub(crate) tenant: Arc<str>,
    roles: Vec<Role>,
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

    /// What a method of OrderService asks for. A method that is not known here asks for the most.
    fn of_method(path: &str) -> Self {
        match path.rsplit('/').next() {
            Some("GetOrder" | "ListOrders" | "ListOrderEvents" | "WatchOrder" | "WatchOrders") => Self::Read,
            Some(_) | None => Self::Write,
        }
    }
}

impl Principal {
    fn new(tenant: &str, roles: Vec<Role>) -> Self {
        Self { tenant: tenant.into(), roles, withdrawn: CancellationToken::new() }
    }

    /// Waits until the credential is no longer good; says why.
    pub(crate) async fn ended(&self) -> Status {
        self.withdrawn.cancelled().await;
        errors::credential_invalid()
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
    clients: Option<Directory>,
    /// Whoever calls a gateway that asks for no credential: one tenant without a name.
    anonymous: Arc<Principal>,
}

impl Authentication {
    pub(crate) fn new(api_keys: Option<Directory>, clients: Option<Directory>) -> Self {
        let anonymous = Arc::new(Principal::new("", vec![Role::Write, Role::Read]));
        Self { api_keys, clients, anonymous }
    }

    /// Whether nobody is asked who they are.
    pub(crate) fn is_anonymous(&self) -> bool {
        self.api_keys.is_none() && self.clients.is_none()
    }

    /// Keeps what credentials are checked with up to date. Runs for as long as the server does.
    pub(crate) async fn follow(self) {
        join(
            OptionFuture::from(self.api_keys.map(Directory::follow)),
            OptionFuture::from(self.clients.map(Directory::follow)),
        )
        .await;
    }

    /// What a call shows says more of who makes it than the connection that it comes by, which may be a proxy's.
    fn principal(&self, request: &Request<Body>) -> Result<Arc<Principal>, Status> {
        let headers = request.headers();
        if let Some(keys) = &self.api_keys
            && let Some(key) = headers.get(API_KEY)
        {
            return keys.find(key.as_bytes()).ok_or_else(errors::credential_invalid);
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
            self.clients.as_ref().map(|_| "a client certificate"),
        ];
        ways.into_iter().flatten().collect::<Vec<_>>().join(", or ")
    }
}

impl Admit for Authentication {
    type Pass = ();

    fn admit(&self, request: &mut Request<Body>) -> Result<(), Status> {
        let principal = self.principal(request)?;
        let role = Role::of_method(request.uri().path());
        if !principal.roles.contains(&role) {
            return Err(errors::role_missing(role));
        }
        request.extensions_mut().insert(principal);
        Ok(())
    }
}
