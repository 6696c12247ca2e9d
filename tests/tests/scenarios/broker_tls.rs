//! TLS between the programs and their broker.

use std::fs;

use harness::certificates::{self, Authority};
use harness::{Deployment, Options, eventually, free_port, http_get, item, order_of};
use proto::orders::v1::OrderStatus;
use serde_json::Value;

/// Names that the programs have at the broker.
const PROGRAMS: [&str; 4] = ["waybill-gateway", "inventory", "payment", "fulfilment"];

#[tokio::test]
async fn programs_reach_their_broker_by_tls_with_certificates_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let folder = |name: &str| {
        let folder = dir.path().join(name);
        fs::create_dir(&folder).unwrap();
        folder
    };
    let authority = Authority::new();
    let ca = certificates::replace(dir.path(), "ca.crt", &authority.pem());
    let (server_cert, server_key) = authority.gateway().write(&folder("server"));
    let (cert, key) = authority.client("programs.example.org").write(&folder("programs"));
    let programs = vec![
        ("NATS_TLS_CA", ca.display().to_string()),
        ("NATS_TLS_CERT", cert.display().to_string()),
        ("NATS_TLS_KEY", key.display().to_string()),
    ];
    let options = Options { gateway: programs.clone(), processors: programs, ..Options::default() };
    let mut waybill = Deployment::start_without_broker(options).await;
    let monitor = free_port();
    // The test's own clients, and the provisioner, come in the clear.
    let settings = format!(
        "tls {{ cert_file: {server_cert:?}, key_file: {server_key:?}, ca_file: {ca:?}, verify: true, timeout: 5 }}
        allow_non_tls: true
        http: \"127.0.0.1:{monitor}\""
    );
    waybill.broker.start_configured("", &settings);
    waybill.ready().await;
    let order = waybill.place(order_of("customer", "", vec![item("widget", 1)])).await.unwrap();
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);

    let (_, connections) = http_get(&format!("127.0.0.1:{monitor}"), "/connz").await.unwrap();
    let connections: Value = serde_json::from_str(&connections).unwrap();
    let by_tls = connections["connections"].as_array().unwrap().iter();
    let by_tls = by_tls.filter(|connection| connection["tls_version"] == "1.3");
    let by_tls: Vec<_> = by_tls.filter_map(|connection| connection["name"].as_str()).collect();
    assert!(PROGRAMS.iter().all(|program| by_tls.contains(program)), "{connections}");

    // Nobody speaks to the server of another authority.
    let other = certificates::replace(dir.path(), "other.crt", &Authority::new().pem());
    waybill.kill_processors("fulfilment");
    waybill.start_processor_with("fulfilment", &[("NATS_TLS_CA", other.to_str().unwrap())]);
    let stranger = waybill.processor("fulfilment").ops_addr().await;
    eventually("who is not trusted", async || {
        let (status, said) = http_get(&stranger, "/readyz").await?;
        (status == 503 && said.contains("invalid peer certificate")).then_some(())
    })
    .await;
}
