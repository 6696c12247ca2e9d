//! A rolling upgrade in the order of docs/upgrading.md, while clients place, cancel, read and watch orders.
//!
//! PREVIOUS_BINARIES names the folder of the programs that it begins with, NEXT_BINARIES the folder of those that it ends
//! with, which stand for the version before: then it goes back. Without them both are this build's. `make upgrade` builds
//! another version, and rolls from it and back to it.

use std::collections::HashMap;
use std::error::Error as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use harness::{Deployment, Gateway, Options, binary, eventually, item, order_of};
use proto::orders::v1::order_service_client::OrderServiceClient;
use proto::orders::v1::{
    CancelOrderRequest, GetOrderRequest, Order, OrderEvent, OrderStatus, WatchOrderRequest,
    WatchOrdersRequest,
};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::accounting::{STOCK, ids};
use crate::books::{Problems, check_history, check_money, check_stock, histories};
use crate::events::{after, revisions};

const REPLICAS: usize = 2;
const CLIENTS: usize = 12;
/// What a client does between two orders.
const PAUSE: Duration = Duration::from_millis(5);
/// Orders placed between one replacement and the next.
const ORDERS_BETWEEN: usize = 100;
/// How often a call is tried, as a gRPC service config would have it.
const TRIES: usize = 5;
const WATCHED_CUSTOMER: &str = "customer-0";

#[tokio::test]
async fn a_rolling_upgrade_fails_no_call_and_neither_loses_nor_doubles_an_effect() {
    let [previous, next] = ["PREVIOUS_BINARIES", "NEXT_BINARIES"].map(programs);
    eprintln!("rolling from {} to {}", said(previous.as_ref()), said(next.as_ref()));
    let unlimited = "1000000".to_owned();
    let gateway = vec![
        ("DRAIN_DELAY", "500ms".to_owned()),
        ("RATE_LIMIT", unlimited.clone()),
        ("RATE_BURST", unlimited),
    ];
    let stock = vec![("widget", STOCK)];
    let options = Options {
        stock: stock.clone(),
        programs: previous,
        replicas: REPLICAS,
        payment_sandbox: true,
        gateway,
        ..Options::default()
    };
    let mut waybill = Deployment::start_with(options).await;
    let mut second = waybill.another_gateway().await;
    let gateways = [waybill.channel(), second.channel()].map(OrderServiceClient::new);

    let (placed, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let mut clients = JoinSet::new();
    for i in 0..CLIENTS {
        let mut client = Client::new(&gateways, i % 2);
        let (placed, over) = (placed.clone(), over.clone());
        clients.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                client.carry_out(placed.fetch_add(1, Ordering::Relaxed)).await;
                sleep(PAUSE).await;
            }
            client
        });
    }
    let watch = watch_customer(Client::new(&gateways, 1));

    let start = Instant::now();
    let back = next.is_some();
    waybill.use_programs(next);
    if back {
        roll_steps(&mut waybill, ["inventory", "payment", "fulfilment"], &placed).await;
        roll_gateways(&mut waybill, &mut second, &placed).await;
    } else {
        roll_gateways(&mut waybill, &mut second, &placed).await;
        roll_steps(&mut waybill, ["fulfilment", "payment", "inventory"], &placed).await;
    }
    goes_on(&placed).await;
    assert!(waybill.sandbox().process.stop().await.success());
    waybill.sandbox().restart().await;
    goes_on(&placed).await;
    eprintln!("{:?}: everything is replaced", start.elapsed());
    over.store(true, Ordering::Relaxed);
    let clients = clients.join_all().await;
    let seen_live = watch(&waybill).await;
    eprintln!("{:?}: every step has nothing left to do", start.elapsed());
    check(&mut waybill, &stock, clients, seen_live).await;
}

fn programs(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

/// Which programs these are.
fn said(programs: Option<&PathBuf>) -> String {
    let gateway = match programs {
        Some(folder) => folder.join("waybill-gateway"),
        None => binary("waybill-gateway"),
    };
    let version = Command::new(&gateway).arg("--version").output().unwrap();
    assert!(version.status.success(), "{}: {}", gateway.display(), version.status);
    let place = programs.map_or_else(|| "this build".to_owned(), |folder| folder.display().to_string());
    format!("{} ({place})", String::from_utf8_lossy(&version.stdout).trim())
}

/// Waits until more orders are placed.
async fn goes_on(placed: &AtomicUsize) {
    let count = placed.load(Ordering::Relaxed) + ORDERS_BETWEEN;
    eventually("more orders", async || (placed.load(Ordering::Relaxed) >= count).then_some(())).await;
}

async fn roll_gateways(waybill: &mut Deployment, second: &mut Gateway, placed: &AtomicUsize) {
    goes_on(placed).await;
    assert!(waybill.gateway.process.stop().await.success());
    waybill.restart_gateway().await;
    goes_on(placed).await;
    assert!(second.process.stop().await.success());
    *second = waybill.gateway_at("gateway-2", &second.grpc_addr).await;
}

async fn roll_steps(waybill: &mut Deployment, steps: [&'static str; 3], placed: &AtomicUsize) {
    for step in steps {
        for _ in 0..REPLICAS {
            goes_on(placed).await;
            waybill.start_processor(step);
            let mut leaving = waybill.processors.get_mut(step).unwrap().remove(0);
            let status = leaving.stop().await;
            assert!(status.success(), "{step}: {status}");
        }
    }
}

/// A client as the documentation wants it: what is UNAVAILABLE is tried again, at the other gateway.
struct Client {
    gateways: [OrderServiceClient<Channel>; 2],
    calls: usize,
    repeats: usize,
    failed: Vec<String>,
    orders: Vec<Order>,
    /// Orders that it was told are cancelled.
    cancelled: Vec<String>,
    /// Revisions that it was shown of the orders that it has watched.
    watched: HashMap<String, Vec<u64>>,
}

impl Client {
    fn new(gateways: &[OrderServiceClient<Channel>; 2], first: usize) -> Self {
        let gateways = [gateways[first].clone(), gateways[1 - first].clone()];
        Self {
            gateways,
            calls: 0,
            repeats: 0,
            failed: Vec::new(),
            orders: Vec::new(),
            cancelled: Vec::new(),
            watched: HashMap::new(),
        }
    }

    /// One order: every fifth is cancelled, every tenth declined, every twentieth watched.
    async fn carry_out(&mut self, n: usize) {
        let customer = if n % 10 == 3 { "declined-customer" } else { "customer" };
        let request = order_of(&format!("{customer}-{}", n % 50), &format!("r-{n}"), vec![item("widget", 1)]);
        let created = self
            .call(|mut gateway| {
                let request = request.clone();
                async move { gateway.create_order(request).await }
            })
            .await;
        let Some(order) = self.answer("create", created).and_then(|created| created.order) else { return };
        let order_id = order.order_id.clone();
        self.orders.push(order);
        if n.is_multiple_of(5) {
            // Some when they have come further than others.
            sleep(PAUSE * u32::try_from(n % 20).unwrap()).await;
            let request = CancelOrderRequest { order_id: order_id.clone(), message: String::new() };
            match self
                .call(|mut gateway| {
                    let request = request.clone();
                    async move { gateway.cancel_order(request).await }
                })
                .await
            {
                Ok(_) => self.cancelled.push(order_id.clone()),
                // It was too late, which is an answer.
                Err(status) if status.code() == Code::FailedPrecondition => {}
                Err(status) => self.failed.push(format!("cancel: {status:?}")),
            }
        }
        let request = GetOrderRequest { order_id: order_id.clone() };
        let read = self
            .call(|mut gateway| {
                let request = request.clone();
                async move { gateway.get_order(request).await }
            })
            .await;
        self.answer("get", read);
        if n % 20 == 7 {
            let seen = self.watch(&order_id).await;
            self.watched.insert(order_id, seen);
        }
    }

    fn answer<T>(&mut self, what: &str, answer: Result<T, Status>) -> Option<T> {
        answer.map_err(|status| self.failed.push(format!("{what}: {status:?}"))).ok()
    }

    async fn call<T, F>(&mut self, call: impl Fn(OrderServiceClient<Channel>) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.calls += 1;
        let mut tries = 0;
        loop {
            match call(self.gateways[tries % 2].clone()).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) if is_unavailable(&status) && tries + 1 < TRIES => {
                    self.repeats += 1;
                    sleep(Duration::from_millis(20 << tries)).await;
                    tries += 1;
                }
                Err(status) => return Err(status),
            }
        }
    }

    /// Watches an order to its end, and goes on at the other gateway with the last revision seen.
    async fn watch(&mut self, order_id: &str) -> Vec<u64> {
        let mut seen = Vec::new();
        loop {
            let after_revision = seen.last().copied().unwrap_or_default();
            let request = WatchOrderRequest { order_id: order_id.to_owned(), after_revision };
            let opened = self
                .call(|mut gateway| {
                    let request = request.clone();
                    async move { gateway.watch_order(request).await }
                })
                .await;
            let Some(mut stream) = self.answer("watch", opened) else { return seen };
            loop {
                match stream.message().await {
                    Ok(Some(message)) => seen.push(after(&message.event.unwrap()).revision),
                    Ok(None) => return seen,
                    Err(status) if is_unavailable(&status) => break,
                    Err(status) => {
                        self.failed.push(format!("watch: {status:?}"));
                        return seen;
                    }
                }
            }
            self.repeats += 1;
            self.gateways.swap(0, 1);
        }
    }
}

/// A status that the client made up itself has the connection's error as its source.
fn is_unavailable(status: &Status) -> bool {
    status.code() == Code::Unavailable || status.source().is_some()
}

/// Watches all orders of a customer from now on. What it returns ends the watch when it has shown all that is in the log,
/// and tells which revisions that were.
fn watch_customer(mut client: Client) -> impl AsyncFnOnce(&Deployment) -> Vec<u64> {
    let (found, seen) = tokio::sync::watch::channel(Vec::<u64>::new());
    let watching: JoinHandle<()> = tokio::spawn(async move {
        loop {
            let after_revision = found.borrow().last().copied().unwrap_or_default();
            let customer_id = WATCHED_CUSTOMER.to_owned();
            let request = WatchOrdersRequest { customer_id, after_revision };
            let opened = client
                .call(|mut gateway| {
                    let request = request.clone();
                    async move { gateway.watch_orders(request).await }
                })
                .await;
            let mut stream = opened.unwrap();
            loop {
                match stream.message().await {
                    Ok(message) => {
                        let event: OrderEvent = message.expect("no end").event.unwrap();
                        found.send_modify(|found| found.push(after(&event).revision));
                    }
                    Err(status) => {
                        assert!(is_unavailable(&status), "watch of a customer: {status:?}");
                        break;
                    }
                }
            }
            client.gateways.swap(0, 1);
        }
    });
    async move |waybill: &Deployment| {
        for step in ["inventory", "payment", "fulfilment", "payment", "inventory"] {
            waybill.idle(step).await;
        }
        let key = backbone::log::ids::CustomerKey::of("", WATCHED_CUSTOMER).to_string();
        let messages = waybill.messages().await.into_iter();
        let of_customer = messages.filter(|message| message.subject.split('.').nth(2) == Some(&key));
        let last = of_customer.last().expect("orders of the customer").sequence.0;
        eventually("the last event of the customer", async || {
            (seen.borrow().last() == Some(&last)).then_some(())
        })
        .await;
        watching.abort();
        seen.borrow().clone()
    }
}

/// Every order is finished, went a way that the lifecycle allows, and money and stock add up.
async fn check(
    waybill: &mut Deployment,
    stock: &[(&'static str, u64)],
    clients: Vec<Client>,
    seen_live: Vec<u64>,
) {
    let sum = |of: fn(&Client) -> usize| clients.iter().map(of).sum::<usize>();
    let (calls, repeats, failed) =
        (sum(|client| client.calls), sum(|client| client.repeats), sum(|client| client.failed.len()));
    for failure in clients.iter().flat_map(|client| &client.failed).take(5) {
        eprintln!("FAILED {failure}");
    }
    let placed: Vec<_> = clients.iter().flat_map(|client| client.orders.clone()).collect();
    let order_ids = ids(&placed);
    let statuses = waybill.statuses(&order_ids).await;
    let histories = histories(waybill, &order_ids).await;

    let mut problems = Problems::default();
    let stored = waybill.histories().await.len();
    if stored != placed.len() || histories.len() != placed.len() {
        problems.add("", format!("{} orders acknowledged, {stored} in the log", placed.len()));
    }
    let mut orders = Vec::new();
    for (order_id, events) in &histories {
        if let Err(wrong) = check_history(events) {
            problems.add(order_id, wrong);
        }
        orders.push(after(events.last().unwrap()).clone());
    }
    let mut watches = 0;
    for client in &clients {
        for order_id in &client.cancelled {
            let end = after(histories[order_id].last().unwrap()).status();
            if end != OrderStatus::Cancelled {
                problems.add(order_id, format!("cancelled, and {end:?}"));
            }
        }
        for (order_id, seen) in &client.watched {
            watches += 1;
            if *seen != revisions(&histories[order_id]) {
                problems.add(order_id, format!("its watcher saw {seen:?}"));
            }
        }
    }
    let of_customer = orders.iter().filter(|order| order.customer_id == WATCHED_CUSTOMER);
    let mut of_customer: Vec<_> =
        of_customer.flat_map(|order| revisions(&histories[&order.order_id])).collect();
    of_customer.sort_unstable();
    if seen_live != of_customer {
        problems
            .add("", format!("{WATCHED_CUSTOMER}: {} of {} events seen", seen_live.len(), of_customer.len()));
    }
    let totals = check_money(&orders, &waybill.sandbox().accounts(), &mut problems);
    check_stock(waybill, stock, &totals, &mut problems).await;
    for letter in waybill.open_letters().await {
        problems.add("", format!("dead letter {letter}"));
    }
    let remade = waybill.logged_about("consumer may have skipped orders").len();
    eprintln!(
        "{calls} calls, {repeats} tried again, {failed} failed; {} orders: {statuses:?}; {} captures, {} refunds; \
         {watches} watches to the end and one of a customer; {remade} consumers recreated; {} lost or doubled",
        placed.len(),
        totals.captures,
        totals.refunds,
        problems.count(),
    );
    problems.none(waybill, &histories);
    assert_eq!(failed, 0);
}
