//! What the broker refuses a program is said where somebody looks, and what it is given back it makes use of.

use std::path::Path;
use std::process::Command;

use async_nats::ConnectOptions;
use async_nats::jetstream;
use async_nats::jetstream::consumer::{FromConsumer, pull};
use backbone::broker::streams::ORDERS;
use backbone::log::subjects::{self, EventKind};
use futures::future::join_all;
use harness::{Broker, Deployment, Options, Process, binary, eventually, http_get, item, order_of};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::orders::v1::OrderStatus;
use tempfile::TempDir;

/// A broker's users, of whom the first is whoever does not say who he is.
fn users(rights: &[&str]) -> String {
    let user = |(number, rights)| {
        format!("{{ user: user{number}, password: sesame, permissions: {{ {rights} }} }}\n")
    };
    let users: String = rights.iter().enumerate().map(user).collect();
    format!("authorization: {{ users: [\n{users}] }}\nno_auth_user: user0\n")
}

const ALL: &str = "publish: [\">\"]";

/// Has a broker that runs read other users, who stay connected.
fn reload(broker: &Broker, before: &[&str], after: &[&str]) {
    let file = broker.data().with_file_name("nats.conf");
    let config = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, config.replace(&users(before), &users(after))).unwrap();
    kill(Pid::from_raw(broker.pid().try_into().unwrap()), Signal::SIGHUP).unwrap();
}

fn provision(nats_url: &str, name: &str, dir: &Path) -> Process {
    let mut command = Command::new(binary("waybill"));
    command.env_clear().args(["provision", "--timeout", "5s"]).env("NATS_URL", nats_url);
    Process::start(name, command, dir)
}

#[tokio::test]
async fn provisioning_that_is_in_vain_ends_with_the_cause_and_what_to_do() {
    let rights = [
        ALL,
        "publish: [other], subscribe: [\"_INBOX_provisioner.>\"]",
        "publish: [\">\"], subscribe: [other]",
        "publish: [\"$JS.API.STREAM.INFO.>\"], subscribe: [\"_INBOX_provisioner.>\"]",
    ];
    let dirs = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let [mut broker, mut without_jetstream] = dirs.each_ref().map(|dir| Broker::reserve(dir.path()));
    broker.start_configured("", &users(&rights));
    without_jetstream.start_without_jetstream();
    let at = broker.address();
    let cases = [
        (format!("nats://user0:open@{at}"), ["authorization violation", "NATS_URL, NATS_CREDS"]),
        (format!("nats://user1:sesame@{at}"), ["publish to $JS.API.STREAM.INFO.ORDERS", "NATS_URL"]),
        (format!("nats://user2:sesame@{at}"), ["subscribe to _INBOX_provisioner.>", "NATS_URL"]),
        (format!("nats://user3:sesame@{at}"), ["publish to $JS.API.STREAM.CREATE.ORDERS", "accounts.conf"]),
        (without_jetstream.url(), ["JetStream is disabled", "--jetstream"]),
    ];
    let tried = cases.iter().enumerate().map(async |(number, (url, parts))| {
        let mut process = provision(url, &format!("provision-{number}"), dirs[0].path());
        assert_eq!(process.ended().await.code(), Some(1), "{url}");
        let output = process.output();
        let last = output.lines().last().unwrap_or_default();
        assert!(last.starts_with("error: "), "{output}");
        assert!(parts.iter().all(|part| last.contains(part)) && !last.contains("deadline"), "{output}");
        assert!(!output.contains("open@") && !output.contains("sesame"), "{output}");
    });
    join_all(tried).await;
}

/// What a program says at /readyz, once it says all of it with this status.
async fn says(addr: &str, status: u16, parts: &[&str]) {
    eventually(&format!("{status} {parts:?}"), async || {
        let (is, said) = http_get(addr, "/readyz").await?;
        (is == status && parts.iter().all(|part| said.contains(part))).then_some(())
    })
    .await;
}

async fn place(waybill: &Deployment) -> Result<String, tonic::Status> {
    let order = order_of("customer", "", vec![item("widget", 1)]);
    Ok(waybill.place(order).await?.order_id)
}

#[tokio::test]
async fn a_program_that_lacks_rights_or_streams_says_so_at_readyz() {
    let rights =
        ["publish: { deny: [\"ORDER.*.*.*.paid.*\", \"$JS.API.CONSUMER.INFO.ORDERS.fulfilment\"] }", ALL];
    let options = Options { least_privilege: false, ..Options::default() };
    let mut waybill = Deployment::start_without_broker(options).await;
    let payment = waybill.processor("payment").ops_addr().await;
    let fulfilment = waybill.processor("fulfilment").ops_addr().await;
    let away =
        format!("not connected to NATS (NATS_URL, NATS_CREDS, NATS_TLS_CA): {}", waybill.broker.address());
    for addr in [&payment, &fulfilment, &waybill.gateway.ops_addr] {
        says(addr, 503, &[&away, "refused"]).await;
    }
    waybill.broker.start_without_jetstream();
    for addr in [&payment, &waybill.gateway.ops_addr] {
        says(addr, 503, &["stream ORDERS cannot be set up yet", "JetStream is disabled"]).await;
    }
    waybill.broker.kill();

    waybill.broker.start_configured("", &users(&rights));
    waybill.ready().await;
    says(&fulfilment, 503, &["consumer not open: ", "publish to $JS.API.CONSUMER.INFO.ORDERS.fulfilment"])
        .await;
    let order = place(&waybill).await.unwrap();
    says(&payment, 200, &["ready\n", "publish to ORDER.*.*.*.paid.*"]).await;

    reload(&waybill.broker, &rights, &[ALL, ALL]);
    assert_eq!(waybill.finished(&order).await.status(), OrderStatus::Fulfilled);
    // What is over is not said for ever.
    for addr in [&payment, &fulfilment] {
        eventually("nothing but ready", async || {
            (http_get(addr, "/readyz").await? == (200, "ready\n".to_owned())).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn answers_that_may_be_heard_again_are_heard_without_a_restart() {
    let deaf =
        ["publish: [\">\"], subscribe: { deny: [\"_INBOX_waybill-gateway.>\", \"_INBOX_payment.>\"] }"];
    let options = Options { least_privilege: false, ..Options::default() };
    let mut waybill = Deployment::start_without_broker(options).await;
    waybill.broker.start_configured("", &users(&[ALL]));
    waybill.ready().await;
    let first = place(&waybill).await.unwrap();
    assert_eq!(waybill.finished(&first).await.status(), OrderStatus::Fulfilled);

    reload(&waybill.broker, &[ALL], &deaf);
    let payment = waybill.processor("payment").ops_addr().await;
    says(&waybill.gateway.ops_addr, 503, &["subscribe to _INBOX_waybill-gateway.>"]).await;
    says(&payment, 503, &["subscribe to _INBOX_payment.>"]).await;
    // It is tried, and refused again.
    waybill
        .processor("payment")
        .line("another try", |line| line.contains("inbox subscription denied, reconnecting").then_some(()))
        .await;

    reload(&waybill.broker, &deaf, &[ALL]);
    waybill.ready().await;
    let second = place(&waybill).await.unwrap();
    assert_eq!(waybill.finished(&second).await.status(), OrderStatus::Fulfilled);
}

#[tokio::test]
async fn who_may_not_make_a_consumer_does_not_delete_it_either() {
    let rights = ["publish: { deny: [\"$JS.API.CONSUMER.CREATE.ORDERS.payment\"] }", ALL];
    let options = Options { least_privilege: false, ..Options::default() };
    let mut waybill = Deployment::start_without_broker(options).await;
    waybill.broker.start_configured("", &users(&[ALL, ALL]));
    waybill.ready().await;
    let order = place(&waybill).await.unwrap();
    assert_eq!(waybill.finished(&order).await.status(), OrderStatus::Fulfilled);

    reload(&waybill.broker, &[ALL, ALL], &rights);
    let operator = ConnectOptions::with_user_and_password("user1".to_owned(), "sesame".to_owned());
    let jetstream = jetstream::new(operator.connect(waybill.broker.url()).await.unwrap());
    let stream = jetstream.get_stream(ORDERS).await.unwrap();
    let made = stream.consumer_info("payment").await.unwrap();
    let config = pull::Config::try_from_consumer_config(made.config).unwrap();
    let filter_subjects = vec![subjects::kind(EventKind::Reserved)];
    stream.update_consumer(pull::Config { filter_subjects, ..config }).await.unwrap();
    let payment = waybill.processor("payment").ops_addr().await;
    says(
        &payment,
        200,
        &["consumer was edited: filter_subjects is ORDER.*.*.*.reserved.*,", "waybill provision"],
    )
    .await;
    assert_eq!(stream.consumer_info("payment").await.unwrap().created, made.created);

    // With the right it would have been made anew, and then is.
    reload(&waybill.broker, &rights, &[ALL, ALL]);
    waybill.restart_processor("payment");
    let payment = waybill.processor("payment").ops_addr().await;
    says(&payment, 200, &["ready\n"]).await;
    assert_ne!(stream.consumer_info("payment").await.unwrap().created, made.created);
}
