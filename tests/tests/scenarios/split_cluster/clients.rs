//! Clients of two gateways: they place, read, list, watch and cancel, and take down what must not be.

use std::collections::{BTreeSet, HashMap};
use std::error::Error as _;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{HeaderMap, jetstream};
use backbone::broker::direct_get::{Stored, batch_from};
use backbone::broker::streams::ORDERS;
use backbone::log::event::Recorded;
use backbone::log::ids::Revision;
use backbone::log::subjects::{ALL_ORDERS, ORDER_BARRIER};
use harness::{Cluster, Deployment, Gateway, cancel, create, http_get, item, order_of};
use proto::orders::v1::order_service_client::OrderServiceClient;
use proto::orders::v1::{
    CancelOrderRequest, GetOrderRequest, ListOrderEventsRequest, ListOrdersRequest, Order, OrderEvent,
    OrderStatus, WatchOrderRequest, WatchOrdersRequest,
};
use rand::random_range;
use rand::seq::IndexedRandom;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// Orders placed a second.
const CREATES_PER_S: u64 = 100;
const CUSTOMERS: usize = 8;
/// One order of so many is watched.
const WATCHED: usize = 20;
/// One of so many is cancelled.
const CANCELLED: usize = 25;
/// Readers of each gateway.
const READERS: usize = 2;
const CALL_TIMEOUT: Duration = Duration::from_secs(4);
/// Answers in a row that nothing follows, until that is believed.
const ENDS: u32 = 20;
/// How late an update may be before it is taken for missed.
const WATCH_PATIENCE: Duration = Duration::from_secs(35);
const RETRY_PAUSE: Duration = Duration::from_millis(100);
const READINESS_LOOK: Duration = Duration::from_millis(100);
const PAGE_SIZE: i32 = 200;

use super::CUT_OFF;

type Orders = OrderServiceClient<Channel>;

/// What the clients have seen.
#[derive(Debug, Default)]
struct Seen {
    acknowledged: Vec<Order>,
    /// Calls by method and code.
    answers: HashMap<(&'static str, Code), usize>,
    /// What must not be.
    wrong: Vec<String>,
    /// Revisions that watches have given out, by customer or order.
    given: HashMap<String, Vec<u64>>,
    /// When an order was last taken, by gateway.
    taken: [Option<Instant>; 2],
    /// How long a gateway said that it is ready while no order was taken.
    wrongly_ready: Duration,
    /// Since when the cluster has committed what the test itself writes, by a server that the gateway can reach.
    commits_since: [Option<Instant>; 2],
    /// How long, after the heal, a gateway did not say that it is ready meanwhile.
    wrongly_unready: Duration,
}

#[derive(Clone, Debug)]
struct Shared {
    seen: Arc<Mutex<Seen>>,
    begun: Instant,
    cut: CancellationToken,
    healed: CancellationToken,
    enough: CancellationToken,
    done: CancellationToken,
}

/// The clients at work.
#[derive(Debug)]
pub(super) struct Clients {
    shared: Shared,
    placing: JoinHandle<JoinSet<()>>,
    others: JoinSet<()>,
    watches: JoinSet<()>,
}

/// What came of a scenario.
#[derive(Debug, Default)]
pub(super) struct Found {
    acknowledged: usize,
    answers: HashMap<(&'static str, Code), usize>,
    wrong: Vec<String>,
    wrongly_ready: Duration,
    wrongly_unready: Duration,
    pub(super) finished_at: Option<Instant>,
    pub(super) ready_after_heal: Duration,
    pub(super) finished_after_heal: Duration,
    pub(super) readiness_max: Duration,
    pub(super) finished_max: Duration,
}

impl Clients {
    pub(super) fn start(gateways: [&Gateway; 2], jetstreams: [jetstream::Context; 2]) -> Self {
        let clients = gateways.map(|gateway| OrderServiceClient::new(gateway.channel()));
        let shared = Shared {
            seen: Arc::default(),
            begun: Instant::now(),
            cut: CancellationToken::new(),
            healed: CancellationToken::new(),
            enough: CancellationToken::new(),
            done: CancellationToken::new(),
        };
        let placing = tokio::spawn(place(clients.clone(), shared.clone()));
        let mut others = JoinSet::new();
        for (n, gateway) in gateways.into_iter().enumerate() {
            for _ in 0..READERS {
                others.spawn(read(clients[n].clone(), shared.clone()));
            }
            others.spawn(follow_readiness(n, gateway.ops_addr.clone(), shared.clone()));
        }
        for (n, jetstream) in jetstreams.into_iter().enumerate() {
            others.spawn(follow_commits(n, jetstream, shared.clone()));
        }
        let mut watches = JoinSet::new();
        for customer in 0..CUSTOMERS {
            watches.spawn(watch_customer(
                clients[customer % 2].clone(),
                customer_id(customer),
                shared.clone(),
            ));
        }
        Self { shared, placing, others, watches }
    }

    pub(super) fn cut(&mut self) {
        self.shared.note_time("cut");
        self.shared.cut.cancel();
    }

    pub(super) fn healed(&mut self) {
        self.shared.note_time("healed");
        self.shared.healed.cancel();
    }

    /// Has everything end, and waits until every order is finished.
    pub(super) async fn end(mut self, waybill: &Deployment, cluster: &Cluster) -> Found {
        self.shared.enough.cancel();
        let calls = self.placing.await.unwrap();
        calls.join_all().await;
        self.shared.done.cancel();
        while self.others.join_next().await.is_some() {}
        let ids: Vec<_> =
            self.shared.lock().acknowledged.iter().map(|order| order.order_id.clone()).collect();
        let statuses = waybill.statuses(&ids).await;
        if let Some(rejected) = statuses.get(&OrderStatus::Rejected) {
            self.shared.wrong(format!("{rejected} orders were rejected although there is stock"));
        }
        let finished_at = Instant::now();
        self.shared.must_have_been_given(waybill, cluster).await;
        drop(self.watches);
        let seen = std::mem::take(&mut *self.shared.lock());
        Found {
            acknowledged: seen.acknowledged.len(),
            answers: seen.answers,
            wrong: seen.wrong,
            wrongly_ready: seen.wrongly_ready,
            wrongly_unready: seen.wrongly_unready,
            finished_at: Some(finished_at),
            ..Found::default()
        }
    }
}

impl Found {
    pub(super) fn must_be_right(&self) {
        assert!(self.wrong.is_empty(), "{self}");
        assert!(
            self.wrongly_ready <= self.readiness_max,
            "ready for {:?} without orders",
            self.wrongly_ready
        );
        assert!(
            self.wrongly_unready <= self.readiness_max,
            "not ready for {:?} while the cluster commits",
            self.wrongly_unready
        );
        assert!(
            self.finished_after_heal <= self.finished_max,
            "finished late: {:?}",
            self.finished_after_heal
        );
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} orders acknowledged; ready for {:?} without taking any; not ready for {:?} of a healed cluster that commits; all \
             ready {:?} after the heal, all finished {:?} after it",
            self.acknowledged,
            self.wrongly_ready,
            self.wrongly_unready,
            self.ready_after_heal,
            self.finished_after_heal
        )?;
        let mut answers: Vec<_> = self.answers.iter().collect();
        answers.sort_by_key(|((method, code), _)| (*method, i32::from(*code)));
        for ((method, code), calls) in answers {
            writeln!(f, "  {method} {code:?}: {calls}")?;
        }
        writeln!(f, "  wrong: {}", self.wrong.len())?;
        for wrong in self.wrong.iter().take(20) {
            writeln!(f, "    {wrong}")?;
        }
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    fn note_time(&self, what: &str) {
        eprintln!("{what} at {:.1} s", self.begun.elapsed().as_secs_f64());
    }

    fn wrong(&self, what: String) {
        let at = self.begun.elapsed().as_secs_f64();
        self.lock().wrong.push(format!("{at:.1} s: {what}"));
    }

    /// Takes down the answer to a call about what there is.
    fn answered<T>(&self, method: &'static str, answer: Result<T, Status>) -> Option<T> {
        let status = match answer {
            Ok(answer) => {
                *self.lock().answers.entry((method, Code::Ok)).or_default() += 1;
                return Some(answer);
            }
            Err(status) => status,
        };
        *self.lock().answers.entry((method, status.code())).or_default() += 1;
        let passes =
            matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::FailedPrecondition);
        // A client that gives up says Cancelled.
        if !passes && status.source().is_none() && status.code() != Code::Cancelled {
            self.wrong(format!("{method} {:?} {}", status.code(), status.message()));
        }
        None
    }

    /// Waits until the watches have given out all that the log has, and takes down what they lack after a while.
    async fn must_have_been_given(&self, waybill: &Deployment, cluster: &Cluster) {
        let begun = Instant::now();
        loop {
            let mut logged: HashMap<String, Vec<u64>> = HashMap::new();
            for (order_id, customer_id, revision) in log(waybill, cluster).await {
                logged.entry(customer_id).or_default().push(revision);
                logged.entry(order_id).or_default().push(revision);
            }
            let given = self.lock().given.clone();
            let nothing = Vec::new();
            let differing = given.iter().filter(|(of, given)| logged.get(*of).unwrap_or(&nothing) != *given);
            let differing: Vec<_> = differing.collect();
            if differing.is_empty() {
                return;
            }
            if begun.elapsed() > WATCH_PATIENCE {
                for (of, given) in differing {
                    let logged = logged.get(of).unwrap_or(&nothing);
                    let missed = logged.iter().filter(|revision| !given.contains(revision)).count();
                    let (has, given) = (logged.len(), given.len());
                    self.wrong(format!(
                        "the watch of {of} gave {given} updates of {has}, and missed {missed}"
                    ));
                }
                return;
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    fn given(&self, of: &str, revision: u64) {
        self.lock().given.entry(of.to_owned()).or_default().push(revision);
    }

    fn last_given(&self, of: &str) -> u64 {
        self.lock().given.entry(of.to_owned()).or_default().last().copied().unwrap_or_default()
    }

    fn any_order(&self) -> Option<Order> {
        self.lock().acknowledged.choose(&mut rand::rng()).cloned()
    }

    fn of_customer(&self, customer_id: &str) -> BTreeSet<String> {
        let seen = self.lock();
        let orders = seen.acknowledged.iter().filter(|order| order.customer_id == customer_id);
        orders.map(|order| order.order_id.clone()).collect()
    }
}

/// The events of all orders: order, customer, revision.
async fn log(waybill: &Deployment, cluster: &Cluster) -> Vec<(String, String, u64)> {
    let client = cluster.peek(waybill, CUT_OFF + 1).jetstream().await.client();
    let (mut messages, mut from, mut ends) = (Vec::new(), Revision::NONE, 0);
    // Any replica answers each request. One that lags knows of no more messages, but not every time.
    while ends < ENDS {
        let Ok(batch) = batch_from(&client, ORDERS, ALL_ORDERS, from, 256).await else { continue };
        ends = if batch.messages.is_empty() { ends + 1 } else { 0 };
        from = batch.messages.last().map_or(from, |last| Revision(last.sequence.0 + 1));
        messages.extend(batch.messages);
    }
    let events = messages.into_iter().filter_map(|Stored { subject, sequence, headers, payload }| {
        Recorded::decode(&subject, sequence, Some(&headers), payload).ok()
    });
    events.map(|event| (event.id.to_string(), event.order.customer_id, event.revision.0)).collect()
}

fn customer_id(n: usize) -> String {
    format!("customer-{n}")
}

/// A call that its client waits for only so long.
fn call<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

async fn place(clients: [Orders; 2], shared: Shared) -> JoinSet<()> {
    let mut calls = JoinSet::new();
    let mut ticks = interval(Duration::from_millis(1_000 / CREATES_PER_S));
    for n in 0_usize.. {
        ticks.tick().await;
        if shared.enough.is_cancelled() {
            break;
        }
        let (clients, shared) = (clients.clone(), shared.clone());
        calls.spawn(async move {
            let gateway = (n / CUSTOMERS) % 2;
            let client = &clients[gateway];
            let request = order_of(&customer_id(n % CUSTOMERS), &format!("r-{n}"), vec![item("widget", 1)]);
            let Ok(order) = create(client, &request).await else {
                return shared.wrong(format!("an order was refused for good: r-{n}"));
            };
            let id = order.order_id.clone();
            {
                let mut seen = shared.lock();
                seen.taken[gateway] = Some(Instant::now());
                seen.acknowledged.push(order);
            }
            if n.is_multiple_of(WATCHED) {
                let watch = watch_order(clients[(n / WATCHED) % 2].clone(), id.clone(), shared.clone());
                tokio::spawn(watch);
            }
            if n.is_multiple_of(CANCELLED) {
                let answer = timeout(CALL_TIMEOUT, cancel(client, &id)).await;
                let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("")));
                shared.answered("CancelOrder", answer);
            }
        });
    }
    calls
}

/// Reads what was acknowledged, again and again.
async fn read(mut client: Orders, shared: Shared) {
    while !shared.done.is_cancelled() {
        sleep(Duration::from_millis(random_range(5..30))).await;
        let Some(order) = shared.any_order() else { continue };
        let order_id = order.order_id;
        match random_range(0..5) {
            0 => {
                drop(shared.answered("GetOrder", client.get_order(call(GetOrderRequest { order_id })).await))
            }
            1 => {
                let answer = client
                    .list_order_events(call(ListOrderEventsRequest { order_id, ..Default::default() }))
                    .await;
                shared.answered("ListOrderEvents", answer);
            }
            2 => {
                let request = WatchOrderRequest { order_id, after_revision: order.revision };
                shared.answered("WatchOrder", client.watch_order(call(request)).await);
            }
            3 => {
                let request = CancelOrderRequest { order_id, message: String::new() };
                // Of one that has ended, most often: it is refused, and must be found.
                let ended = order.create_time.is_some_and(|time| seconds_since(time) > 3);
                if ended {
                    shared.answered("CancelOrder", client.cancel_order(call(request)).await);
                }
            }
            _ => list(&mut client, &shared, order.customer_id).await,
        }
    }
}

fn seconds_since(time: prost_types::Timestamp) -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    i64::try_from(now).unwrap() - time.seconds
}

async fn list(client: &mut Orders, shared: &Shared, customer_id: String) {
    let expected = shared.of_customer(&customer_id);
    let mut listed = BTreeSet::new();
    let mut page_token = String::new();
    loop {
        let request = ListOrdersRequest {
            customer_id: customer_id.clone(),
            page_size: PAGE_SIZE,
            page_token,
            statuses: Vec::new(),
        };
        let answer = client.list_orders(call(request)).await;
        let Some(page) = shared.answered("ListOrders", answer) else { return };
        let page = page.into_inner();
        listed.extend(page.orders.into_iter().map(|order| order.order_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let lacks = expected.difference(&listed).count();
    if lacks > 0 {
        shared.wrong(format!("ListOrders lacks {lacks} of {} orders", expected.len()));
    }
}

/// Watches a customer's orders, for ever.
async fn watch_customer(mut client: Orders, customer_id: String, shared: Shared) {
    loop {
        let after_revision = shared.last_given(&customer_id);
        let request = WatchOrdersRequest { customer_id: customer_id.clone(), after_revision };
        if let Some(stream) = shared.answered("WatchOrders", client.watch_orders(request).await) {
            let mut stream = stream.into_inner();
            loop {
                match stream.message().await {
                    Ok(Some(response)) => shared.given(&customer_id, revision(response.event)),
                    Ok(None) => break shared.wrong("WatchOrders ended".to_owned()),
                    Err(status) => {
                        shared.answered::<()>("WatchOrders", Err(status));
                        break;
                    }
                }
            }
        }
        sleep(RETRY_PAUSE).await;
    }
}

/// Watches an order until it is finished.
async fn watch_order(mut client: Orders, order_id: String, shared: Shared) {
    loop {
        let after_revision = shared.last_given(&order_id);
        let request = WatchOrderRequest { order_id: order_id.clone(), after_revision };
        if let Some(stream) = shared.answered("WatchOrder", client.watch_order(request).await) {
            let mut stream = stream.into_inner();
            loop {
                match stream.message().await {
                    Ok(Some(response)) => shared.given(&order_id, revision(response.event)),
                    Ok(None) => return,
                    Err(status) => {
                        shared.answered::<()>("WatchOrder", Err(status));
                        break;
                    }
                }
            }
        }
        sleep(RETRY_PAUSE).await;
    }
}

fn revision(event: Option<OrderEvent>) -> u64 {
    event.and_then(|event| event.order).map(|order| order.revision).unwrap_or_default()
}

/// Takes down how long a gateway says that it is ready although no order has been taken by it, and after the heal that it
/// is not although the cluster commits.
async fn follow_readiness(n: usize, ops_addr: String, shared: Shared) {
    shared.cut.cancelled().await;
    let mut unready_since = None;
    while !shared.done.is_cancelled() {
        sleep(READINESS_LOOK).await;
        let asked = Instant::now();
        let answer = timeout(Duration::from_secs(1), http_get(&ops_addr, "/readyz")).await;
        let is_ready = matches!(answer, Ok(Some((200, _))));
        let mut seen = shared.lock();
        if is_ready || !shared.healed.is_cancelled() {
            unready_since = None;
        } else if let Some(commits) = seen.commits_since[n] {
            let since = commits.max(*unready_since.get_or_insert_with(Instant::now));
            seen.wrongly_unready = seen.wrongly_unready.max(since.elapsed());
        }
        if let Some(taken) = seen.taken[n].filter(|_| is_ready) {
            seen.wrongly_ready = seen.wrongly_ready.max(asked.saturating_duration_since(taken));
        }
    }
}

/// Finds out whether the cluster commits. After a heal it may elect leaders first.
async fn follow_commits(n: usize, jetstream: jetstream::Context, shared: Shared) {
    while !shared.done.is_cancelled() {
        let publish = async {
            let mut headers = HeaderMap::new();
            headers.insert("Nats-TTL", "1s");
            jetstream.publish_with_headers(ORDER_BARRIER, headers, "".into()).await.ok()?.await.ok()
        };
        let is_committed = matches!(timeout(Duration::from_secs(1), publish).await, Ok(Some(_)));
        {
            let mut seen = shared.lock();
            seen.commits_since[n] =
                if is_committed { seen.commits_since[n].or_else(|| Some(Instant::now())) } else { None };
        }
        sleep(READINESS_LOOK).await;
    }
}
