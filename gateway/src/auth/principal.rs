//! The principal of a call: its tenant and roles.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::OptionFuture;
use tokio::select;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::errors;

/// Longest tenant name, in characters.
const TENANT_CHARS_MAX: usize = 64;

/// How often the expiry of a credential is checked: the clock may be set, or the machine may sleep.
const CLOCK_INTERVAL: Duration = Duration::from_secs(10);

/// Services of this package are for callers who order; all others are for operators.
const ORDERS: &str = "/orders.v1.";

/// The identity behind a call. A tenant reaches its own customers and orders, and no others.
#[derive(Debug)]
pub(crate) struct Principal {
    pub(crate) tenant: Arc<str>,
    pub(super) roles: Vec<Role>,
    /// When the credential expires, if it has an expiry.
    pub(super) expires: Option<SystemTime>,
    /// Cancelled when the credential is revoked.
    pub(super) revoked: CancellationToken,
}

/// A role of a principal.
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
    pub(super) const ALL: [Self; 3] = [Self::Write, Self::Read, Self::Operations];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Write => "orders:write",
            Self::Read => "orders:read",
            Self::Operations => "operations",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }

    /// The role that a method requires. Unknown methods of OrderService require `orders:write`.
    pub(super) fn of_method(path: &str) -> Self {
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
    pub(super) fn new(tenant: &str, roles: Vec<Role>) -> Self {
        Self { tenant: tenant.into(), roles, expires: None, revoked: CancellationToken::new() }
    }

    /// Waits until the credential is invalid; returns the reason.
    pub(crate) async fn ended(&self) -> Status {
        let expired = OptionFuture::from(self.expires.map(async |at| {
            // `duration_since` fails once the time has passed.
            while let Ok(left) = at.duration_since(SystemTime::now())
                && !left.is_zero()
            {
                sleep(left.min(CLOCK_INTERVAL)).await;
            }
        }));
        select! {
            Some(()) = expired => errors::credential_expired(),
            () = self.revoked.cancelled() => errors::credential_invalid(),
        }
    }

    pub(super) fn has_expired(&self) -> bool {
        self.expires.is_some_and(|at| at <= SystemTime::now())
    }

    pub(super) fn revoke(&self) {
        self.revoked.cancel();
    }

    #[cfg(test)]
    pub(super) fn is_revoked(&self) -> bool {
        self.revoked.is_cancelled()
    }

    /// Whether both may do the same.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.tenant == other.tenant && self.roles == other.roles
    }
}

/// Whether `text` can be a tenant's name.
pub(super) fn is_tenant(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=TENANT_CHARS_MAX).contains(&text.len()) && text.chars().all(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_services_than_orders_are_for_operators() {
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

    #[tokio::test(start_paused = true)]
    async fn a_principal_ends_when_it_expires_or_is_revoked() {
        let principal = |expires| Principal { expires, ..Principal::new("shop", vec![Role::Read]) };
        let past = SystemTime::now() - Duration::from_secs(1);
        let future = SystemTime::now() + Duration::from_secs(1);
        for (expires, expected) in [(past, true), (future, false)] {
            assert_eq!(principal(Some(expires)).has_expired(), expected);
            let ended = principal(Some(expires)).ended().await;
            assert_eq!(ended.message(), errors::credential_expired().message());
        }
        let revoked = principal(None);
        revoked.revoke();
        assert_eq!(revoked.ended().await.message(), errors::credential_invalid().message());
    }
}
