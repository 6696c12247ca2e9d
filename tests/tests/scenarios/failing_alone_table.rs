//! How long healthy orders take among bad ones, as a table. Run by hand:
//!
//! `cargo test -p waybill-tests --test scenarios bad_orders_table -- --ignored --nocapture`
//!
//! BAD, such as `12,500`, and TROUBLE, `refusing` or `hanging`, choose cells; HEALTHY is how many healthy orders there are;
//! PROGRAMS is a folder with programs of another version.

use std::time::{Duration, Instant};

use harness::measure::cpu_time;
use harness::{Deployment, Options, item, order_of};
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};

use crate::failing_alone::{BAD, Trouble, bad_orders, begin};

const BAD_ORDERS: &str = "0,1,4,12,30,500,20000";
const HEALTHY: usize = 60;
/// How long after the last one is placed healthy orders may still end.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

#[tokio::test]
#[ignore = "takes a quarter of an hour, and is to be alone on its machine"]
async fn bad_orders_table() {
    let chosen = std::env::var("BAD").unwrap_or_else(|_| BAD_ORDERS.to_owned());
    let seconds = std::env::var("HEALTHY").map_or(HEALTHY, |count| count.parse().unwrap());
    let trouble = std::env::var("TROUBLE").unwrap_or_default();
    eprintln!("| bad orders | they | healthy | unfinished | p50 | max | broker CPU | payment CPU |");
    eprintln!("|---|---|---|---|---|---|---|---|");
    for bad in chosen.split(',').map(|bad| bad.parse().unwrap()) {
        for (name, does) in [("refusing", Trouble::Refusing), ("hanging", Trouble::Hanging)] {
            if trouble.is_empty() || trouble == name {
                cell(bad, name, does, seconds).await;
            }
        }
    }
}

async fn cell(bad: usize, name: &str, trouble: Trouble, seconds: usize) {
    let programs = std::env::var_os("PROGRAMS").map(Into::into);
    let options = Options {
        payment_sandbox: true,
        replicas: 2,
        programs,
        processors: Vec::new(),
        ..Options::default()
    };
    let mut waybill = Deployment::start_with(options).await;
    begin(&mut waybill, BAD, trouble).await;
    if bad > 0 {
        bad_orders(&mut waybill, bad).await;
    }
    waybill.idle("inventory").await;
    let pids: Vec<_> = waybill.processors["payment"].iter().map(harness::Process::pid).collect();
    let used = |waybill: &Deployment| {
        let payment: Duration = pids.iter().map(|pid| cpu_time(*pid)).sum();
        (cpu_time(waybill.broker.pid()), payment)
    };
    let (before, began) = (used(&waybill), Instant::now());
    let mut ticks = interval(Duration::from_secs(1));
    let mut healthy = JoinSet::new();
    let mut client = waybill.client().await;
    for n in 0..seconds {
        ticks.tick().await;
        let placed = Instant::now();
        let request = order_of("healthy", &format!("healthy-{n}"), vec![item("widget", 1)]);
        let order = client.create_order(request).await.unwrap().into_inner().order.unwrap();
        let mut watcher = waybill.watch(&order.order_id, 0).await.unwrap();
        healthy.spawn(async move {
            // The gateway ends the watch behind the last event.
            while matches!(watcher.next().await, Ok(Some(_))) {}
            placed.elapsed()
        });
    }
    let (after, elapsed) = (used(&waybill), began.elapsed());
    let mut took = Vec::new();
    let ends = async {
        while let Some(end) = healthy.join_next().await {
            took.extend(end.ok());
        }
    };
    let _all = timeout(ENDS_WITHIN, ends).await;
    took.sort_unstable();
    let ms =
        |took: Option<&Duration>| took.map_or("none".to_owned(), |took| format!("{} ms", took.as_millis()));
    let share =
        |before: Duration, after: Duration| (after - before).as_secs_f64() / elapsed.as_secs_f64() * 100.0;
    eprintln!(
        "| {bad} | {name} | {seconds} | {} | {} | {} | {:.0} % | {:.0} % |",
        seconds - took.len(),
        ms(took.get(took.len() / 2)),
        ms(took.last()),
        share(before.0, after.0),
        share(before.1, after.1),
    );
}
