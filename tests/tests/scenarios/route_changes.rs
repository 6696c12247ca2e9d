//! Two routes at once, and a route file that changes in the middle: each order finishes by the route that it was accepted
//! with.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::{StreamExt, stream};
use harness::{Deployment, Gateway, Options, create, eventually, item, order_of};
use proto::orders::v1::order_service_client::OrderServiceClient;
use proto::orders::v1::{CreateOrderRequest, Order, OrderStatus, Route};
use routes::Routes;
use tonic::transport::Channel;

use crate::accounting::{STOCK, ids};
use crate::books::{Problems, check_effects, check_history, check_money, check_stock, histories};
use crate::events::after;

const BEFORE: &str = "
default: short
routes:
  short: [inventory, payment, fulfilment]
  careful: [inventory, screening, payment, fulfilment]
  retired: [payment, fulfilment]
";
const AFTER: &str = "
default: careful
routes:
  short: [payment, {name: packing, compensates: true}, fulfilment]
  careful: [inventory, payment, {name: packing, compensates: true}, fulfilment]
  fresh: [inventory, {name: packing, status: FULFILLED}]
";
const STEPS: [&str; 5] = ["inventory", "screening", "payment", "packing", "fulfilment"];
const ORDERS: usize = 1_000;
const CALLS_AT_ONCE: usize = 16;
const READS_AT_ONCE: usize = 16;

/// Which file a gateway has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum File {
    Before,
    /// It is replaced: whoever answers may have read either.
    Either,
    After,
}

impl File {
    /// The routes that an order gets that asks for `name`.
    fn routes(self, name: &str) -> Vec<Option<Route>> {
        let [before, after] = [BEFORE, AFTER].map(|file| Routes::parse(file.as_bytes()).unwrap().route(name));
        match self {
            Self::Before => vec![before],
            Self::Either => vec![before, after],
            Self::After => vec![after],
        }
    }
}

/// The two gateways as clients see them.
struct Edge {
    clients: [OrderServiceClient<Channel>; 2],
    /// What each has read, as a number of [`File`].
    files: [AtomicUsize; 2],
    acknowledged: AtomicUsize,
}

impl Edge {
    fn of(gateways: [&Gateway; 2]) -> Arc<Self> {
        let clients = gateways.map(|gateway| OrderServiceClient::new(gateway.channel()));
        Arc::new(Self { clients, files: Default::default(), acknowledged: AtomicUsize::new(0) })
    }

    fn file(&self, gateway: usize) -> File {
        [File::Before, File::Either, File::After][self.files[gateway].load(Ordering::SeqCst)]
    }

    fn has_read(&self, gateway: usize, file: File) {
        self.files[gateway].store(file as usize, Ordering::SeqCst);
    }

    /// Waits until so many orders are acknowledged.
    async fn acknowledged(&self, count: usize) {
        eventually("acknowledged orders", async || {
            (self.acknowledged.load(Ordering::SeqCst) >= count).then_some(())
        })
        .await;
    }
}

struct Placed {
    request: CreateOrderRequest,
    order: Order,
    /// What the gateway that accepted it had read.
    file: File,
}

async fn place(edge: &Edge, gateway: usize, request: CreateOrderRequest) -> Placed {
    let before = edge.file(gateway);
    let order = create(&edge.clients[gateway], &request).await.unwrap();
    let file = if edge.file(gateway) == before { before } else { File::Either };
    edge.acknowledged.fetch_add(1, Ordering::SeqCst);
    Placed { request, order, file }
}

fn request(n: usize, route: &str) -> CreateOrderRequest {
    let request = order_of(&format!("customer-{}", n % 7), &format!("request-{n}"), vec![item("widget", 1)]);
    CreateOrderRequest { route: route.to_owned(), ..request }
}

#[tokio::test]
async fn orders_finish_by_their_own_route_when_the_file_changes_under_them() {
    let options = Options {
        routes: Some(BEFORE.to_owned()),
        steps: STEPS.to_vec(),
        payment_sandbox: true,
        ..Options::default()
    };
    let mut waybill = Deployment::start_with(options).await;
    let mut second = waybill.another_gateway().await;
    for step in STEPS {
        waybill.idle(step).await;
    }
    // What waits for it is on its way while the file changes.
    waybill.kill_processors("screening");
    let edge = Edge::of([&waybill.gateway, &second]);
    let retired = place(&edge, 0, request(ORDERS, "retired")).await;

    let placing = tokio::spawn({
        let edge = edge.clone();
        async move {
            let requests = (0..ORDERS).map(|n| (n % 2, request(n, ["", "short", "careful"][n % 3])));
            let calls = stream::iter(requests).map(|(gateway, request)| place(&edge, gateway, request));
            calls.buffer_unordered(CALLS_AT_ONCE).collect::<Vec<_>>().await
        }
    });
    edge.acknowledged(ORDERS / 3).await;
    waybill.define_routes(AFTER);
    edge.has_read(0, File::Either);
    assert!(waybill.gateway.process.stop().await.success());
    waybill.restart_gateway().await;
    edge.has_read(0, File::After);
    edge.acknowledged(ORDERS * 2 / 3).await;
    edge.has_read(1, File::Either);
    assert!(second.process.stop().await.success());
    second = waybill.gateway_at("gateway-2", &second.grpc_addr).await;
    edge.has_read(1, File::After);
    let mut placed = placing.await.unwrap();
    placed.push(retired);
    placed.push(place(&edge, 1, request(ORDERS + 1, "fresh")).await);

    repeat_over_the_change(&edge, &placed).await;
    let waiting = stream::iter(&placed).map(|placed| waybill.get(&placed.order.order_id));
    let waiting: Vec<_> = waiting.buffer_unordered(READS_AT_ONCE).collect().await;
    let waiting = waiting.into_iter().filter(|order| order.as_ref().unwrap().current_step == "screening");
    assert!(waiting.count() >= ORDERS / 20, "orders on their way when the file changed");
    waybill.start_processor("screening");
    check(&mut waybill, &placed).await;
    drop(second);
}

/// A repeated request gets its order, whatever the file says now.
async fn repeat_over_the_change(edge: &Edge, placed: &[Placed]) {
    let some = placed.iter().rev().enumerate().filter(|(n, _)| n % 7 < 2);
    for (n, Placed { request, order, .. }) in some {
        let again = create(&edge.clients[n % 2], request).await.unwrap();
        assert_eq!((&again.order_id, again.create_time), (&order.order_id, order.create_time));
        assert_eq!(again.route, order.route);
    }
}

async fn check(waybill: &mut Deployment, placed: &[Placed]) {
    let orders: Vec<_> = placed.iter().map(|placed| placed.order.clone()).collect();
    let ends = stream::iter(&orders).map(|order| waybill.finished(&order.order_id));
    let ends: Vec<_> = ends.buffered(READS_AT_ONCE).collect().await;
    for step in STEPS {
        waybill.idle(step).await;
    }
    let mut problems = Problems::default();
    let histories = histories(waybill, &ids(&orders)).await;
    let mut counts = BTreeMap::<_, usize>::new();
    for (Placed { request, order, file }, end) in placed.iter().zip(&ends) {
        let events = &histories[&order.order_id];
        if let Err(problem) = check_history(events) {
            problems.add(&order.order_id, problem);
        }
        if !file.routes(&request.route).contains(&order.route) {
            let asked = &request.route;
            problems.add(&order.order_id, format!("{file:?}, {asked:?}: {:?}", order.route));
        }
        let route = order.route.as_ref().unwrap();
        let gone: Vec<_> = events[1..].iter().map(|event| event.step.as_str()).collect();
        let steps: Vec<_> = route.steps.iter().map(|step| step.name.as_str()).collect();
        if gone != steps || events.iter().any(|event| after(event).route != order.route) {
            problems.add(&order.order_id, format!("route {route:?}, but {gone:?}"));
        }
        if end.status() != OrderStatus::Fulfilled {
            problems.add(&order.order_id, format!("became {end:?}"));
        }
        *counts.entry((*file, request.route.clone(), route.name.clone(), steps.join(" "))).or_default() += 1;
    }
    for (what, count) in &counts {
        eprintln!("{count:>4} {what:?}");
    }
    let of = |file| counts.iter().filter(|(what, _)| what.0 == file).map(|(_, count)| count).sum::<usize>();
    assert!(of(File::Before) >= ORDERS / 5 && of(File::After) >= ORDERS / 5, "{counts:?}");
    assert_eq!(waybill.histories().await.len(), placed.len());
    let accounts = waybill.sandbox().accounts();
    let totals = check_money(&ends, &accounts, &mut problems);
    check_stock(waybill, &[("widget", STOCK)], &totals, &mut problems).await;
    check_effects(waybill, &ends, &mut problems).await;
    problems.none(waybill, &histories);
}
