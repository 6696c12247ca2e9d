//! How programs get in at the broker, and what they say while they cannot.

use std::path::Path;
use std::process::Command;

use harness::{Deployment, Options, Process, binary, item, order_of};
use proto::orders::v1::OrderStatus;
use serde_json::Value;
use tempfile::TempDir;

const UNREACHABLE: &str = "broker unreachable, retrying";
/// A certificate authority that signed nothing.
const CA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scenarios/ca.pem");

fn payment(environment: &[(&str, &str)], dir: &Path) -> Process {
    let mut command = Command::new(binary("waybill-payment"));
    command.env_clear().env("LOG_FORMAT", "json").envs(environment.iter().copied());
    Process::start("payment-alone", command, dir)
}

/// What it gives as the reason why it cannot reach the broker, the first time that it gives one.
async fn reason(process: &mut Process) -> String {
    let reason = |fields: &Value| {
        (fields["message"] == UNREACHABLE).then(|| fields["reason"].as_str().unwrap_or_default().to_owned())
    };
    process.logged("a reason", reason).await
}

#[tokio::test]
async fn a_password_may_have_any_character_and_a_healthy_start_warns_of_nothing() {
    let options = Options { password: Some("p@ss/w%rd: ?"), ..Options::default() };
    let mut waybill = Deployment::start_with(options).await;
    let order = waybill.place(order_of("customer", "", vec![item("widget", 1)])).await.unwrap();
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
    let processors = waybill.processors.values_mut().flatten();
    for process in processors.chain([&mut waybill.gateway.process]) {
        let said = process.output();
        assert!(said.contains("connected to the broker") && !said.contains(UNREACHABLE), "{said}");
    }
}

#[tokio::test]
async fn a_wrong_password_is_told() {
    let waybill = Deployment::start_with(Options { password: Some("right"), ..Options::default() }).await;
    let dir = TempDir::new().unwrap();
    // At its finest level too, the log holds no password.
    let url = waybill.broker.url_of("wrong");
    let mut payment = payment(&[("NATS_URL", &url), ("RUST_LOG", "trace")], dir.path());
    let said = reason(&mut payment).await;
    assert!(said.contains("authorization violation"), "{said}");
    assert!(!payment.output().contains("wrong"), "{}", payment.output());
}

#[tokio::test]
async fn nothing_is_said_in_the_clear_once_there_are_tls_settings() {
    let waybill = Deployment::start().await;
    let dir = TempDir::new().unwrap();
    let mut payment = payment(&[("NATS_URL", &waybill.broker.url()), ("NATS_TLS_CA", CA)], dir.path());
    let said = reason(&mut payment).await;
    assert!(said.contains("corrupt message"), "{said}");
    assert!(!payment.output().contains("connected to the broker"), "{}", payment.output());
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named_with_the_reason() {
    let dir = TempDir::new().unwrap();
    // Nothing listens on port 1 of this machine.
    let mut refused = payment(&[("NATS_URL", "nats://waybill:secret@127.0.0.1:1")], dir.path());
    let said = reason(&mut refused).await;
    assert!(said.contains("127.0.0.1:1") && said.contains("refused"), "{said}");
    assert!(!refused.output().contains("secret"), "{}", refused.output());

    let dir = TempDir::new().unwrap();
    let mut unknown = payment(&[("NATS_URL", "no-such-host.invalid:4222")], dir.path());
    let said = reason(&mut unknown).await;
    assert!(said.contains("no-such-host.invalid:4222") && said.to_lowercase().contains("name "), "{said}");
}
