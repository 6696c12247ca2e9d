//! Load that lets the log grow, and load at a pace. Orders count as finished when the broker republishes their `fulfilled`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::Message;
use futures::stream::select;
use futures::{Stream, StreamExt};
use harness::Deployment;
use harness::measure::histogram;
use hdrhistogram::Histogram;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, timeout};

use crate::orders::{Kept, Orders, place};

const IN_FLIGHT: u64 = 256;
/// Orders that may wait for steps, so that clients do not run ahead of them.
const UNFINISHED_MAX: usize = 2000;
const PACED_RATE: u32 = 200;
/// Longest wait for the next order to finish.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// The subjects of `fulfilled`, in version 0.1 before routes and since. No event matches both.
const FULFILLED: [&str; 2] = ["live.ORDER.fulfilled.>", "live.ORDER.*.*.*.fulfilled.*"];

/// How long some orders took from the first call.
pub(crate) struct Grown {
    /// Until the last was accepted.
    pub(crate) accepted: Duration,
    /// Until the last was finished.
    pub(crate) finished: Duration,
}

/// Places the next orders in a closed loop, and waits until they are finished.
pub(crate) async fn grow(waybill: &Deployment, orders: &mut Orders, count: u64) -> Grown {
    let mut fulfilled = fulfilled(waybill).await;
    let numbers = orders.take(count);
    let next = Arc::new(AtomicU64::new(numbers.start));
    let places = Arc::new(Semaphore::new(UNFINISHED_MAX));
    let start = Instant::now();
    let mut callers = JoinSet::new();
    for caller in 0..IN_FLIGHT {
        let (client, customers) = (orders.client(caller), orders.customers().clone());
        let (next, places, end) = (next.clone(), places.clone(), numbers.end);
        callers.spawn(async move {
            let mut kept = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= end {
                    return kept;
                }
                places.acquire().await.expect("open semaphore").forget();
                let order_id = place(&client, customers.request(number)).await;
                if Orders::is_kept(number) {
                    kept.push(Kept { number, order_id });
                }
            }
        });
    }
    let accepting = tokio::spawn(async move { (callers.join_all().await, start.elapsed()) });
    for finished in 0..count {
        let message = timeout(SILENCE_MAX, fulfilled.next()).await;
        message.unwrap_or_else(|_| panic!("{finished} of {count} orders finished")).expect("connection");
        places.add_permits(1);
    }
    let finished = start.elapsed();
    let (kept, accepted) = accepting.await.expect("clients");
    orders.keep(kept.into_iter().flatten());
    Grown { accepted, finished }
}

/// Places the next orders at a pace, and measures each from when its call is due until it is finished.
pub(crate) async fn paced(waybill: &Deployment, orders: &mut Orders, count: u64) -> Histogram<u64> {
    let mut fulfilled = fulfilled(waybill).await;
    let (numbers, customers) = (orders.take(count), orders.customers().clone());
    let client = orders.client(0);
    let placing = tokio::spawn(async move {
        let mut ticks = interval(Duration::from_secs(1) / PACED_RATE);
        let mut calls = JoinSet::new();
        for number in numbers {
            let due = ticks.tick().await;
            let (client, request) = (client.clone(), customers.request(number));
            calls.spawn(async move { (place(&client, request).await, due) });
        }
        calls.join_all().await
    });
    let mut ends = HashMap::new();
    for finished in 0..count {
        let message = timeout(SILENCE_MAX, fulfilled.next()).await;
        let message = message.unwrap_or_else(|_| panic!("{finished} of {count} orders finished"));
        ends.insert(order_id(&message.expect("connection").subject), Instant::now());
    }
    let mut latencies_us = histogram();
    for (order_id, due) in placing.await.expect("client") {
        latencies_us.saturating_record((ends[&order_id] - due).as_micros() as u64);
    }
    latencies_us
}

/// Every `fulfilled` event from now on.
async fn fulfilled(waybill: &Deployment) -> impl Stream<Item = Message> + Unpin {
    let client = waybill.jetstream().await.client();
    let [before_routes, since] = FULFILLED.map(|subject| client.subscribe(subject));
    let both = select(before_routes.await.expect("subscription"), since.await.expect("subscription"));
    client.flush().await.expect("broker");
    both
}

/// The order of a `fulfilled` event.
fn order_id(subject: &str) -> String {
    let tokens: Vec<_> = subject.split('.').filter(|token| *token != "fulfilled").collect();
    let ["live", "ORDER", _, customer, order, ..] = tokens[..] else { panic!("{subject}") };
    format!("{customer}-{order}")
}
