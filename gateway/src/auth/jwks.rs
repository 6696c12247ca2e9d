//! The public keys that tokens are checked with (JWK Set, RFC 7517): from a file or from their issuer's URL.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use http::Uri;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use program::config::has_usable_port;
use serde::Deserialize;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::transport::http_client::HttpClient;

/// Largest set of keys.
const SET_BYTES_MAX: usize = 1024 * 1024;
/// How long a URL may take to answer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// Minimum age of a set before it is fetched again, for any unknown key.
pub(super) const FETCH_INTERVAL_MIN: Duration = Duration::from_secs(10);

/// The source of the keys.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// A file.
    File(PathBuf),
    /// A URL.
    Url(Uri),
}

impl Source {
    /// Reads a path or a URL. Plaintext keys could be forged, so `http` is for this machine only.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if !text.contains("://") {
            return if text.is_empty() { Err("is empty".to_owned()) } else { Ok(Self::File(text.into())) };
        }
        let uri: Uri = text.parse().map_err(|error| format!("is not a URL: {error}"))?;
        if !uri.authority().is_some_and(has_usable_port) {
            return Err("has no host, or an invalid port".to_owned());
        }
        match (uri.scheme_str(), uri.host()) {
            (Some("https"), Some(_)) => Ok(Self::Url(uri)),
            (Some("http"), Some("localhost" | "127.0.0.1" | "[::1]")) => Ok(Self::Url(uri)),
            (Some("http"), _) => Err("must be https://, except on localhost".to_owned()),
            _ => Err("must be a file or an https:// URL".to_owned()),
        }
    }
}

/// Public keys by their ids (`kid`).
#[derive(Debug, Default)]
pub(super) struct KeySet {
    text: String,
    keys: HashMap<String, Key>,
}

/// One public key.
#[derive(Debug)]
pub(super) struct Key {
    jwk: Jwk,
    pub(super) decoding: DecodingKey,
    /// Allowed signature algorithms: never empty, and all of one family.
    pub(super) algorithms: Vec<Algorithm>,
    /// Cancelled when the key is no longer in the set.
    pub(super) revoked: CancellationToken,
}

impl KeySet {
    /// Reads a set. Keys that fit none of `algorithms`, or have no id, are skipped, as RFC 7517 (section 5) asks.
    pub(super) fn parse(text: &str, algorithms: &[Algorithm]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        let set: Set = serde_json::from_str(text)?;
        let keys = set.keys.into_iter().filter_map(|key| Key::read(key, algorithms)).collect();
        Ok(Self { text: text.to_owned(), keys })
    }

    pub(super) fn get(&self, id: &str) -> Option<&Key> {
        self.keys.get(id)
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether both were read from the same text.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.text == other.text
    }

    /// Keeps the keys that were in the previous set. Signatures of the others are invalid once
    /// [`KeySet::revoke_keys_missing_in`] was called.
    pub(super) fn keep_unchanged_of(&mut self, before: &Self) {
        for (id, key) in &mut self.keys {
            if let Some(same) = before.keys.get(id).filter(|before| before.jwk == key.jwk) {
                key.revoked = same.revoked.clone();
            }
        }
    }

    pub(super) fn revoke_keys_missing_in(&self, now: &Self) {
        for (id, key) in &self.keys {
            if now.keys.get(id).is_none_or(|now| now.jwk != key.jwk) {
                key.revoked.cancel();
            }
        }
    }
}

impl Key {
    fn read(value: serde_json::Value, allowed: &[Algorithm]) -> Option<(String, Self)> {
        let jwk: Jwk = serde_json::from_value(value).ok()?;
        if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
            return None;
        }
        let mut algorithms = algorithms_of(&jwk.algorithm).to_vec();
        algorithms.retain(|&algorithm| {
            allowed.contains(&algorithm) && jwk.common.key_algorithm.is_none_or(|own| own == algorithm.into())
        });
        let id = jwk.common.key_id.clone()?;
        let decoding = DecodingKey::from_jwk(&jwk).ok()?;
        let key = Self { jwk, decoding, algorithms, revoked: CancellationToken::new() };
        (!key.algorithms.is_empty()).then_some((id, key))
    }
}

/// The algorithms that a key's type permits. Secrets (`oct`) are no public keys.
fn algorithms_of(parameters: &AlgorithmParameters) -> &'static [Algorithm] {
    use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
    let curve = match parameters {
        AlgorithmParameters::RSA(_) => return &[RS256, RS384, RS512, PS256, PS384, PS512],
        AlgorithmParameters::EllipticCurve(key) => &key.curve,
        AlgorithmParameters::OctetKeyPair(key) => &key.curve,
        AlgorithmParameters::OctetKey(_) | AlgorithmParameters::Other(_) | _ => return &[],
    };
    match curve {
        EllipticCurve::P256 => &[ES256],
        EllipticCurve::P384 => &[ES384],
        EllipticCurve::Ed25519 => &[EdDSA],
        EllipticCurve::P521 | _ => &[],
    }
}

/// A URL that keys are fetched from.
#[derive(Debug)]
pub(super) struct Remote {
    uri: Uri,
    client: HttpClient,
    /// When the set in use was requested.
    fetched: Mutex<Option<Instant>>,
    /// Notified when a token names a key that is not in the set.
    pub(super) wanted: Notify,
}

impl Remote {
    /// No request has been sent yet.
    pub(super) fn new(uri: Uri) -> Result<Self, String> {
        let client = HttpClient::new(SET_BYTES_MAX)
            .map_err(|error| format!("no certificate authorities to trust: {error}"))?;
        Ok(Self { uri, client, fetched: Mutex::default(), wanted: Notify::new() })
    }

    /// Asks for the set. Redirects are not followed.
    pub(super) async fn fetch(&self) -> anyhow::Result<String> {
        let set = timeout(FETCH_TIMEOUT, self.client.get(self.uri.clone())).await;
        let set = set.with_context(|| format!("no answer within {FETCH_TIMEOUT:?}"))??;
        String::from_utf8(set.to_vec()).context("is not UTF-8 text")
    }

    /// Notes that a set that was requested at `asked` is in use.
    pub(super) fn has_fetched(&self, asked: Instant) {
        *self.fetched.lock().unwrap_or_else(PoisonError::into_inner) = Some(asked);
    }

    /// Whether the set is so new that a key which is not in it does not exist.
    pub(super) fn is_fresh(&self) -> bool {
        let fetched = *self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        fetched.is_some_and(|at| at.elapsed() < FETCH_INTERVAL_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALLOWED: [Algorithm; 2] = [Algorithm::RS256, Algorithm::ES256];
    const EC: &str = r#""kty":"EC","crv":"P-256","x":"AQAB","y":"AQAB""#;
    const RSA: &str = r#""kty":"RSA","n":"AQAB","e":"AQAB""#;

    fn set(keys: &[String]) -> KeySet {
        let keys: Vec<_> = keys.iter().map(|key| format!("{{{key}}}")).collect();
        KeySet::parse(&format!(r#"{{"keys":[{}]}}"#, keys.join(",")), &ALLOWED).unwrap()
    }

    #[test]
    fn a_key_is_for_the_algorithms_of_its_kind_that_are_allowed() {
        let keys = set(&[format!(r#""kid":"rsa",{RSA}"#), format!(r#""kid":"ec","use":"sig",{EC}"#)]);
        assert_eq!(keys.get("rsa").unwrap().algorithms, [Algorithm::RS256]);
        assert_eq!(keys.get("ec").unwrap().algorithms, [Algorithm::ES256]);
    }

    #[test]
    fn keys_for_other_uses_are_skipped() {
        let others = [
            RSA.to_owned(),
            format!(r#""kid":"1","use":"enc",{RSA}"#),
            format!(r#""kid":"2","alg":"RS512",{RSA}"#),
            format!(r#""kid":"3","alg":"HS256",{RSA}"#),
            r#""kid":"4","kty":"oct","k":"c2VjcmV0""#.to_owned(),
            r#""kid":"5","kty":"EC","crv":"P-384","x":"AQAB","y":"AQAB""#.to_owned(),
            r#""kid":"6","kty":"new","crv":"X""#.to_owned(),
        ];
        assert_eq!(set(&others).len(), 0);
    }

    #[test]
    fn keys_missing_in_the_new_set_are_revoked() {
        let before = set(&[format!(r#""kid":"a",{EC}"#), format!(r#""kid":"b",{EC}"#)]);
        let mut now = set(&[format!(r#""kid":"a",{EC}"#), format!(r#""kid":"b",{RSA}"#)]);
        now.keep_unchanged_of(&before);
        before.revoke_keys_missing_in(&now);
        assert!(!before.get("a").unwrap().revoked.is_cancelled());
        assert!(before.get("b").unwrap().revoked.is_cancelled());
        assert!(!now.get("b").unwrap().revoked.is_cancelled());
        now.revoke_keys_missing_in(&KeySet::default());
        assert!(before.get("a").unwrap().revoked.is_cancelled());
    }

    #[test]
    fn plaintext_urls_are_accepted_on_localhost_only() {
        for good in ["https://idp.example.org/jwks", "http://localhost:1/jwks", "http://127.0.0.1:1/", "keys"]
        {
            assert!(Source::parse(good).is_ok(), "{good}");
        }
        for bad in
            ["", "http://idp.example.org/jwks", "http://127.0.0.1.example.org/", "ftp://a/b", "https://"]
        {
            assert!(Source::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(?s).{0,200}") {
            drop(KeySet::parse(&text, &ALLOWED));
            drop(Source::parse(&text));
        }
    }
}
