//! Calls with a token (JWT): which are good, and what becomes of streams when they no longer are.

use std::path::Path;
use std::sync::{Arc, Mutex};

use aws_lc_rs::hmac;
use harness::certificates::replace;
use harness::issuer::{SigningKey, claims, key_set, seconds_from_now, token};
use harness::{Deployment, Options, PATIENCE, Shows, eventually, item, order_of};
use proto::orders::v1::{GetOrderRequest, WatchOrdersRequest, WatchOrdersResponse};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_types::StatusExt;

const BOTH: &str = "openid orders:write orders:read";
/// How much clocks may differ.
const LEEWAY: i64 = 30;

async fn taking_tokens_of(jwks: &str, more: &[(&'static str, &str)]) -> Deployment {
    let issuer = [
        ("JWT_JWKS", jwks),
        ("JWT_ISSUER", harness::issuer::ISSUER),
        ("JWT_AUDIENCE", harness::issuer::AUDIENCE),
    ];
    let gateway = issuer.iter().chain(more).map(|&(name, value)| (name, value.to_owned())).collect();
    Deployment::start_with(Options { replicas: 0, gateway, ..Options::default() }).await
}

async fn with_file(path: &Path) -> Deployment {
    taking_tokens_of(path.to_str().unwrap(), &[]).await
}

async fn place(waybill: &Deployment, token: &str) -> Result<String, Status> {
    let request = order_of("ada", "r-1", vec![item("widget", 1)]);
    let answer = Shows::token(token).on(waybill.channel()).create_order(request).await?;
    Ok(answer.into_inner().order.unwrap().order_id)
}

async fn watch(waybill: &Deployment, token: &str) -> Result<Streaming<WatchOrdersResponse>, Status> {
    let request = WatchOrdersRequest { customer_id: "ada".to_owned(), after_revision: 0 };
    Ok(Shows::token(token).on(waybill.channel()).watch_orders(request).await?.into_inner())
}

async fn end(mut watch: Streaming<WatchOrdersResponse>) -> Status {
    timeout(PATIENCE, async {
        loop {
            match watch.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("an end with OK"),
                Err(status) => return status,
            }
        }
    })
    .await
    .expect("an end")
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

fn with(changes: Value) -> Value {
    let mut claims = claims("shop-1", BOTH);
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims("shop-1", BOTH);
    claims.as_object_mut().unwrap().remove(name);
    claims
}

#[tokio::test]
async fn a_token_is_good_only_if_all_of_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (rsa, ec) = (SigningKey::rsa("rsa"), SigningKey::ec("ec"));
    let waybill = with_file(&replace(dir.path(), "jwks", &key_set(&[&rsa, &ec]))).await;

    let good = [
        rsa.token(&claims("shop-1", BOTH)),
        ec.token(&claims("shop-1", BOTH)),
        ec.token(&with(json!({"aud": ["others", "waybill"]}))),
        ec.token(&with(json!({"scope": "orders:read", "roles": ["orders:write", "admin"]}))),
        // Clocks differ a little.
        ec.token(&with(json!({"exp": seconds_from_now(-LEEWAY / 2)}))),
        ec.token(&with(json!({"nbf": seconds_from_now(LEEWAY / 2)}))),
    ];
    for token in &good {
        place(&waybill, token).await.unwrap();
    }

    let stranger = SigningKey::ec("ec");
    let another = SigningKey::ec("another");
    let mut forged = ec.token(&claims("shop-2", BOTH));
    forged.truncate(forged.rfind('.').unwrap());
    forged.push_str(&good[1][good[1].rfind('.').unwrap()..]);
    let invalid = [
        ("no token", "nonsense".to_owned()),
        ("empty", String::new()),
        ("not yet valid", ec.token(&with(json!({"nbf": seconds_from_now(LEEWAY * 4)})))),
        ("no expiry", ec.token(&without("exp"))),
        ("expiry that is no time", ec.token(&with(json!({"exp": "tomorrow"})))),
        ("wrong issuer", ec.token(&with(json!({"iss": "https://other.example.org"})))),
        ("no issuer", ec.token(&without("iss"))),
        ("wrong audience", ec.token(&with(json!({"aud": "others"})))),
        ("no audience", ec.token(&without("aud"))),
        ("wrong signature", stranger.token(&claims("shop-1", BOTH))),
        ("signature of another token", forged),
        ("unknown key", another.token(&claims("shop-1", BOTH))),
        ("no tenant", ec.token(&without("tenant"))),
        ("tenant that is none", ec.token(&with(json!({"tenant": ""})))),
        ("tenant of another form", ec.token(&with(json!({"tenant": "a/b"})))),
    ];
    for (what, token) in invalid {
        let status = place(&waybill, &token).await.unwrap_err();
        let told = (status.code(), reason(&status));
        assert_eq!(told, (Code::Unauthenticated, "CREDENTIAL_INVALID".to_owned()), "{what}");
        assert_eq!(status.message(), "credential is invalid or revoked", "{what}");
    }

    let expired = place(&waybill, &ec.token(&with(json!({"exp": seconds_from_now(-LEEWAY * 4)})))).await;
    assert_eq!(reason(&expired.unwrap_err()), "CREDENTIAL_EXPIRED");
    for scope in ["", "openid", "orders:read", "orders:writer"] {
        let status = place(&waybill, &ec.token(&claims("shop-1", scope))).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::PermissionDenied, "ROLE_MISSING"));
    }
    let nothing = Shows::default().on(waybill.channel()).get_order(GetOrderRequest::default()).await;
    assert_eq!(reason(&nothing.unwrap_err()), "CREDENTIAL_MISSING");
    assert_eq!(waybill.gateway.health("").await, Some(ServingStatus::Serving));
}

#[tokio::test]
async fn the_algorithm_is_the_keys_and_not_the_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let rsa = SigningKey::rsa("rsa");
    let waybill = with_file(&replace(dir.path(), "jwks", &key_set(&[&rsa]))).await;
    place(&waybill, &rsa.token(&claims("shop-1", BOTH))).await.unwrap();

    let public = rsa.public();
    // What an attacker has: the public key, in each form that a careless verifier may take for a secret.
    let secrets = [public.to_string(), public["n"].as_str().unwrap().to_owned(), String::new()];
    let mut forged: Vec<_> = secrets
        .iter()
        .map(|secret| {
            let secret = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
            let header = json!({"alg": "HS256", "kid": "rsa"});
            token(&header, &claims("shop-1", BOTH), |m| hmac::sign(&secret, m).as_ref().to_vec())
        })
        .collect();
    for none in ["none", "None", "NONE", ""] {
        forged.push(token(&json!({"alg": none, "kid": "rsa"}), &claims("shop-1", BOTH), |_| Vec::new()));
    }
    // Rightly signed, by an algorithm that is not among those that are allowed, or with an unknown extension.
    let header = json!({"alg": "RS512", "kid": "rsa"});
    forged.push(token(&header, &claims("shop-1", BOTH), |m| rsa.sign_rs512(m)));
    let extended = json!({"alg": "RS256", "kid": "rsa", "crit": ["exp"]});
    forged.push(token(&extended, &claims("shop-1", BOTH), |m| rsa.sign(m)));
    for token in forged {
        assert_eq!(reason(&place(&waybill, &token).await.unwrap_err()), "CREDENTIAL_INVALID", "{token}");
    }
}

#[tokio::test]
async fn tenants_of_tokens_and_of_keys_are_the_same_and_do_not_meet() {
    // The SHA-256 of "key".
    let hash = "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683";
    let dir = tempfile::tempdir().unwrap();
    let ec = SigningKey::ec("ec");
    let jwks = replace(dir.path(), "jwks", &key_set(&[&ec]));
    let keys = replace(dir.path(), "keys", &format!("{hash} shop-1 orders:read\n"));
    let more = [("API_KEYS_FILE", keys.to_str().unwrap()), ("JWT_TENANT_CLAIM", "https://example.org/shop")];
    let waybill = taking_tokens_of(jwks.to_str().unwrap(), &more).await;

    let of_shop = |shop: &str| ec.token(&with(json!({"tenant": "nobody", "https://example.org/shop": shop})));
    let order_id = place(&waybill, &of_shop("shop-1")).await.unwrap();
    let get = || GetOrderRequest { order_id: order_id.clone() };
    Shows::key("key").on(waybill.channel()).get_order(get()).await.unwrap();
    let other = Shows::token(&of_shop("shop-2")).on(waybill.channel()).get_order(get()).await;
    assert_eq!(other.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_stream_ends_with_its_token() {
    let dir = tempfile::tempdir().unwrap();
    let ec = SigningKey::ec("ec");
    let waybill = with_file(&replace(dir.path(), "jwks", &key_set(&[&ec]))).await;
    let lasting = watch(&waybill, &ec.token(&claims("shop-1", BOTH))).await.unwrap();
    // Good for two more seconds, thanks to the leeway.
    let token = ec.token(&with(json!({"exp": seconds_from_now(2 - LEEWAY)})));
    let ended = end(watch(&waybill, &token).await.unwrap()).await;
    assert_eq!((ended.code(), reason(&ended).as_str()), (Code::Unauthenticated, "CREDENTIAL_EXPIRED"));
    // What was found good once is not good for ever.
    assert_eq!(reason(&place(&waybill, &token).await.unwrap_err()), "CREDENTIAL_EXPIRED");
    drop(lasting);
}

#[tokio::test]
async fn keys_come_and_go_with_their_file() {
    let dir = tempfile::tempdir().unwrap();
    let (old, kept, new) = (SigningKey::ec("old"), SigningKey::ec("kept"), SigningKey::ec("new"));
    let mut waybill = with_file(&replace(dir.path(), "jwks", &key_set(&[&old, &kept]))).await;
    let [of_old, of_kept, of_new] = [&old, &kept, &new].map(|key| key.token(&claims("shop-1", BOTH)));
    place(&waybill, &of_old).await.unwrap();
    assert_eq!(reason(&place(&waybill, &of_new).await.unwrap_err()), "CREDENTIAL_INVALID");
    let watch_of_old = watch(&waybill, &of_old).await.unwrap();
    let mut watch_of_kept = watch(&waybill, &of_kept).await.unwrap();

    replace(dir.path(), "jwks", "nonsense");
    let refused = |line: &Value| line["message"].as_str()?.contains("not reloaded").then_some(());
    waybill.gateway.process.logged("refusal of the file", refused).await;
    place(&waybill, &of_old).await.unwrap();

    replace(dir.path(), "jwks", &key_set(&[&kept, &new]));
    eventually("the new key", async || place(&waybill, &of_new).await.ok()).await;
    assert_eq!(reason(&place(&waybill, &of_old).await.unwrap_err()), "CREDENTIAL_INVALID");
    assert_eq!(reason(&end(watch_of_old).await), "CREDENTIAL_INVALID");
    // The stream of the key that stayed goes on: the order that was placed is the first that it shows.
    timeout(PATIENCE, watch_of_kept.message()).await.expect("an event").unwrap().unwrap();
}

/// Serves a set of keys over HTTP, or refuses to, and counts how often it was asked.
#[derive(Clone)]
struct Jwks {
    url: String,
    answer: Arc<Mutex<(u16, String)>>,
    asked: Arc<Mutex<usize>>,
}

impl Jwks {
    async fn serve(status: u16, text: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks", listener.local_addr().unwrap());
        let jwks = Self { url, answer: Arc::new(Mutex::new((status, text))), asked: Arc::default() };
        let serving = jwks.clone();
        tokio::spawn(async move {
            loop {
                let (mut connection, _) = listener.accept().await.unwrap();
                let mut request = [0; 4096];
                let length = connection.read(&mut request).await.unwrap();
                assert!(request[..length].starts_with(b"GET /jwks HTTP/1.1\r\n"));
                *serving.asked.lock().unwrap() += 1;
                let (status, text) = serving.answer.lock().unwrap().clone();
                let head = format!("HTTP/1.1 {status} Told\r\ncontent-length: {}\r\n\r\n", text.len());
                connection.write_all((head + &text).as_bytes()).await.unwrap();
            }
        });
        jwks
    }

    fn answer(&self, status: u16, text: String) {
        *self.answer.lock().unwrap() = (status, text);
    }

    fn asked(&self) -> usize {
        *self.asked.lock().unwrap()
    }
}

#[tokio::test]
async fn keys_are_fetched_again_when_a_token_names_another() {
    let (old, new) = (SigningKey::ec("old"), SigningKey::ec("new"));
    let [of_old, of_new] = [&old, &new].map(|key| key.token(&claims("shop-1", BOTH)));
    // Before there are keys nothing is said about a token.
    let jwks = Jwks::serve(503, "not yet".to_owned()).await;
    let waybill = taking_tokens_of(&jwks.url, &[]).await;
    let unchecked = place(&waybill, &of_old).await.unwrap_err();
    assert_eq!((unchecked.code(), reason(&unchecked).as_str()), (Code::Unavailable, "CREDENTIAL_UNCHECKED"));
    assert!(unchecked.get_details_retry_info().is_some());

    jwks.answer(200, key_set(&[&old]));
    eventually("the first keys", async || place(&waybill, &of_old).await.ok()).await;

    // Unknown keys make the gateway ask again, but not for each of them.
    let asked = jwks.asked();
    jwks.answer(200, key_set(&[&old, &new]));
    let mut calls = 0;
    eventually("the new key", async || {
        calls += 1;
        place(&waybill, &of_new).await.ok()
    })
    .await;
    assert!(calls > 20 && jwks.asked() - asked <= 2, "{calls} calls, asked {} times", jwks.asked() - asked);

    // While the issuer is away, or talks nonsense, the keys stay.
    for (status, text) in [(500, String::new()), (200, "<html>".to_owned()), (302, key_set(&[]))] {
        jwks.answer(status, text);
        let asked = jwks.asked();
        let of_another = SigningKey::ec("another").token(&claims("shop-1", BOTH));
        eventually("a further question", async || {
            place(&waybill, &of_another).await.unwrap_err();
            (jwks.asked() > asked).then_some(())
        })
        .await;
        place(&waybill, &of_old).await.unwrap();
        place(&waybill, &of_new).await.unwrap();
    }
}
