//! A step that Waybill does not ship, added to a copy of the workspace in the way that docs/adding-a-step.md says, and
//! at work beside the other three. All that is asked of it here belongs to the runtime: its file holds none of it.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use async_nats::jetstream::kv;
use backbone::log::ids::CustomerKey;
use harness::{Deployment, Load, Options, eventually, item, mirror, order_of};
use proto::orders::v1::{CreateOrderRequest, Order, OrderStatus};
use serde_json::Value;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const FOURTH_STEP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fourth-step");
/// What a build of the workspace needs.
const PARTS: [&str; 14] = [
    "Cargo.toml",
    "Cargo.lock",
    "clippy.toml",
    "rustfmt.toml",
    "proto",
    "program",
    "backbone",
    "stock",
    "gateway",
    "processor",
    "payment-sandbox",
    "cli",
    "deploy",
    "tests",
];
const SUSPECT: &str = "mallory";
const STOCK: u64 = 1_000_000;

/// Where the programs of the workspace with four steps are. The first who asks has them built.
fn programs() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(build).clone()
}

fn build() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    // target/<profile>/deps/<test>
    let profile = test.ancestors().nth(2).unwrap();
    let target = profile.parent().unwrap();
    let folder = target.join("fourth-step");
    let (patched, workspace) = (folder.join("patched"), folder.join("workspace"));
    for part in PARTS {
        mirror(&Path::new(ROOT).join(part), &patched.join(part), &[]);
    }
    mirror(&Path::new(FOURTH_STEP).join("fraud"), &patched.join("fraud"), &[]);
    let mut git = Command::new("git");
    // Inside of a repository git would look for the files in that.
    git.env("GIT_CEILING_DIRECTORIES", &folder).current_dir(&patched);
    succeeds(git.arg("apply").arg(Path::new(FOURTH_STEP).join("fourth-step.patch")));
    // To cargo, crates of the same name, version and place in their workspace are the same.
    let manifest = fs::read_to_string(patched.join("Cargo.toml")).unwrap();
    let version = concat!("\nversion = \"", env!("CARGO_PKG_VERSION"));
    assert_eq!(manifest.matches(version).count(), 1, "{version}");
    let manifest = manifest.replace(version, &format!("{version}-fourth-step"));
    fs::write(patched.join("Cargo.toml"), manifest).unwrap();
    // What has not changed since the last time is not built anew.
    mirror(&patched, &workspace, &[]);

    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // The lock file lacks the new crate, which depends on nothing new. What the crates of others came to is shared; the
    // programs have the same names, and are kept apart.
    cargo.args(["build", "--workspace", "--bins", "--offline", "--quiet", "--target-dir"]).arg(&folder);
    cargo.env("CARGO_BUILD_BUILD_DIR", target).current_dir(&workspace);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    succeeds(&mut cargo);
    folder.join(profile.file_name().unwrap())
}

fn succeeds(command: &mut Command) {
    let status = command.stdin(Stdio::null()).status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

/// All four steps at work, which give up after so many attempts.
async fn deployment(attempts_max: u8) -> Deployment {
    let processors = vec![("ACK_WAIT", "2s".to_owned()), ("MAX_ATTEMPTS", attempts_max.to_string())];
    let options = Options { programs: Some(programs()), processors, ..Options::default() };
    let mut waybill = Deployment::start_with(options).await;
    waybill.start_processor("fraud");
    waybill.idle("fraud").await;
    waybill
}

fn order_by(customer_id: &str) -> CreateOrderRequest {
    order_of(customer_id, "request", vec![item("widget", 1)])
}

fn many(orders: usize) -> Vec<CreateOrderRequest> {
    (0..orders).map(|i| order_of("customer", &format!("request-{i}"), vec![item("widget", 1)])).collect()
}

async fn suspects(waybill: &Deployment) -> kv::Store {
    let jetstream = waybill.jetstream().await;
    eventually("the bucket of suspects", async || jetstream.get_key_value("SUSPECTS").await.ok()).await
}

/// Begins to suspect [`SUSPECT`].
async fn suspect(waybill: &Deployment, reason: &[u8]) {
    suspects(waybill).await.put(key(), reason.to_vec().into()).await.unwrap();
}

fn key() -> String {
    CustomerKey::of("", SUSPECT).to_string()
}

/// What happened to an order. The events of the fourth step are none that this crate can read.
async fn way(waybill: &Deployment, order: &Order) -> Vec<String> {
    let (_, order_key) = order.order_id.split_once('-').unwrap();
    let subjects = waybill.subjects().await.into_iter().filter(|subject| subject.ends_with(order_key));
    subjects.map(|subject| subject.split('.').nth(1).unwrap().to_owned()).collect()
}

async fn all_are_fulfilled(waybill: &Deployment, orders: &[Order]) {
    let ids: Vec<_> = orders.iter().map(|order| order.order_id.clone()).collect();
    assert_eq!(waybill.statuses(&ids).await.get(&OrderStatus::Fulfilled), Some(&ids.len()));
    let subjects = waybill.subjects().await;
    let screened: Vec<_> = subjects.iter().filter(|subject| subject.starts_with("ORDER.screened.")).collect();
    assert_eq!(screened.len(), orders.len());
    assert_eq!(screened.iter().collect::<HashSet<_>>().len(), orders.len(), "each is screened once");
    assert_eq!(waybill.held("widget").await, orders.len() as u64);
    assert!(waybill.letters_kept().await.is_empty());
}

#[tokio::test]
async fn an_order_is_screened_between_its_reservation_and_its_payment() {
    let waybill = deployment(10).await;
    let order = waybill.place(order_by("customer")).await.unwrap();
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
    assert_eq!(way(&waybill, &order).await, ["created", "reserved", "screened", "paid", "fulfilled"]);
    let messages = waybill.messages().await;
    let header = |i: usize, name: &str| messages[i].headers.get(name).unwrap().as_str().to_owned();
    assert_eq!(
        (header(2, "ce-type"), header(2, "ce-source")),
        ("orders.v1.OrderScreened".to_owned(), "fraud".to_owned())
    );
    let trace = |i| header(i, "traceparent").split('-').nth(1).unwrap().to_owned();
    assert_eq!(trace(2), trace(0), "all in one trace");
}

#[tokio::test]
async fn a_suspect_pays_nothing_and_gives_the_stock_back() {
    let waybill = deployment(10).await;
    suspect(&waybill, b"three chargebacks").await;
    let order = waybill.place(order_by(SUSPECT)).await.unwrap();
    let order = waybill.finished(&order.order_id).await;
    assert_eq!((order.status(), order.reason.as_str()), (OrderStatus::Rejected, "SUSPECTED_FRAUD"));
    assert_eq!(way(&waybill, &order).await, ["created", "reserved", "rejected", "released"]);
    assert_eq!((waybill.held("widget").await, waybill.available("widget").await), (0, STOCK));
}

#[tokio::test]
async fn an_order_that_is_cancelled_before_it_is_screened_owes_no_refund() {
    let mut waybill = deployment(10).await;
    waybill.kill_processors("fraud");
    let order = waybill.place(order_by("customer")).await.unwrap();
    waybill.reached(&order.order_id, OrderStatus::Reserved).await;
    waybill.cancel(&order.order_id).await.unwrap();
    let order = waybill.finished(&order.order_id).await;
    waybill.start_processor("fraud");
    waybill.idle("fraud").await;
    assert_eq!(way(&waybill, &order).await, ["created", "reserved", "cancelled", "released"]);
}

#[tokio::test]
async fn orders_wait_while_the_suspects_cannot_be_looked_up_and_none_is_given_up() {
    let mut waybill = deployment(1).await;
    let jetstream = waybill.jetstream().await;
    jetstream.delete_key_value("SUSPECTS").await.unwrap();
    let orders = Load::start(waybill.channel(), many(20)).all().await;
    let said = |message: &'static str| move |fields: &Value| (fields["message"] == message).then_some(());
    waybill
        .processor("fraud")
        .logged("a pause", said("dependency unavailable, circuit breaker opened"))
        .await;
    let config = kv::Config { bucket: "SUSPECTS".to_owned(), ..kv::Config::default() };
    jetstream.create_key_value(config).await.unwrap();
    all_are_fulfilled(&waybill, &orders).await;
    waybill
        .processor("fraud")
        .logged("the end of the pause", said("dependency available, circuit breaker closed"))
        .await;
}

#[tokio::test]
async fn an_order_that_cannot_be_screened_is_parked_and_goes_on_when_it_is_redriven() {
    let waybill = deployment(2).await;
    suspect(&waybill, &[0xff]).await;
    let order = waybill.place(order_by(SUSPECT)).await.unwrap();
    let parked = waybill.reached(&order.order_id, OrderStatus::Failed).await;
    assert_eq!(parked.parked_status(), OrderStatus::Reserved);
    let letter = waybill.letter(&parked.dead_letter_id).await.unwrap();
    assert_eq!((letter.step.as_str(), letter.attempts.len()), ("fraud", 2));
    assert!(letter.attempts.iter().all(|attempt| attempt.error.contains("SUSPECTS")), "{letter:?}");

    suspects(&waybill).await.delete(key()).await.unwrap();
    waybill.redrive(harness::these(&[&parked.dead_letter_id])).await.unwrap();
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
    let expected = ["created", "reserved", "failed", "redriven", "screened", "paid", "fulfilled"];
    assert_eq!(way(&waybill, &order).await, expected);
}

#[tokio::test]
async fn processes_that_stop_or_die_leave_their_orders_to_the_others() {
    let mut waybill = deployment(10).await;
    waybill.start_processor("fraud");
    let mut load = Load::start(waybill.channel(), many(600));
    load.acknowledged(100).await;
    let status = waybill.processor("fraud").stop().await;
    assert!(status.success(), "{status}");
    load.acknowledged(300).await;
    waybill.kill_processors("fraud");
    waybill.start_processor("fraud");
    let orders = load.all().await;
    all_are_fulfilled(&waybill, &orders).await;
}

#[test]
fn the_documentation_shows_what_is_built_here() {
    let page = fs::read_to_string(Path::new(ROOT).join("docs/adding-a-step.md")).unwrap();
    let sources = ["fraud/Cargo.toml", "fraud/src/main.rs", "fraud/src/fraud.rs", "fourth-step.patch"];
    let sources = sources.map(|path| fs::read_to_string(Path::new(FOURTH_STEP).join(path)).unwrap());
    let code = |block: &&str| ["rust\n", "toml\n", "diff\n"].iter().any(|kind| block.starts_with(kind));
    // Every other part is inside of a fence.
    let blocks: Vec<_> = page.split("```").skip(1).step_by(2).filter(code).collect();
    assert!(blocks.len() >= sources.len(), "{} blocks", blocks.len());
    for block in blocks {
        let (_, text) = block.split_once('\n').unwrap();
        assert!(sources.iter().any(|source| source.contains(text)), "not as it is built:\n{text}");
    }
}
