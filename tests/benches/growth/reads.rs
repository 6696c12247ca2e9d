//! Reads by one caller, of orders and customers from all over the log.

use std::time::{Duration, Instant};

use harness::measure::histogram;
use hdrhistogram::Histogram;
use proto::orders::v1::{GetOrderRequest, ListOrdersRequest, WatchOrderRequest, WatchOrdersRequest};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tokio::time::timeout;

use crate::orders::{Kept, ORDERS_EACH, Orders};
use crate::table::Column;

const READS_MIN: usize = 200;
const READS_MAX: usize = 1000;
/// After so long there are no more than the fewest.
const READS_FOR: Duration = Duration::from_secs(10);
/// The latest orders of the log.
const RECENT_ORDERS: u64 = 10_000;
/// Longest wait for one event.
const EVENT_MAX: Duration = Duration::from_secs(60);

/// Measures all reads of a log that has `size` orders.
pub(crate) async fn all(orders: &Orders, size: u64, randomness: &mut StdRng, column: &mut Column) {
    // Those of later numbers have customers whose other orders are still to come.
    let mut pick = |from: u64| -> Vec<Kept> {
        let kept = orders.kept().iter().filter(|kept| (from..size).contains(&kept.number));
        let kept: Vec<_> = kept.collect();
        (0..READS_MAX).map(|_| (*kept.choose(randomness).expect("an order")).clone()).collect()
    };
    let (picks, recent) = (pick(0), pick(size - size.min(RECENT_ORDERS)));
    let customers: Vec<_> = picks.iter().map(|kept| orders.customers().of(kept.number)).collect();
    let client = orders.client(0);

    // The broker keeps the parts of the log that were read lately in memory. So the first reads of any order are those that
    // load them.
    for (name, picks) in
        [("GetOrder of recent orders", &recent), ("GetOrder", &picks), ("GetOrder once more", &picks)]
    {
        let latencies_us = measure(async |n| {
            let request = GetOrderRequest { order_id: picks[n].order_id.clone() };
            client.clone().get_order(request).await.expect("order");
        });
        column.latencies(name, &latencies_us.await);
    }

    // The last revision of each customer, as far as they were listed.
    let mut revisions = Vec::new();
    let latencies_us = measure(async |n| {
        let (customer_id, page_size) = (customers[n].clone(), ORDERS_EACH as i32);
        let request = ListOrdersRequest { customer_id, page_size, ..ListOrdersRequest::default() };
        let page = client.clone().list_orders(request).await.expect("orders").into_inner();
        assert!(page.orders.len() as i32 == page_size || page.next_page_token.is_empty(), "a whole page");
        revisions.push(page.orders.iter().map(|order| order.revision).max().expect("an order"));
    });
    column.latencies("ListOrders of 20", &latencies_us.await);

    let latencies_us = measure(async |n| {
        let request = WatchOrderRequest { order_id: picks[n].order_id.clone(), after_revision: 0 };
        let mut events = client.clone().watch_order(request).await.expect("stream").into_inner();
        timeout(EVENT_MAX, events.message()).await.expect("in time").expect("stream").expect("event");
    });
    column.latencies("WatchOrder, first event", &latencies_us.await);

    // Reads the customer's events after a revision up to the last.
    let watch_orders = async |n: usize, from_start: bool| {
        let n = n % revisions.len();
        let (customer_id, last) = (customers[n].clone(), revisions[n]);
        let after_revision = if from_start { 0 } else { last - 1 };
        let request = WatchOrdersRequest { customer_id, after_revision };
        let mut events = client.clone().watch_orders(request).await.expect("stream").into_inner();
        loop {
            let event = timeout(EVENT_MAX, events.message()).await.expect("in time").expect("stream");
            let order = event.and_then(|response| response.event?.order).expect("event");
            if order.revision >= last {
                return;
            }
        }
    };
    let latencies_us = measure(async |n| watch_orders(n, false).await).await;
    column.latencies("WatchOrders from the last event", &latencies_us);
    let latencies_us = measure(async |n| watch_orders(n, true).await).await;
    column.latencies("WatchOrders from 0, caught up", &latencies_us);
}

/// Reads one after the other.
async fn measure(mut read: impl AsyncFnMut(usize)) -> Histogram<u64> {
    let (start, mut latencies_us) = (Instant::now(), histogram());
    for n in 0..READS_MAX {
        if n >= READS_MIN && start.elapsed() >= READS_FOR {
            break;
        }
        let called = Instant::now();
        read(n).await;
        latencies_us.saturating_record(called.elapsed().as_micros() as u64);
    }
    latencies_us
}
