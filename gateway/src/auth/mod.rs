//! Who calls, and what they may do.

mod api_keys;

pub(crate) use api_keys::ApiKeys;

use std::sync::Arc;

use http::Request;
use tonic::Status;
use tonic::body::Body;

use crate::admission::Admit;
use crate::errors;

/// Metadata that carries an API key.
const API_KEY: &str = "x-api-key";

/// On whose behalf a call is made. A tenant sees its own customers and orders, and no others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Principal {
    pub(crate) tenant: Arc<str>,
    roles: Vec<Role>,
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
    /// Whoever calls a gateway that asks for no credential: one tenant without a name.
    fn anonymous() -> Self {
        Self { tenant: "".into(), roles: vec![Role::Write, Role::Read] }
    }
}

/// How callers prove who they are.
#[derive(Clone, Debug)]
pub(crate) enum Authentication {
    /// Not at all.
    Anonymous,
    /// By an API key.
    ApiKeys(ApiKeys),
}

impl Authentication {
    fn principal(&self, request: &Request<Body>) -> Result<Principal, Status> {
        match self {
            Self::Anonymous => Ok(Principal::anonymous()),
            Self::ApiKeys(keys) => {
                let key = request.headers().get(API_KEY).ok_or_else(errors::credential_missing)?;
                keys.find(key.as_bytes()).ok_or_else(errors::credential_invalid)
            }
        }
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
