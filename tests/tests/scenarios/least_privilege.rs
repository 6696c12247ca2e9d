//! Each program as a user of its own at the broker, with the rights of deploy/nats/accounts.conf: enough for all that it
//! does, and for nothing else.

use async_nats::jetstream::consumer::{FromConsumer, pull};
use backbone::dead_letters::LetterId;
use backbone::stream::ORDERS;
use backbone::subjects::{self, EventKind};
use harness::{Broker, Deployment, Options, Scrape, eventually, http_get, inbox_of, item, order_of, these};
use proto::operations::v1::{DiscardDeadLetterRequest, RedriveOutcome};
use proto::orders::v1::{ListOrdersRequest, OrderStatus};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

const USERS: [&str; 5] = ["gateway", "inventory", "payment", "fulfilment", "provisioner"];
const STEPS: [&str; 3] = ["inventory", "payment", "fulfilment"];
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
    gateway.publish("ORDER.created.oops", "hello".into()).await.unwrap();
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
        let all = ["filter_subjects is ORDER.cancelled.>", "waybill provision"];
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
    let noticed = waybill.logged_about("it was edited: filter_subjects");
    assert_eq!(noticed.len(), 1, "{noticed:#?}");
    let refused = waybill.logged_about("Permissions Violation for Publish to \\\"$JS.API.CONSUMER.CREATE");
    assert_eq!(refused.len(), 1, "{refused:#?}");
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

/// What is tried, and who may.
fn rights() -> Vec<(String, Vec<&'static str>)> {
    let mut rights = vec![
        ("PUB ORDER.created.00.c.o".to_owned(), vec!["gateway"]),
        ("PUB ORDER.cancelled.00.c.o".to_owned(), vec!["gateway"]),
        ("PUB ORDER.redriven.00.c.o".to_owned(), vec!["gateway"]),
        ("PUB ORDER.reserved.00.c.o".to_owned(), vec!["inventory"]),
        ("PUB ORDER.released.00.c.o".to_owned(), vec!["inventory"]),
        ("PUB ORDER.paid.00.c.o".to_owned(), vec!["payment"]),
        ("PUB ORDER.refunded.00.c.o".to_owned(), vec!["payment"]),
        ("PUB ORDER.rejected.00.c.o".to_owned(), vec!["inventory", "payment"]),
        ("PUB ORDER.fulfilled.00.c.o".to_owned(), vec!["fulfilment"]),
        ("PUB ORDER.failed.00.c.o".to_owned(), STEPS.to_vec()),
        ("PUB live.ORDER.created.00.c.o".to_owned(), NOBODY.to_vec()),
        ("PUB $KV.INVENTORY.stock.widget".to_owned(), vec!["inventory"]),
        ("PUB DEAD_LETTER.redriven.payment.1".to_owned(), vec!["gateway"]),
        ("PUB $JS.API.STREAM.MSG.DELETE.DEAD_LETTERS".to_owned(), [&["gateway"], &STEPS[..]].concat()),
        ("PUB $JS.API.STREAM.MSG.DELETE.ORDERS".to_owned(), NOBODY.to_vec()),
        ("PUB $JS.API.STREAM.INFO.ORDERS".to_owned(), USERS.to_vec()),
        ("PUB $JS.API.STREAM.LIST".to_owned(), NOBODY.to_vec()),
        ("PUB $JS.API.DIRECT.GET.ORDERS".to_owned(), [&["gateway"], &STEPS[..]].concat()),
        ("PUB $JS.API.DIRECT.GET.KV_INVENTORY".to_owned(), vec!["inventory"]),
        ("PUB $JS.API.STREAM.CREATE.ELSEWHERE".to_owned(), NOBODY.to_vec()),
        ("SUB live.ORDER.>".to_owned(), vec!["gateway"]),
        ("SUB ORDER.>".to_owned(), NOBODY.to_vec()),
        ("SUB $KV.INVENTORY.>".to_owned(), NOBODY.to_vec()),
        ("SUB _INBOX.>".to_owned(), NOBODY.to_vec()),
        ("SUB >".to_owned(), NOBODY.to_vec()),
    ];
    for stream in ["ORDERS", "DEAD_LETTERS", "KV_INVENTORY"] {
        for change in ["CREATE", "UPDATE"] {
            rights.push((format!("PUB $JS.API.STREAM.{change}.{stream}"), vec!["provisioner"]));
        }
        for change in ["DELETE", "PURGE", "SNAPSHOT", "RESTORE"] {
            rights.push((format!("PUB $JS.API.STREAM.{change}.{stream}"), NOBODY.to_vec()));
        }
    }
    for step in STEPS {
        rights.push((format!("PUB $JS.API.CONSUMER.MSG.NEXT.ORDERS.{step}"), vec![step]));
        rights.push((format!("PUB $JS.API.CONSUMER.RESET.ORDERS.{step}"), vec![step]));
        rights.push((format!("PUB $JS.ACK.ORDERS.{step}.1.1.1.1.0"), vec![step]));
        rights.push((format!("PUB $JS.API.CONSUMER.CREATE.ORDERS.{step}"), vec!["provisioner"]));
        rights.push((format!("PUB $JS.API.CONSUMER.DELETE.ORDERS.{step}"), vec!["provisioner"]));
        rights.push((format!("PUB DEAD_LETTER.open.{step}.1"), vec![step]));
        rights.push((format!("PUB DEAD_LETTER.floor.{step}"), vec![step]));
    }
    for user in USERS {
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
    let mut table = format!("{:<48}{}\n", "", USERS.map(|user| format!("{user:<13}")).concat());
    let mut wrong = Vec::new();
    for (number, (tried, who)) in rights().into_iter().enumerate() {
        table += &format!("{tried:<48}");
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
