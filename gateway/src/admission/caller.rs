//! The caller whose quota a call uses.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use http::Extensions;

use crate::auth::Principal;
use crate::transport::peer::Peer;

/// Whose quota a call uses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Caller {
    /// An authenticated tenant.
    Tenant(Arc<str>),
    /// A peer address, or an IPv6 network; `None` for a closed connection.
    Peer(Option<IpAddr>),
}

impl Caller {
    pub(crate) fn of(extensions: &Extensions) -> Self {
        match extensions.get::<Arc<Principal>>() {
            Some(principal) if !principal.tenant.is_empty() => Self::Tenant(principal.tenant.clone()),
            Some(_) | None => Self::Peer(extensions.get::<Peer>().and_then(|peer| peer.addr).map(counted)),
        }
    }

    /// The subject of a QuotaFailure.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Tenant(_) => "tenant",
            Self::Peer(_) => "peer",
        }
    }
}

/// The unit that counts as one address: a client with one IPv6 address has the other 2^64 of its network too (RFC
/// 6177).
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
