//! A token issuer: signs tokens by the standards alone (RFC 7515 to 7519), and publishes the keys.

use std::time::{Duration, SystemTime};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeySize, PublicKeyComponents};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RsaEncoding,
    RsaKeyPair,
};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

/// Issuer and audience of the tokens of [`claims`].
pub const ISSUER: &str = "https://issuer.example.org";
/// The same.
pub const AUDIENCE: &str = "waybill";

/// A key that tokens are signed with, and its id.
#[derive(Debug)]
pub struct SigningKey {
    id: &'static str,
    pair: Pair,
}

#[derive(Debug)]
enum Pair {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair),
}

impl SigningKey {
    /// For RS256.
    pub fn rsa(id: &'static str) -> Self {
        Self { id, pair: Pair::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).expect("key")) }
    }

    /// For ES256.
    pub fn ec(id: &'static str) -> Self {
        Self { id, pair: Pair::Ec(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("key")) }
    }

    /// Its public half, as it stands in a set of keys.
    pub fn public(&self) -> Value {
        match &self.pair {
            Pair::Rsa(pair) => {
                let public = PublicKeyComponents::<Vec<u8>>::from(pair.public_key());
                json!({"kid": self.id, "kty": "RSA", "n": encode(&public.n), "e": encode(&public.e)})
            }
            Pair::Ec(pair) => {
                let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
                json!({"kid": self.id, "kty": "EC", "crv": "P-256", "x": encode(x), "y": encode(y)})
            }
        }
    }

    /// A token with these claims.
    pub fn token(&self, claims: &Value) -> String {
        let algorithm = match self.pair {
            Pair::Rsa(_) => "RS256",
            Pair::Ec(_) => "ES256",
        };
        let header = json!({"alg": algorithm, "kid": self.id, "typ": "JWT"});
        token(&header, claims, |message| self.sign(message))
    }

    /// Its signature of a message.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        match &self.pair {
            Pair::Rsa(pair) => sign_rsa(pair, &RSA_PKCS1_SHA256, message),
            Pair::Ec(pair) => pair.sign(&SystemRandom::new(), message).expect("signature").as_ref().to_vec(),
        }
    }

    /// Its signature of a message by RS512, if it is an RSA key.
    pub fn sign_rs512(&self, message: &[u8]) -> Vec<u8> {
        match &self.pair {
            Pair::Rsa(pair) => sign_rsa(pair, &RSA_PKCS1_SHA512, message),
            Pair::Ec(_) => panic!("no RSA key"),
        }
    }
}

fn sign_rsa(pair: &RsaKeyPair, encoding: &'static dyn RsaEncoding, message: &[u8]) -> Vec<u8> {
    let mut signature = vec![0; pair.public_modulus_len()];
    pair.sign(encoding, &SystemRandom::new(), message, &mut signature).expect("signature");
    signature
}

/// A set of public keys.
pub fn key_set(keys: &[&SigningKey]) -> String {
    json!({"keys": keys.iter().map(|key| key.public()).collect::<Vec<_>>()}).to_string()
}

/// Claims of a token of `tenant` with `scope`, good for an hour.
pub fn claims(tenant: &str, scope: &str) -> Value {
    let exp = seconds_from_now(3600);
    json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "somebody", "exp": exp, "tenant": tenant, "scope": scope})
}

/// A time as tokens write it.
pub fn seconds_from_now(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(now.as_secs()).expect("now") + seconds
}

/// A token of any header and signature.
pub fn token(header: &Value, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let message = [header, claims].map(|part| encode(part.to_string().as_bytes())).join(".");
    let signature = encode(&sign(message.as_bytes()));
    format!("{message}.{signature}")
}

fn encode(bytes: &[u8]) -> String {
    BASE64URL_NOPAD.encode(bytes)
}
