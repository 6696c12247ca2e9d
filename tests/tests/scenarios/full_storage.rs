//! Each way in which the broker can run out of space: what clients are told, how long they are to wait, what readiness says,
//! how much is logged, and how it ends.

use std::time::{Duration, Instant};

use async_nats::jetstream::stream::Config;
use backbone::broker::streams::{DEAD_LETTERS, ORDERS};
use futures::StreamExt;
use harness::{Deployment, Options, PATIENCE, Tmpfs, create, eventually, item, order_of};
use proto::orders::v1::{Order, OrderStatus};
use tokio::time::sleep;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_types::StatusExt;

use crate::accounting::each_is_carried_out_once;
use crate::storage_full::room_for;

/// How long calls go on while there is no space. With MINUTE=1 in the environment it is a minute.
const WATCHED_FOR: Duration = Duration::from_secs(15);
/// Most lines that one process may log about it in a minute.
const LINES_PER_MINUTE_MAX: usize = 10;
/// Orders that wait for their payment when the space runs out, and as many that wait for stock.
const WAITING_COUNT: usize = 20;
/// Letters in any state, and records of attempts.
const LETTERS: &str = "DEAD_LETTER.*.*.*";
/// A stream beside those of Waybill that takes up what there is.
const FILLER: &str = "FILLER";

/// What is peculiar to one way to be full.
struct Form<Fill, Free> {
    name: &'static str,
    /// What /readyz has to say.
    said: &'static str,
    fill: Fill,
    free: Free,
}

/// A deployment around a broker that is configured so; the broker's files may lie on a disk of their own.
async fn deployment(
    of_jetstream: &str,
    of_server: &str,
    disk: Option<u32>,
) -> Option<(Deployment, Option<Tmpfs>)> {
    let mut options = Options::default();
    options.processors.push(("MAX_ATTEMPTS", "1".to_owned()));
    let mut waybill = Deployment::start_without_broker(options).await;
    let tmpfs = match disk {
        Some(mebibytes) => Some(Tmpfs::mount(&waybill.broker.data(), mebibytes)?),
        None => None,
    };
    waybill.broker.start_configured(of_jetstream, of_server);
    if tmpfs.is_some() {
        // It holds something already: the disk.
        waybill.broker.provision_soon();
    }
    waybill.ready().await;
    waybill.steps_are_open().await;
    Some((waybill, tmpfs))
}

/// Orders, some of which are finished, and some of which wait for their payment.
async fn orders(waybill: &mut Deployment) -> Vec<Order> {
    let mut orders = Vec::new();
    let client = waybill.client().await;
    let first = create(&client, &order_of("customer", "finished", vec![item("widget", 1)])).await.unwrap();
    waybill.finished(&first.order_id).await;
    orders.push(first);
    waybill.kill_processors("payment");
    for n in 0..WAITING_COUNT {
        let request = order_of("customer", &format!("waiting-{n}"), vec![item("widget", 1)]);
        let order = create(&client, &request).await.unwrap();
        waybill.reached(&order.order_id, OrderStatus::Reserved).await;
        orders.push(order);
    }
    waybill.kill_processors("inventory");
    for n in 0..WAITING_COUNT {
        let request = order_of("customer", &format!("accepted-{n}"), vec![item("widget", 1)]);
        orders.push(create(&client, &request).await.unwrap());
    }
    orders
}

/// Lines of a process, all but what it logs at its start.
fn lines_since(output: &str, before: usize) -> Vec<&str> {
    output.get(before..).unwrap_or_default().lines().collect()
}

async fn try_form<Fill, Free>(waybill: &mut Deployment, form: Form<Fill, Free>, restart: Option<(&str, &str)>)
where
    Fill: AsyncFn(&Deployment),
    Free: AsyncFn(&Deployment),
{
    let Form { name, said, fill, free } = form;
    let mut orders = orders(waybill).await;
    fill(waybill).await;
    let gateway_before = waybill.gateway.process.output().len();
    let inventory_before = waybill.processor("inventory").output().len();
    waybill.restart_processor("payment");
    waybill.restart_processor("inventory");

    // The first who meets it may have to wait for an answer that does not come.
    let request = |n: usize| order_of("customer", &format!("refused-{n}"), vec![item("widget", 1)]);
    let began = Instant::now();
    // What is written first may still fit.
    let mut n = 0;
    let (first, first_after) = loop {
        n += 1;
        let called = Instant::now();
        match waybill.place(request(n)).await {
            Ok(order) => orders.push(order),
            Err(refusal) => break (refusal, called.elapsed()),
        }
        assert!(began.elapsed() < PATIENCE, "no refusal");
    };
    let mut refusals = Vec::new();
    let watched_for =
        if std::env::var_os("MINUTE").is_some() { Duration::from_secs(60) } else { WATCHED_FOR };
    let mut longest = Duration::ZERO;
    let calls_before = n;
    let began = Instant::now();
    let mut not_ready = 0;
    while began.elapsed() < watched_for {
        let called = Instant::now();
        n += 1;
        match waybill.place(request(n)).await {
            Ok(order) => orders.push(order),
            Err(refusal) => refusals.push(refusal),
        }
        longest = longest.max(called.elapsed());
        not_ready += usize::from(waybill.http("/readyz").await.0 == 503);
        sleep(Duration::from_millis(100)).await;
    }
    let calls = n - calls_before;
    let per_minute = |lines: usize| (lines as f64 * 60.0 / watched_for.as_secs_f64()).round();
    let (ready, reason) = waybill.http("/readyz").await;
    let health = waybill.gateway.health("").await;
    let waits: Vec<_> = refusals
        .iter()
        .filter_map(|refusal| refusal.get_details_retry_info().and_then(|info| info.retry_delay))
        .collect();
    let reasons = |refusals: &[tonic::Status]| {
        let mut counts = std::collections::BTreeMap::<_, usize>::new();
        for refusal in refusals {
            let reason = refusal.get_details_error_info().map(|info| info.reason).unwrap_or_default();
            *counts.entry(format!("{:?} {reason}", refusal.code())).or_default() += 1;
        }
        counts
    };
    let gateway = waybill.gateway.process.output();
    let gateway_lines = lines_since(&gateway, gateway_before).len();
    let payment = waybill.processor("payment").output();
    // Not of what it says at its start.
    let start = ["\"INFO\"", "in-process payment sandbox"];
    let about_it = |line: &&str| !start.iter().any(|said| line.contains(said));
    let payment_lines = payment.lines().filter(about_it).count();
    let inventory = waybill.processor("inventory").output();
    let inventory_lines = lines_since(&inventory, inventory_before).into_iter().filter(about_it).count();
    eprintln!(
        "{name}: first refused after {first_after:.1?} {:?}; then {:?} of {calls} calls, longest {longest:.1?}, wait {:?}; readyz {ready} \
         {:?} ({not_ready} of {calls} times not ready), health {health:?}; lines a minute: gateway {}, payment {}, inventory {}",
        reasons(std::slice::from_ref(&first)),
        reasons(&refusals),
        waits.iter().max(),
        reason.trim_end(),
        per_minute(gateway_lines),
        per_minute(payment_lines),
        per_minute(inventory_lines),
    );
    if std::env::var_os("SHOW").is_some() {
        for line in lines_since(&gateway, gateway_before)
            .iter()
            .chain(&lines_since(&payment, 0))
            .chain(&lines_since(&inventory, inventory_before))
        {
            eprintln!("    {line}");
        }
    }
    assert!(waybill.get(&orders[0].order_id).await.is_ok(), "reads go on");

    free(waybill).await;
    if let Some((of_jetstream, of_server)) = restart {
        sleep(Duration::from_secs(3)).await;
        let still = waybill.place(request(n + 1)).await.is_err();
        eprintln!("{name}: without a restart {}", if still { "still refused" } else { "accepted again" });
        waybill.broker.kill();
        waybill.broker.start_configured(of_jetstream, of_server);
    }
    let freed = Instant::now();
    orders.push(
        eventually("an order that is taken again", async || waybill.place(request(n + 2)).await.ok()).await,
    );
    let accepted_after = freed.elapsed();
    waybill.ready().await;
    eprintln!(
        "{name}: accepted {accepted_after:.1?} after there was space, ready after {:.1?}",
        freed.elapsed()
    );
    each_is_carried_out_once(waybill, &orders).await;
    let letters = waybill.jetstream().await.get_stream(DEAD_LETTERS).await.unwrap();
    let letters: Vec<_> = letters.info_with_subjects(LETTERS).await.unwrap().collect().await;
    assert!(letters.is_empty(), "{letters:?}");

    assert_eq!(first.code(), Code::Unavailable, "{first:?}");
    for refusal in refusals.iter().chain([&first]) {
        assert_eq!(refusal.get_details_error_info().unwrap().reason, "STORAGE_FULL", "{refusal:?}");
        let wait = refusal.get_details_retry_info().unwrap().retry_delay.unwrap();
        assert!(wait >= Duration::from_secs(10), "{wait:?}");
    }
    assert_eq!((ready, health), (503, Some(ServingStatus::NotServing)));
    assert!(reason.contains("storage") && reason.contains(said), "{reason}");
    // A few lines come in the first moment, however short it is looked at.
    for lines in [gateway_lines, payment_lines, inventory_lines] {
        assert!(lines <= LINES_PER_MINUTE_MAX, "{lines} lines in {watched_for:?}");
    }
}

/// Fills a stream beside those of Waybill until nothing more is taken.
async fn fill_beside(waybill: &Deployment) {
    let jetstream = waybill.jetstream().await;
    let config =
        Config { name: FILLER.to_owned(), subjects: vec![format!("{FILLER}.>")], ..Config::default() };
    jetstream.create_stream(config).await.unwrap();
    for bytes in [16 * 1024, 256, 1] {
        loop {
            let published = jetstream.publish(format!("{FILLER}.x"), vec![0; bytes].into()).await.unwrap();
            if published.await.is_err() {
                break;
            }
        }
    }
}

async fn delete_beside(waybill: &Deployment) {
    waybill.jetstream().await.delete_stream(FILLER).await.unwrap();
}

#[tokio::test]
async fn a_stream_with_its_max_msgs_is_full_storage() {
    let Some((mut waybill, _)) = deployment("", "", None).await else { return };
    let fill = async |waybill: &Deployment| {
        let count = i64::try_from(waybill.messages().await.len()).unwrap();
        room_for(waybill, count).await;
    };
    let free = async |waybill: &Deployment| room_for(waybill, -1).await;
    let form = Form { name: "stream max_msgs", said: "maximum messages exceeded", fill, free };
    try_form(&mut waybill, form, None).await;
}

#[tokio::test]
async fn a_stream_with_its_max_bytes_is_full_storage() {
    let Some((mut waybill, _)) = deployment("", "", None).await else { return };
    let limit = async |waybill: &Deployment, bytes: Option<u64>| {
        let jetstream = waybill.jetstream().await;
        let mut stream = jetstream.get_stream(ORDERS).await.unwrap();
        let info = stream.info().await.unwrap().clone();
        let max_bytes = bytes.map_or(-1, |more| i64::try_from(info.state.bytes + more).unwrap());
        jetstream.update_stream(Config { max_bytes, ..info.config }).await.unwrap();
    };
    let fill = async |waybill: &Deployment| limit(waybill, Some(10)).await;
    let free = async |waybill: &Deployment| limit(waybill, None).await;
    let form = Form { name: "stream max_bytes", said: "maximum bytes exceeded", fill, free };
    try_form(&mut waybill, form, None).await;
}

#[tokio::test]
async fn an_account_with_its_max_file_is_full_storage() {
    let account = "accounts { A { jetstream { max_file: 4M, max_memory: 1M }, users: [{ user: a, password: a }] } }\n\
                   no_auth_user: a";
    let Some((mut waybill, _)) = deployment("", account, None).await else { return };
    let form = Form {
        name: "account max_file",
        said: "resource limits exceeded for account",
        fill: fill_beside,
        free: delete_beside,
    };
    try_form(&mut waybill, form, None).await;
}

#[tokio::test]
async fn a_server_with_its_max_file_store_is_full_storage() {
    let Some((mut waybill, _)) = deployment("max_file_store: 4M", "", None).await else { return };
    let form = Form {
        name: "server max_file_store",
        said: "insufficient resources",
        fill: fill_beside,
        free: delete_beside,
    };
    try_form(&mut waybill, form, None).await;
}

#[tokio::test]
async fn a_small_disk_without_max_file_store_is_full_storage() {
    // The broker takes three quarters of the disk for its limit, as it is when the broker starts.
    let Some((mut waybill, _tmpfs)) = deployment("", "", Some(64)).await else { return };
    let form = Form {
        name: "tmpfs of 64 MiB, no limit set",
        said: "insufficient resources",
        fill: fill_beside,
        free: delete_beside,
    };
    try_form(&mut waybill, form, None).await;
}

#[tokio::test]
async fn a_disk_without_space_is_full_storage() {
    const LIMIT: &str = "max_file_store: 1G";
    let Some((mut waybill, tmpfs)) = deployment(LIMIT, "", Some(64)).await else { return };
    let Some(tmpfs) = tmpfs else { return };
    let fill = async |_: &Deployment| tmpfs.fill();
    let free = async |_: &Deployment| tmpfs.free();
    let form = Form { name: "no space on the disk", said: "disk is full", fill, free };
    try_form(&mut waybill, form, Some((LIMIT, ""))).await;
}
