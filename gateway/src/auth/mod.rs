//! Authentication and roles.

mod directory;
mod jwks;
mod principal;
mod tokens;

pub(crate) use directory::Directory;
#[cfg(any(test, fuzzing))]
pub(crate) use directory::Kind;
pub(crate) use principal::{Principal, Role};
pub(crate) use tokens::{TokenConfig, Tokens};

use std::sync::Arc;

use futures::future::{OptionFuture, join3};
use http::{HeaderMap, HeaderValue, Request};
use tonic::Status;
use tonic::body::Body;

use crate::errors;
use crate::gate::Admit;
use crate::transport::peer::Peer;

/// Metadata that carries an API key.
const API_KEY: &str = "x-api-key";
/// Metadata that carries a token.
const AUTHORIZATION: &str = "authorization";
/// How a token is marked in it (RFC 6750), in any case.
const BEARER: &str = "bearer ";
/// The accepted kinds of credentials. Without any, authentication is disabled.
#[derive(Clone, Debug)]
pub(crate) struct Authentication {
    api_keys: Option<Directory>,
    tokens: Option<Tokens>,
    clients: Option<Directory>,
    /// The caller of a gateway without authentication: one tenant without a name, with every role.
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

    /// Whether authentication is disabled.
    pub(crate) fn is_anonymous(&self) -> bool {
        self.api_keys.is_none() && self.tokens.is_none() && self.clients.is_none()
    }

    /// Reloads files and keys when they change. Runs for as long as the server does.
    pub(crate) async fn follow(self) {
        join3(
            OptionFuture::from(self.api_keys.map(Directory::follow)),
            OptionFuture::from(self.tokens.map(Tokens::follow)),
            OptionFuture::from(self.clients.map(Directory::follow)),
        )
        .await;
    }

    /// A credential of the call takes precedence over the client certificate, which may be a proxy's.
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

/// The value of a header. Several are rejected: a proxy may have checked another one than the gateway reads.
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
}
