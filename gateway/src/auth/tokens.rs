//! Tokens: JWTs (RFC 7519) of one issuer, checked with that issuer's public keys.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use clap::builder::NonEmptyStringValueParser;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, AlgorithmFamily, Validation, decode, decode_header};
use program::backoff::Backoff;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::select;
use tokio::time::{Instant, sleep};
use tonic::Status;
use tracing::{debug, error, info, warn};

use super::jwks::{FETCH_INTERVAL_MIN, Key, KeySet, Remote, Source};
use super::principal::{Principal, Role, is_tenant};
use crate::errors;
use crate::transport::files::{self, Current, WatchedFiles};

/// How much the clocks of issuer and gateway may differ.
const LEEWAY: Duration = Duration::from_secs(30);
/// How often the keys of a URL are fetched.
const FETCH_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// Pauses while it does not answer.
const FETCH_BACKOFF: Backoff = Backoff { initial: Duration::from_millis(500), max: Duration::from_secs(30) };
/// Maximum number of verified tokens in the cache.
const VERIFIED_MAX: usize = 10_000;

/// Settings of tokens.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct TokenConfig {
    /// Public keys (JWKS) of the issuer of tokens (JWT). A file, reloaded when it changes, or an https:// URL,
    /// fetched every 5 minutes and when a token names another key. Unset: tokens are not accepted.
    #[arg(long, env = "JWT_JWKS", requires_all = ["jwt_issuer", "jwt_audience"], value_parser = Source::parse)]
    pub(crate) jwt_jwks: Option<Source>,
    /// Issuer of the tokens (`iss`).
    #[arg(long, env = "JWT_ISSUER", requires = "jwt_jwks", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) jwt_issuer: Option<String>,
    /// Audience of the tokens (`aud`).
    #[arg(long, env = "JWT_AUDIENCE", requires = "jwt_jwks", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) jwt_audience: Option<String>,
    /// Signature algorithms of tokens, separated by commas: RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384,
    /// EdDSA.
    #[arg(long, env = "JWT_ALGORITHMS", default_value = "RS256,ES256", value_delimiter = ',',
          value_parser = algorithm)]
    pub(crate) jwt_algorithms: Vec<Algorithm>,
    /// The claim that names the tenant.
    #[arg(long, env = "JWT_TENANT_CLAIM", default_value = "tenant", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) jwt_tenant_claim: String,
}

/// An algorithm with a public key: with a shared secret the gateway could issue tokens itself.
fn algorithm(text: &str) -> Result<Algorithm, String> {
    let algorithm =
        text.parse().ok().filter(|algorithm: &Algorithm| algorithm.family() != AlgorithmFamily::Hmac);
    algorithm
        .ok_or_else(|| "must be of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA".to_owned())
}

/// Checks tokens. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Tokens {
    rules: Arc<Rules>,
    source: KeySource,
    state: Current<State>,
}

/// How keys are kept up to date.
#[derive(Clone, Debug)]
enum KeySource {
    File(PathBuf, WatchedFiles),
    Url(Arc<Remote>),
}

#[derive(Debug)]
struct Rules {
    issuer: String,
    audience: String,
    algorithms: Vec<Algorithm>,
    tenant_claim: String,
}

/// The keys, and the hashes of tokens that were verified with them: looking one up takes a
/// fraction of the time that verifying its signature does.
#[derive(Debug, Default)]
struct State {
    keys: KeySet,
    verified: Mutex<HashMap<[u8; 32], Arc<Principal>>>,
}

/// Why a token is invalid. Only the log has the details.
#[derive(Debug, Error)]
enum TokenError {
    #[error("token has expired")]
    Expired,
    #[error("key id is unknown, keys are fetched again")]
    Unchecked,
    #[error("{0}")]
    Invalid(String),
}

impl From<TokenError> for Status {
    fn from(token_error: TokenError) -> Self {
        match token_error {
            TokenError::Expired => errors::credential_expired(),
            TokenError::Unchecked => errors::credential_unchecked(),
            TokenError::Invalid(_) => errors::credential_invalid(),
        }
    }
}

impl Tokens {
    /// Reads a file of keys; a URL is fetched later. `None` if tokens are not configured.
    pub(crate) fn read(config: &TokenConfig) -> Result<Option<Self>, String> {
        let (Some(source), Some(issuer), Some(audience)) =
            (&config.jwt_jwks, &config.jwt_issuer, &config.jwt_audience)
        else {
            return Ok(None);
        };
        let rules = Rules {
            issuer: issuer.clone(),
            audience: audience.clone(),
            algorithms: config.jwt_algorithms.clone(),
            tenant_claim: config.jwt_tenant_claim.clone(),
        };
        let (source, keys) = match source {
            Source::File(path) => {
                let source = KeySource::File(path.clone(), WatchedFiles::new(vec![path.clone()]));
                (source, read_keys(path, &rules)?)
            }
            Source::Url(uri) => (KeySource::Url(Arc::new(Remote::new(uri.clone())?)), KeySet::default()),
        };
        let state = Current::new(State { keys, ..State::default() });
        Ok(Some(Self { rules: Arc::new(rules), source, state }))
    }

    /// Takes tokens that are signed with one of `keys`, a JWKS.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn of(keys: &str) -> Option<Self> {
        use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
        let rules = Rules {
            issuer: "https://idp.example.org".to_owned(),
            audience: "waybill".to_owned(),
            algorithms: vec![RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA],
            tenant_claim: "tenant".to_owned(),
        };
        let keys = KeySet::parse(keys, &rules.algorithms).ok()?;
        let source = KeySource::File(PathBuf::new(), WatchedFiles::new(Vec::new()));
        let state = Current::new(State { keys, ..State::default() });
        Some(Self { rules: Arc::new(rules), source, state })
    }

    /// The caller with these claims, if the key `id` had signed them.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn claimed(&self, id: &str, claims: &Map<String, Value>) -> Option<Principal> {
        self.rules.principal(claims, self.state.get().keys.get(id)?).ok()
    }

    /// Whose token it is.
    pub(crate) fn check(&self, token: &str) -> Result<Arc<Principal>, Status> {
        self.principal(token).map_err(|token_error| {
            debug!(reason = %token_error, "token rejected");
            token_error.into()
        })
    }

    fn principal(&self, token: &str) -> Result<Arc<Principal>, TokenError> {
        let state = self.state.get();
        let hash = Sha256::digest(token).into();
        let principal = match state.known(&hash) {
            Some(principal) => principal,
            None => {
                let principal = Arc::new(self.verify(&state.keys, token)?);
                state.remember(hash, principal.clone());
                principal
            }
        };
        if principal.has_expired() { Err(TokenError::Expired) } else { Ok(principal) }
    }

    fn verify(&self, keys: &KeySet, token: &str) -> Result<Principal, TokenError> {
        let header = decode_header(token).map_err(|error| TokenError::Invalid(error.to_string()))?;
        if header.crit.is_some() {
            return Err(TokenError::Invalid("critical extensions (crit) are not supported".to_owned()));
        }
        let id = header.kid.ok_or_else(|| TokenError::Invalid("key id (kid) is missing".to_owned()))?;
        let key = keys.get(&id).ok_or_else(|| self.unknown_key(&id))?;
        let claims = decode::<Map<String, Value>>(token, &key.decoding, &self.rules.validation(key));
        let claims = claims.map_err(|error| {
            let expired = matches!(error.kind(), ErrorKind::ExpiredSignature);
            if expired { TokenError::Expired } else { TokenError::Invalid(error.to_string()) }
        })?;
        self.rules.principal(&claims.claims, key)
    }

    fn unknown_key(&self, id: &str) -> TokenError {
        match &self.source {
            KeySource::Url(remote) if !remote.is_fresh() => {
                remote.wanted.notify_one();
                TokenError::Unchecked
            }
            KeySource::Url(_) | KeySource::File(..) => TokenError::Invalid(format!("unknown key id {id:?}")),
        }
    }

    /// Keeps the keys up to date; those from before stay in use while there are no new ones. Runs for as long
    /// as the server does.
    pub(crate) async fn follow(self) {
        match self.source.clone() {
            KeySource::File(path, watched) => self.follow_file(path, watched).await,
            KeySource::Url(remote) => self.follow_url(&remote).await,
        }
    }

    async fn follow_file(&self, path: PathBuf, watched: WatchedFiles) {
        let rules = self.rules.clone();
        let take = |read| match read {
            Ok(keys) => self.replace(keys),
            Err(error) => error!(error, "token keys not reloaded, previous keys kept"),
        };
        watched.follow(move || read_keys(&path, &rules), take).await;
    }

    async fn follow_url(&self, remote: &Remote) {
        let mut failures = 0;
        loop {
            let asked = Instant::now();
            let fetched = remote.fetch().await;
            let read = fetched.and_then(|text| Ok(KeySet::parse(&text, &self.rules.algorithms)?));
            match read {
                Ok(keys) => {
                    failures = 0;
                    self.replace(keys);
                    remote.has_fetched(asked);
                    sleep(FETCH_INTERVAL_MIN).await;
                    select! {
                        () = sleep(FETCH_INTERVAL) => {}
                        () = remote.wanted.notified() => {}
                    }
                }
                Err(error) => {
                    failures += 1;
                    let error = format!("{error:#}");
                    warn!(error, "token keys not fetched, previous keys kept");
                    sleep(FETCH_BACKOFF.after(failures)).await;
                }
            }
        }
    }

    fn replace(&self, mut keys: KeySet) {
        let before = self.state.get();
        if keys.is_same(&before.keys) {
            return;
        }
        info!(keys = keys.len(), "token keys loaded");
        keys.keep_unchanged_of(&before.keys);
        let state = self.state.set(State { keys, ..State::default() });
        before.keys.revoke_keys_missing_in(&state.keys);
    }
}

impl Rules {
    fn validation(&self, key: &Key) -> Validation {
        let mut validation = Validation::default();
        validation.algorithms.clone_from(&key.algorithms);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY.as_secs();
        validation
    }

    /// The principal of checked claims. Roles come from `scope` (RFC 8693, section 4.2) and `roles` (RFC 9068, section
    /// 2.2.3); unknown ones are ignored.
    fn principal(&self, claims: &Map<String, Value>, key: &Key) -> Result<Principal, TokenError> {
        let invalid = |problem: String| TokenError::Invalid(problem);
        let tenant = claims.get(&self.tenant_claim).and_then(Value::as_str).filter(|text| is_tenant(text));
        let tenant = tenant.ok_or_else(|| invalid(format!("no tenant in claim {:?}", self.tenant_claim)))?;
        let scope = claims.get("scope").and_then(Value::as_str).unwrap_or_default();
        let roles = claims.get("roles").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let roles = scope.split(' ').chain(roles.iter().filter_map(Value::as_str));
        let expires = claims.get("exp").and_then(Value::as_f64);
        let expires = expires.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let expires =
            expires.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since.checked_add(LEEWAY)?));
        Ok(Principal {
            expires: Some(expires.ok_or_else(|| invalid("no expiry (exp)".to_owned()))?),
            revoked: key.revoked.clone(),
            ..Principal::new(tenant, roles.filter_map(Role::parse).collect())
        })
    }
}

impl State {
    fn known(&self, hash: &[u8; 32]) -> Option<Arc<Principal>> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner).get(hash).cloned()
    }

    fn remember(&self, hash: [u8; 32], principal: Arc<Principal>) {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.len() >= VERIFIED_MAX {
            verified.retain(|_, principal| !principal.has_expired());
        }
        if verified.len() >= VERIFIED_MAX {
            verified.clear();
        }
        verified.insert(hash, principal);
    }
}

fn read_keys(path: &Path, rules: &Rules) -> Result<KeySet, String> {
    let said = |error: &dyn std::fmt::Display, problem| format!("{} {problem}: {error}", path.display());
    let text = files::read_text(path).map_err(|error| said(&error, "cannot be read"))?;
    KeySet::parse(&text, &rules.algorithms).map_err(|error| said(&error, "is not a JWKS"))
}
