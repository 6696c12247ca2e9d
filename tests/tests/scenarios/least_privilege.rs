//! Each program as a user of its own at the broker, with the rights of deploy/nats/accounts.conf: enough for all that it
//! does, and for nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use async_nats::jetstream::consumer::{FromConsumer, pull};
use async_nats::jetstream::stream::Config;
use async_nats::{Client, HeaderMap, Subscriber};
use backbone::broker::streams::ORDERS;
use backbone::dead_letters::LetterId;
use backbone::log::subjects::{self, EventKind};
use futures::{FutureExt, StreamExt};
use harness::{Broker, Deployment, Options, Scrape, eventually, http_get, inbox_of, item, order_of, these};
use proto::operations::v1::{DiscardDeadLetterRequest, RedriveOutcome};
use proto::orders::v1::{ListOrdersRequest, OrderStatus};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

const USERS: [&str; 5] = ["gateway", "inventory", "payment", "fulfilment", "provisioner"];
/// Those that an attacker may have taken over. The provisioner has the account of the streams.
const PROGRAMS: [&str; 4] = ["gateway", "inventory", "payment", "fulfilment"];
const STEPS: [&str; 3] = ["inventory", "payment", "fulfilment"];
/// The consumers, and the program of each.
const CONSUMERS: [(&str, &str); 4] = [
    ("inventory", "inventory"),
    ("inventory-carried", "inventory"),
    ("payment", "payment"),
    ("fulfilment", "fulfilment"),
];
const STREAMS: [&str; 3] = ["ORDERS", "DEAD_LETTERS", "KV_INVENTORY"];
const NOBODY: [&str; 0] = [];

/// Few attempts, so that an order is soon parked.
fn options() -> Options {
    let mut options = Options { least_privilege: true, ..Options::default() };
    options.processors.push(("MAX_ATTEMPTS", "1".to_owned()));
    options
}

/// Sets a record of the inventory's, as whom deploy/nats lets.
async fn set_stock(waybill: &Deployment, sku: &str, value: &str) {
    let client = waybill.broker.client_of("inventory").await.unwrap();
    let jetstream = async_nats::jetstream::new(client);
    let published = jetstream.publish(format!("$KV.INVENTORY.stock.{sku}"), value.to_owned().into());
    published.await.unwrap().await.unwrap();
}

async fn place(waybill: &Deployment, customer: &str, sku: &str) -> String {
    waybill.place(order_of(customer, "", vec![item(sku, 1)])).await.unwrap().order_id
}

#[tokio::test]
async fn each_user_may_do_all_that_its_program_does() {
    let mut waybill = Deployment::start_with(options()).await;
    // Through all steps, watched; and no by inventory and by payment, which inventory then releases.
    let fulfilled = place(&waybill, "ada", "widget").await;
    let watcher = waybill.watch(&fulfilled, 0).await.unwrap();
    assert_eq!(watcher.rest().await.len(), 4);
    let out_of_stock = place(&waybill, "ada", "nothing-of-it").await;
    assert_eq!(waybill.finished(&out_of_stock).await.status(), OrderStatus::Rejected);
    let declined = place(&waybill, "declined-mallory", "widget").await;
    assert_eq!(waybill.finished(&declined).await.status(), OrderStatus::Rejected);
    let request = ListOrdersRequest { customer_id: "ada".to_owned(), ..ListOrdersRequest::default() };
    let listed = waybill.client().await.list_orders(request).await.unwrap().into_inner().orders;
    assert_eq!(listed.len(), 2);

    // Cancelled when it is paid, so released and refunded.
    waybill.processor("fulfilment").pause();
    let cancelled = place(&waybill, "ada", "widget").await;
    waybill.reached(&cancelled, OrderStatus::Paid).await;
    waybill.cancel(&cancelled).await.unwrap();
    assert_eq!(waybill.finished(&cancelled).await.status(), OrderStatus::Cancelled);
    waybill.processor("fulfilment").resume();

    // Parked, and redriven; set aside, and discarded.
    set_stock(&waybill, "gadget", "oops").await;
    let parked = place(&waybill, "ada", "gadget").await;
    let letter = waybill.reached(&parked, OrderStatus::Failed).await.dead_letter_id;
    set_stock(&waybill, "gadget", "10").await;
    let redriven = waybill.redrive(these(&[&letter])).await.unwrap();
    assert_eq!(redriven[0].1, RedriveOutcome::Redriven);
    assert_eq!(waybill.finished(&parked).await.status(), OrderStatus::Fulfilled);

    let gateway = waybill.broker.client_of("gateway").await.unwrap();
    gateway.publish(STORED, "hello".into()).await.unwrap();
    gateway.flush().await.unwrap();
    let letter = eventually("letter", async || waybill.open_letters().await.pop()).await;
    assert!(letter.parse::<LetterId>().is_ok());
    let discard = DiscardDeadLetterRequest { dead_letter_id: letter, reason: "a test".to_owned() };
    waybill.operations().discard_dead_letter(discard).await.unwrap();
    assert!(waybill.open_letters().await.is_empty());

    // A restart finds everything, and asks for no more than before.
    for step in STEPS {
        waybill.restart_processor(step);
    }
    waybill.restart_gateway().await;
    let order = place(&waybill, "ada", "widget").await;
    assert_eq!(waybill.finished(&order).await.status(), OrderStatus::Fulfilled);
    let refused = waybill.logged_about("Permissions Violation");
    assert!(refused.is_empty(), "{refused:#?}");
}

#[tokio::test]
async fn what_is_missing_is_named_and_waited_for() {
    let mut waybill = Deployment::start_without_broker(Options { provisioned: false, ..options() }).await;
    waybill.broker.start().await;
    eventually("what the gateway waits for", async || {
        let (status, said) = waybill.http("/readyz").await;
        (status == 503 && said.contains("stream ORDERS") && said.contains("waybill provision")).then_some(())
    })
    .await;
    for step in STEPS {
        let process = waybill.processor(step);
        process.line("what it waits for", |line| line.contains("waybill provision").then_some(())).await;
    }

    waybill.broker.provision().await;
    // Again, which changes nothing.
    waybill.broker.provision().await;
    waybill.ready().await;
    let order = place(&waybill, "ada", "widget").await;
    assert_eq!(waybill.finished(&order).await.status(), OrderStatus::Fulfilled);
}

/// From now on inventory is brought nothing but cancels.
async fn narrow(waybill: &Deployment) {
    let stream = waybill.jetstream().await.get_stream(ORDERS).await.unwrap();
    let config = stream.consumer_info("inventory").await.unwrap().config;
    let filter_subjects = vec![subjects::kind(EventKind::Cancelled)];
    let config = pull::Config::try_from_consumer_config(config).unwrap();
    stream.update_consumer(pull::Config { filter_subjects, ..config }).await.unwrap();
}

#[tokio::test]
async fn an_edited_consumer_is_reported_and_used_as_it_is_until_an_operator_mends_it() {
    let mut waybill = Deployment::start_with(options()).await;
    let first = place(&waybill, "ada", "widget").await;
    waybill.finished(&first).await;
    narrow(&waybill).await;
    let passed_over = place(&waybill, "ada", "widget").await;
    let ops_addr = waybill.processor("inventory").ops_addr().await;
    let readyz = async || http_get(&ops_addr, "/readyz").await;
    let edited = async || {
        let (_, metrics) = http_get(&ops_addr, "/metrics").await?;
        Scrape::read(&metrics).sum("waybill_step_consumer_edited", &[])
    };
    eventually("what is wrong", async || {
        let (status, said) = readyz().await?;
        let all = ["filter_subjects is ORDER.*.*.*.cancelled.*", "waybill provision"];
        (status == 200 && all.iter().all(|part| said.contains(part))).then_some(())
    })
    .await;
    assert_eq!(edited().await, Some(1.0));
    // What it is still brought it works on.
    let cancelled = place(&waybill, "ada", "widget").await;
    waybill.cancel(&cancelled).await.unwrap();
    assert_eq!(waybill.finished(&cancelled).await.status(), OrderStatus::Cancelled);

    waybill.broker.provision().await;
    assert_eq!(waybill.finished(&passed_over).await.status(), OrderStatus::Fulfilled);
    eventually("nothing wrong", async || (readyz().await? == (200, "ready\n".to_owned())).then_some(()))
        .await;
    assert_eq!(edited().await, Some(0.0));
    // Noticed once, tried once.
    let noticed = waybill.logged_about("consumer edited: filter_subjects");
    assert_eq!(noticed.len(), 1, "{noticed:#?}");
    let refused = waybill.logged_about("Permissions Violation for Publish to \\\"$JS.API.CONSUMER.CREATE");
    assert_eq!(refused.len(), 1, "{refused:#?}");
}

#[tokio::test]
async fn the_stock_cannot_be_emptied_by_one_message() {
    let waybill = Deployment::start_with(Options { replicas: 0, ..options() }).await;
    // As an earlier version has made it.
    let admin = waybill.broker.jetstream().await;
    let bucket = admin.get_stream("KV_INVENTORY").await.unwrap().cached_info().config.clone();
    assert!(!bucket.allow_rollup);
    admin.update_stream(Config { allow_rollup: true, ..bucket }).await.unwrap();
    waybill.broker.provision().await;

    set_stock(&waybill, "widget", "10").await;
    let inventory = async_nats::jetstream::new(waybill.broker.client_of("inventory").await.unwrap());
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Rollup", "all");
    let emptied = inventory.publish_with_headers("$KV.INVENTORY.stock.gadget", headers, "10".into());
    let refused = emptied.await.unwrap().await.unwrap_err().to_string();
    assert!(refused.contains("rollup"), "{refused}");
    let bucket = admin.get_stream("KV_INVENTORY").await.unwrap();
    assert!(bucket.get_last_raw_message_by_subject("$KV.INVENTORY.stock.widget").await.is_ok());
}

/// A connection as one of the users, in NATS' own words, in which a refusal comes before the answer to a ping.
struct Wire(BufReader<TcpStream>);

impl Wire {
    async fn open(broker: &Broker, user: &str) -> Self {
        let mut wire = Self(BufReader::new(TcpStream::connect(broker.address()).await.unwrap()));
        let login = format!(r#"{{{},"verbose":false,"pedantic":false}}"#, broker.words_of(user));
        assert!(wire.may(&format!("CONNECT {login}")).await, "{user} is let in");
        wire
    }

    /// Whether the broker lets this through.
    async fn may(&mut self, words: &str) -> bool {
        self.0.write_all(format!("{words}\r\nPING\r\n").as_bytes()).await.unwrap();
        let mut allowed = true;
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).await.unwrap() > 0, "{words}: the broker hung up");
            match line.trim_end() {
                "PONG" => return allowed,
                "PING" => self.0.write_all(b"PONG\r\n").await.unwrap(),
                said if said.starts_with("-ERR") => {
                    assert!(said.contains("Permissions Violation"), "{words}: {said}");
                    allowed = false;
                }
                _ => {}
            }
        }
    }
}

/// An event that is there, and has no payload, as a request to delete a stream must have none.
const STORED: &str = "ORDER.00.c.o.created.inventory";
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A message that is not there.
const FAR_AWAY: &str = r#"{"seq":999999999}"#;

/// What is tried, and who may.
fn rights() -> Vec<(String, Vec<&'static str>)> {
    let mut rights = vec![
        ("PUB ORDER.00.c.o.created.payment".to_owned(), vec!["gateway"]),
        ("PUB ORDER.00.c.o.cancelled.payment".to_owned(), vec!["gateway"]),
        ("PUB ORDER.00.c.o.redriven.payment".to_owned(), vec!["gateway"]),
        ("PUB ORDER.00.c.o.carried.payment".to_owned(), vec!["gateway"]),
        ("PUB DEAD_LETTER.carrier".to_owned(), vec!["gateway"]),
        ("PUB ORDER.probe".to_owned(), vec!["gateway"]),
        ("PUB ORDER.00.c.o.reserved.payment".to_owned(), vec!["inventory"]),
        ("PUB ORDER.00.c.o.released.payment".to_owned(), vec!["inventory"]),
        ("PUB ORDER.00.c.o.paid.payment".to_owned(), vec!["payment"]),
        ("PUB ORDER.00.c.o.refunded.payment".to_owned(), vec!["payment"]),
        ("PUB ORDER.00.c.o.rejected.payment".to_owned(), STEPS.to_vec()),
        ("PUB ORDER.00.c.o.fulfilled.payment".to_owned(), vec!["fulfilment"]),
        ("PUB ORDER.00.c.o.failed.payment".to_owned(), STEPS.to_vec()),
        // For steps that are not shipped.
        ("PUB ORDER.00.c.o.completed.payment".to_owned(), NOBODY.to_vec()),
        ("PUB ORDER.00.c.o.compensated.payment".to_owned(), NOBODY.to_vec()),
        ("PUB ORDER.barrier".to_owned(), PROGRAMS.to_vec()),
        ("PUB DEAD_LETTER.barrier".to_owned(), vec!["gateway"]),
        ("PUB live.ORDER.00.c.o.created.payment".to_owned(), NOBODY.to_vec()),
        ("PUB $KV.INVENTORY.stock.widget".to_owned(), vec!["gateway", "inventory"]),
        ("PUB $KV.INVENTORY.reservation.o".to_owned(), vec!["gateway", "inventory"]),
        ("PUB $KV.INVENTORY.change.r".to_owned(), vec!["gateway", "inventory"]),
        ("PUB $KV.INVENTORY.remade".to_owned(), vec!["gateway", "inventory"]),
        ("PUB $KV.INVENTORY.barrier".to_owned(), vec!["gateway", "inventory"]),
        ("PUB $KV.INVENTORY.elsewhere".to_owned(), vec!["inventory"]),
        ("PUB DEAD_LETTER.redriven.payment.1".to_owned(), vec!["gateway"]),
        ("PUB DEAD_LETTER.discarded.payment.1".to_owned(), vec!["gateway", "payment"]),
        ("PUB $JS.API.STREAM.MSG.DELETE.DEAD_LETTERS".to_owned(), PROGRAMS.to_vec()),
        ("PUB $JS.API.STREAM.MSG.DELETE.ORDERS".to_owned(), NOBODY.to_vec()),
        ("PUB $JS.API.STREAM.MSG.GET.ORDERS".to_owned(), PROGRAMS.to_vec()),
        ("PUB $JS.API.STREAM.MSG.GET.DEAD_LETTERS".to_owned(), PROGRAMS.to_vec()),
        ("PUB $JS.API.STREAM.INFO.ORDERS".to_owned(), USERS.to_vec()),
        ("PUB $JS.API.STREAM.INFO.DEAD_LETTERS".to_owned(), USERS.to_vec()),
        ("PUB $JS.API.STREAM.INFO.KV_INVENTORY".to_owned(), vec!["gateway", "inventory", "provisioner"]),
        ("PUB $JS.API.STREAM.LIST".to_owned(), NOBODY.to_vec()),
        ("PUB $JS.API.DIRECT.GET.ORDERS".to_owned(), PROGRAMS.to_vec()),
        (format!("PUB $JS.API.DIRECT.GET.ORDERS.{STORED}"), PROGRAMS.to_vec()),
        ("PUB $JS.API.DIRECT.GET.DEAD_LETTERS".to_owned(), vec!["gateway"]),
        ("PUB $JS.API.DIRECT.GET.KV_INVENTORY".to_owned(), vec!["gateway", "inventory"]),
        ("PUB $JS.API.STREAM.MSG.GET.KV_INVENTORY".to_owned(), vec!["gateway", "inventory"]),
        ("PUB $JS.API.STREAM.CREATE.ELSEWHERE".to_owned(), NOBODY.to_vec()),
        ("SUB live.ORDER.>".to_owned(), vec!["gateway"]),
        ("SUB ORDER.>".to_owned(), NOBODY.to_vec()),
        ("SUB $KV.INVENTORY.>".to_owned(), NOBODY.to_vec()),
        ("SUB _INBOX.>".to_owned(), NOBODY.to_vec()),
        ("SUB >".to_owned(), NOBODY.to_vec()),
    ];
    for stream in STREAMS {
        for change in ["CREATE", "UPDATE"] {
            rights.push((format!("PUB $JS.API.STREAM.{change}.{stream}"), vec!["provisioner"]));
        }
        for change in ["DELETE", "PURGE", "SNAPSHOT", "RESTORE"] {
            rights.push((format!("PUB $JS.API.STREAM.{change}.{stream}"), NOBODY.to_vec()));
        }
    }
    for (consumer, of) in CONSUMERS {
        rights.push((
            format!("PUB $JS.API.CONSUMER.INFO.ORDERS.{consumer}"),
            vec!["gateway", of, "provisioner"],
        ));
        rights.push((format!("PUB $JS.API.CONSUMER.MSG.NEXT.ORDERS.{consumer}"), vec![of]));
        rights.push((format!("PUB $JS.API.CONSUMER.RESET.ORDERS.{consumer}"), vec![of]));
        rights.push((format!("PUB $JS.API.CONSUMER.LEADER.STEPDOWN.ORDERS.{consumer}"), vec![of]));
        rights.push((format!("PUB $JS.ACK.ORDERS.{consumer}.1.1.1.1.0"), vec![of]));
        rights.push((format!("PUB $JS.API.CONSUMER.CREATE.ORDERS.{consumer}"), vec!["provisioner"]));
        rights.push((format!("PUB $JS.API.CONSUMER.DELETE.ORDERS.{consumer}"), vec!["provisioner"]));
        rights.push((format!("PUB DEAD_LETTER.floor.{consumer}"), vec![of]));
    }
    for step in STEPS {
        rights.push((format!("PUB DEAD_LETTER.attempts.{step}.1"), vec![step]));
        rights.push((format!("PUB DEAD_LETTER.open.{step}.1"), vec![step]));
    }
    for user in USERS {
        rights.push((format!("PUB {}.x", inbox_of(user)), NOBODY.to_vec()));
        rights.push((format!("SUB {}.>", inbox_of(user)), vec![user]));
    }
    rights
}

#[tokio::test]
async fn no_user_may_do_what_its_program_does_not() {
    let waybill =
        Deployment::start_with(Options { least_privilege: true, replicas: 0, ..Options::default() }).await;
    let mut wires = Vec::new();
    for user in USERS {
        wires.push(Wire::open(&waybill.broker, user).await);
    }
    let mut table = format!("{:<52}{}\n", "", USERS.map(|user| format!("{user:<13}")).concat());
    let mut wrong = Vec::new();
    for (number, (tried, who)) in rights().into_iter().enumerate() {
        table += &format!("{tried:<52}");
        for (user, wire) in USERS.iter().zip(&mut wires) {
            let words =
                if tried.starts_with("PUB") { format!("{tried} 0\r\n") } else { format!("{tried} {number}") };
            let allowed = wire.may(&words).await;
            table += &format!("{:<13}", if allowed { "allowed" } else { "-" });
            if allowed != who.contains(user) {
                wrong.push(format!("{user}: {tried} is {}", if allowed { "allowed" } else { "refused" }));
            }
        }
        table.push('\n');
    }
    eprintln!("{table}");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What stands in quotes between two words.
fn quoted(text: &str, from: &str, to: &str) -> BTreeSet<String> {
    let (_, text) = text.split_once(from).unwrap();
    let (text, _) = text.split_once(to).unwrap();
    // A comment may have quotes of its own.
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    lines.flat_map(|line| line.split('"').skip(1).step_by(2)).map(str::to_owned).collect()
}

#[test]
fn an_account_imports_what_its_user_may_publish_on() {
    let accounts = include_str!("../../../deploy/nats/accounts.conf");
    for user in PROGRAMS {
        let (_, account) = accounts.split_once(&format!("\n  {} {{\n", user.to_uppercase())).unwrap();
        let mut imported = quoted(account, "imports: [", "\n    ]\n");
        // What is there for the broker's sake, and what comes in.
        assert!(imported.remove("$JS.API.INFO"), "{user}");
        assert_eq!(imported.remove("live.ORDER.>"), user == "gateway");
        assert_eq!(imported, quoted(account, "publish: [", "\n          ]\n"), "{user}");
    }
}

/// The account of a step that is not shipped, as docs/security.md has it made.
fn account_of_fraud() -> String {
    let page = include_str!("../../../docs/security.md");
    let (_, section) = page.split_once("### A step of your own\n").unwrap();
    let command = section.split("```").nth(1).unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-euc", command]).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let output = shell.output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn a_step_of_your_own_may_do_what_it_has_to_and_no_more() {
    let accounts = include_str!("../../../deploy/nats/accounts.conf");
    let before = "\n  # For people who look after the broker";
    assert!(accounts.contains(before));
    let mut accounts = accounts
        .replace("FULFILMENT]", "FULFILMENT, FRAUD]")
        .replace(before, &format!("\n{}{before}", account_of_fraud()));
    for user in [&USERS[..], &["fraud", "sys"]].concat() {
        let variable = format!("$NATS_{}_PASSWORD", user.to_uppercase());
        assert!(accounts.contains(&variable), "{user}");
        accounts = accounts.replace(&variable, &format!("password-of-{user}"));
    }
    let dir = TempDir::new().unwrap();
    let mut broker = Broker::reserve(dir.path());
    broker.start_configured("", &accounts);
    let client = eventually("the broker", async || broker.client_of("fraud").await.ok()).await;
    // What it imports answers, if only that there is no such stream yet.
    let answer = client.request("$JS.API.STREAM.INFO.ORDERS", "".into()).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert_eq!(answer["error"]["code"], 404, "{answer}");

    let mut fraud = Wire::open(&broker, "fraud").await;
    let may = [
        "ORDER.00.c.o.completed.payment",
        "ORDER.00.c.o.compensated.end",
        "ORDER.00.c.o.rejected.inventory",
        "ORDER.00.c.o.failed.end",
        "DEAD_LETTER.open.fraud.1",
        "DEAD_LETTER.floor.fraud",
        "$JS.API.CONSUMER.MSG.NEXT.ORDERS.fraud",
        "$JS.ACK.ORDERS.fraud.1.1.1.1.0",
    ];
    for subject in may {
        assert!(fraud.may(&format!("PUB {subject} 0\r\n")).await, "{subject}");
    }
    let may_not = [
        "ORDER.00.c.o.created.inventory",
        "ORDER.00.c.o.paid.fulfilment",
        "ORDER.00.c.o.carried.payment",
        "DEAD_LETTER.open.payment.1",
        "$JS.API.CONSUMER.MSG.NEXT.ORDERS.payment",
        "$JS.API.CONSUMER.CREATE.ORDERS.fraud",
        "$KV.INVENTORY.stock.widget",
        "live.ORDER.00.c.o.completed.payment",
    ];
    for subject in may_not {
        assert!(!fraud.may(&format!("PUB {subject} 0\r\n")).await, "{subject}");
    }
}

/// Where answers are sent to that are not for whoever asks.
fn elsewhere() -> Vec<String> {
    let mut replies = vec![
        "ORDER.00.c.forged.created.inventory".to_owned(),
        "ORDER.00.c.forged.paid.fulfilment".to_owned(),
        "ORDER.00.c.forged.fulfilled.end".to_owned(),
        "ORDER.00.c.forged.completed.payment".to_owned(),
        "live.ORDER.00.c.forged.fulfilled.end".to_owned(),
        "DEAD_LETTER.redriven.payment.forged".to_owned(),
        "DEAD_LETTER.open.payment.forged".to_owned(),
        "$KV.INVENTORY.stock.widget".to_owned(),
    ];
    replies.extend(STREAMS.iter().map(|stream| format!("$JS.API.STREAM.PURGE.{stream}")));
    for (consumer, _) in CONSUMERS {
        // As the broker writes it of the first message that it has delivered.
        replies.push(format!("$JS.ACK.ORDERS.{consumer}.1.1.1.1.0"));
        replies.push(format!("$JS.API.CONSUMER.MSG.NEXT.ORDERS.{consumer}"));
        replies.push(format!("$JS.API.CONSUMER.RESET.ORDERS.{consumer}"));
        replies.push(format!("$JS.API.CONSUMER.LEADER.STEPDOWN.ORDERS.{consumer}"));
        replies.push(format!("$JS.API.CONSUMER.DELETE.ORDERS.{consumer}"));
    }
    replies.extend(USERS.map(|user| format!("{}.forged", inbox_of(user))));
    replies.extend(STREAMS.iter().map(|stream| format!("$JS.API.STREAM.DELETE.{stream}")));
    replies
}

/// What is sent along with a request, so that there are answers of every kind, those without a payload among them.
fn bodies_of(request: &str) -> &'static [&'static str] {
    if request.contains(".MSG.NEXT.") {
        &[r#"{"batch":1,"no_wait":true}"#]
    } else if request.contains(".MSG.DELETE.") {
        &[FAR_AWAY]
    } else if request.ends_with(STORED) {
        &[""]
    } else if request.contains(".GET.") {
        &[r#"{"seq":1}"#, FAR_AWAY, r#"{"multi_last":[">"]}"#]
    } else {
        &[""]
    }
}

/// What a user may change: the subjects of what it publishes, without what names an order.
fn changes_of(user: &str) -> BTreeSet<String> {
    let rights = rights().into_iter().filter(|(_, who)| who.contains(&user));
    rights.filter_map(|(tried, _)| Some(family(tried.strip_prefix("PUB ")?))).collect()
}

fn family(subject: &str) -> String {
    if let ["ORDER", _, _, _, event, _] = subject.split('.').collect::<Vec<_>>()[..] {
        return format!("ORDER.{event}");
    }
    let tokens = if subject.starts_with("DEAD_LETTER.") { 3 } else { 2 };
    subject.split('.').take(tokens).collect::<Vec<_>>().join(".")
}

/// Who listens for what is not meant for it, at every place where somebody does.
struct Listener {
    user: &'static str,
    client: Client,
    subscriptions: Vec<Subscriber>,
}

impl Listener {
    async fn open(broker: &Broker, user: &'static str) -> Self {
        let client = broker.client_of(user).await.unwrap();
        let mut subscriptions = vec![client.subscribe(format!("{}.forged", inbox_of(user))).await.unwrap()];
        if user == "gateway" {
            subscriptions.push(client.subscribe("live.ORDER.>").await.unwrap());
        }
        Self { user, client, subscriptions }
    }

    /// What has come so far, but for what the broker has republished.
    async fn heard(&mut self) -> Vec<String> {
        // Whatever came before comes before this answer.
        self.client.request("$JS.API.STREAM.INFO.ORDERS", "".into()).await.unwrap();
        let mut heard = Vec::new();
        for subscription in &mut self.subscriptions {
            while let Some(Some(message)) = subscription.next().now_or_never() {
                if message.headers.is_none_or(|headers| headers.get("Nats-Stream").is_none()) {
                    heard.push(format!("{} hears {}", self.user, message.subject));
                }
            }
        }
        heard
    }
}

/// What there is at the broker, by a name for each thing that may be changed.
async fn state(admin: &Client) -> BTreeMap<String, String> {
    let ask = async |subject: String, body: &str| -> Value {
        let answer = admin.request(subject, body.to_owned().into()).await.unwrap();
        serde_json::from_slice(&answer.payload).unwrap()
    };
    let mut state = BTreeMap::new();
    for stream in STREAMS {
        let subject = STORED_IN[STREAMS.iter().position(|known| *known == stream).unwrap()];
        // Refused, and so, what came before is stored.
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Sequence", "999999999");
        drop(admin.request_with_headers(subject, headers, "".into()).await);
        let info = ask(format!("$JS.API.STREAM.INFO.{stream}"), r#"{"subjects_filter":">"}"#).await;
        state.insert(stream.to_owned(), format!("{} {} {}", info["error"], info["created"], info["config"]));
        for (subject, count) in info["state"]["subjects"].as_object().into_iter().flatten() {
            state.insert(subject.clone(), count.to_string());
        }
    }
    for (consumer, of) in CONSUMERS {
        let info = ask(format!("$JS.API.CONSUMER.INFO.ORDERS.{consumer}"), "").await;
        state.insert(
            format!("consumer {consumer}"),
            format!("{} {} {}", info["error"], info["created"], info["config"]),
        );
        let stands = ["delivered", "ack_floor", "num_ack_pending", "num_waiting"];
        state.insert(
            format!("what {of} has read as {consumer}"),
            stands.map(|field| info[field].to_string()).join(" "),
        );
    }
    let stock = ask("$JS.API.STREAM.MSG.GET.KV_INVENTORY".to_owned(), STOCK_OF_WIDGET).await;
    state.insert("$KV.INVENTORY.stock.widget".to_owned(), stock["message"].to_string());
    state
}

/// A subject of each of the streams.
const STORED_IN: [&str; 3] = [STORED, "DEAD_LETTER.open.payment.1", "$KV.INVENTORY.stock.widget"];
const STOCK_OF_WIDGET: &str = r#"{"last_by_subj":"$KV.INVENTORY.stock.widget"}"#;

#[tokio::test]
async fn no_user_may_have_the_broker_do_by_an_answer_what_it_may_not_do_itself() {
    let waybill =
        Deployment::start_with(Options { least_privilege: true, replicas: 0, ..Options::default() }).await;
    let jetstream = waybill.broker.jetstream().await;
    let admin = jetstream.client();
    for event in ["created.inventory", "reserved.payment", "paid.fulfilment", "carried.fulfilment"] {
        let subject = format!("ORDER.00.c.o.{event}");
        jetstream.publish(subject, "".into()).await.unwrap().await.unwrap();
    }
    for step in STEPS {
        let subject = format!("DEAD_LETTER.open.{step}.1");
        jetstream.publish(subject, "".into()).await.unwrap().await.unwrap();
    }
    for (consumer, _) in CONSUMERS {
        // Read, and not acknowledged.
        let next = format!("$JS.API.CONSUMER.MSG.NEXT.ORDERS.{consumer}");
        first_answer(&admin, next, bodies_of(".MSG.NEXT.")[0]).await;
    }
    jetstream.publish("$KV.INVENTORY.stock.widget", "100".into()).await.unwrap().await.unwrap();
    let mut listeners = Vec::new();
    for user in USERS {
        listeners.push(Listener::open(&waybill.broker, user).await);
    }

    let mut table = format!("{:<48}{}\n", "answer to", PROGRAMS.map(|user| format!("{user:<13}")).concat());
    let mut wrong = Vec::new();
    for reply in elsewhere() {
        table += &format!("{reply:<48}");
        for user in PROGRAMS {
            let before = state(&admin).await;
            ask_for_everything(&waybill.broker, user, &reply).await;
            let after = state(&admin).await;
            let keys = before.keys().chain(after.keys());
            let mut changed: BTreeSet<_> =
                keys.filter(|key| before.get(*key) != after.get(*key)).cloned().collect();
            for listener in &mut listeners {
                let heard = listener.heard().await;
                // What is sent to it in its own account, it could as well send itself.
                changed.extend(heard.into_iter().filter(|_| listener.user != user));
            }
            let own = changes_of(user);
            changed.retain(|key| {
                !own.contains(&family(key)) && !key.starts_with(&format!("what {user} has read"))
            });
            table += &format!("{:<13}", if changed.is_empty() { "-" } else { "DONE" });
            wrong.extend(changed.iter().map(|key| format!("{user}: {key}, by an answer to {reply}")));
        }
        table.push('\n');
    }
    eprintln!("{table}");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The answer to a request, or the first of several. A message that was asked for comes under its own subject.
async fn first_answer(client: &Client, request: String, body: &'static str) {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.unwrap();
    client.publish_with_reply(request.clone(), inbox, body.into()).await.unwrap();
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, answers.next()).await;
    assert!(answer.is_ok_and(|answer| answer.is_some()), "no answer to {request} {body}");
}

/// Makes each request that a user may make, with the answer to go elsewhere, and waits until all are answered.
async fn ask_for_everything(broker: &Broker, user: &str, reply: &str) {
    let client = broker.client_of(user).await.unwrap();
    for (tried, _) in rights().into_iter().filter(|(_, who)| who.contains(&user)) {
        let Some(request) = tried.strip_prefix("PUB ") else { continue };
        for body in bodies_of(request) {
            let (request, body) = (request.to_owned(), *body);
            client.publish_with_reply(request.clone(), reply.to_owned(), body.into()).await.unwrap();
            // Nothing is said to somebody who acknowledges.
            if !request.starts_with("$JS.ACK.") {
                // The same again, answered in turn.
                first_answer(&client, request, body).await;
            }
        }
    }
}
