//! The peer of a connection.

use std::net::IpAddr;
use std::sync::Arc;

use http::Request;
use tonic::Status;
use tonic::body::Body;

use super::eviction::AuthenticationState;
use crate::gate::Admit;

/// The peer of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// `None` of a connection that is gone already.
    pub(crate) addr: Option<IpAddr>,
    pub(super) certificate_names: Option<Arc<[String]>>,
    /// Where unauthenticated connections are evicted when there are too many.
    pub(super) authentication: Option<Arc<AuthenticationState>>,
}

impl Peer {
    /// The identity in the client's certificate, if it sent one.
    pub(crate) fn certificate_names(&self) -> Option<&[String]> {
        self.certificate_names.as_deref()
    }
}

/// Behind authentication: an authenticated call keeps its connection.
#[derive(Clone, Debug)]
pub(crate) struct KeepAuthenticated;

impl Admit for KeepAuthenticated {
    fn admit(&self, request: &mut Request<Body>) -> Result<(), Status> {
        if let Some(authentication) =
            request.extensions().get::<Peer>().and_then(|peer| peer.authentication.as_ref())
        {
            authentication.keep();
        }
        Ok(())
    }
}
