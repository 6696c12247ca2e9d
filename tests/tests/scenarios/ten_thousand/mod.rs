//! Thousands of orders, of which some are poison, some are declined and some are cancelled, and an outage of the payment
//! service in the middle of it: each ends as it should, and what became of them is printed.

mod outcome;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use backbone::log::ids::{CustomerKey, OrderId, OrderKey};
use backbone::log::subjects::{self, EventKind};
use futures::{StreamExt, stream};
use harness::{Deployment, Options, cancel, create, eventually, item, order_of, randomness};
use processor::inventory::stock_key;
use proto::operations::v1::DeadLetterReason;
use proto::orders::v1::order_service_client::OrderServiceClient;
use proto::orders::v1::{CreateOrderRequest, Order, OrderStatus};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tonic::Status;
use tonic::transport::Channel;

use crate::accounting::STOCK;

/// Orders placed side by side.
const CALLS_AT_ONCE: usize = 32;
const READS_AT_ONCE: usize = 16;
/// Longest time after which somebody cancels.
const CANCEL_MAX: Duration = Duration::from_secs(10);
const STEPS: [&str; 3] = ["inventory", "payment", "fulfilment"];
const REPLICAS: usize = 2;
const SKUS: [(&str, u64); 2] = [("widget", STOCK), ("sprocket", STOCK)];
/// A SKU whose record in the bucket is damaged.
const DAMAGED: &str = "gadget";

/// What there is to one of the ten thousand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Good,
    Cancelled,
    Declined,
    /// Wants some of the SKU whose record is damaged.
    Damaged,
    /// Of a customer for whom the payment service answers nonsense.
    Nonsense,
    /// A message on a subject of the log that does not decode, with the step that reads it.
    Undecodable(EventKind),
}

impl Kind {
    /// 5 % poison, 10 % declines, 10 % cancels.
    fn of(permille: usize) -> Self {
        match permille {
            0..20 => Self::Damaged,
            20..40 => Self::Nonsense,
            40..44 => Self::Undecodable(EventKind::Created),
            44..47 => Self::Undecodable(EventKind::Reserved),
            47..50 => Self::Undecodable(EventKind::Paid),
            50..150 => Self::Declined,
            150..250 => Self::Cancelled,
            _ => Self::Good,
        }
    }

    fn request(self, n: usize, random: &mut StdRng) -> CreateOrderRequest {
        let customer = match self {
            Self::Declined => "declined",
            Self::Nonsense => "nonsense",
            Self::Good | Self::Cancelled | Self::Damaged | Self::Undecodable(_) => "customer",
        };
        let customer = format!("{customer}-{}", n % 100);
        let mut items =
            vec![item(if n.is_multiple_of(2) { "widget" } else { "sprocket" }, random.random_range(1..5))];
        if self == Self::Damaged {
            items.push(item(DAMAGED, 1));
        }
        order_of(&customer, &format!("r-{n}"), items)
    }

    /// The step that gives it up, and why.
    fn poison(self) -> Option<(&'static str, DeadLetterReason)> {
        use DeadLetterReason::{RetriesExhausted, Undecodable};
        match self {
            Self::Damaged => Some(("inventory", RetriesExhausted)),
            Self::Nonsense => Some(("payment", RetriesExhausted)),
            Self::Undecodable(EventKind::Created) => Some(("inventory", Undecodable)),
            Self::Undecodable(EventKind::Reserved) => Some(("payment", Undecodable)),
            Self::Undecodable(_) => Some(("fulfilment", Undecodable)),
            Self::Good | Self::Cancelled | Self::Declined => None,
        }
    }

    /// What has to become of it.
    fn end(self, cancelled: Option<&Result<Order, Status>>) -> (OrderStatus, &'static str) {
        match (self, cancelled) {
            (_, Some(Ok(_))) => (OrderStatus::Cancelled, "CLIENT_REQUEST"),
            (Self::Good | Self::Cancelled, _) => (OrderStatus::Fulfilled, ""),
            (Self::Declined, _) => (OrderStatus::Rejected, "CARD_DECLINED"),
            (Self::Damaged | Self::Nonsense | Self::Undecodable(_), _) => {
                (OrderStatus::Failed, "RETRIES_EXHAUSTED")
            }
        }
    }
}

/// One of the ten thousand that is an order, and what its client was told.
struct Placed {
    kind: Kind,
    order: Order,
    cancelled: Option<Result<Order, Status>>,
}

/// The clients, who all go on while the test breaks things.
struct Clients {
    client: OrderServiceClient<Channel>,
    places: Arc<Semaphore>,
    random: StdRng,
    clients: JoinSet<Placed>,
    /// Sequences of the messages that do not decode.
    undecodable: HashMap<u64, Kind>,
}

impl Clients {
    /// Begins with these, spread over some time.
    async fn begin(&mut self, waybill: &Deployment, kinds: &[(usize, Kind)], over: Duration) {
        let (start, jetstream) = (Instant::now(), waybill.jetstream().await);
        for (i, (n, kind)) in kinds.iter().enumerate() {
            let at = start + over.mul_f64(i as f64 / kinds.len() as f64);
            if let Kind::Undecodable(event) = kind {
                // Some look like an order's event, and some do not.
                let customer = CustomerKey::of("", "junk");
                let (step, _) = kind.poison().expect("a step gives it up");
                let subject = match n % 2 {
                    0 => subjects::event(*event, &OrderId { customer, order: OrderKey::unique() }, step),
                    _ => format!("ORDER.junk.junk.junk.{}.{step}", event.as_str()),
                };
                let ack = jetstream.publish(subject, format!("junk {n}").into()).await.unwrap();
                self.undecodable.insert(ack.await.unwrap().sequence, *kind);
                continue;
            }
            let request = kind.request(*n, &mut self.random);
            let cancel_after = (*kind == Kind::Cancelled)
                .then(|| CANCEL_MAX.mul_f64(self.random.random_range(0.0f64..1.0).powi(6)));
            let (client, places, kind) = (self.client.clone(), self.places.clone(), *kind);
            self.clients.spawn(async move {
                sleep_until(at).await;
                let place = places.acquire().await.unwrap();
                let order = create(&client, &request).await.unwrap();
                drop(place);
                let mut cancelled = None;
                if let Some(pause) = cancel_after {
                    sleep(pause).await;
                    cancelled = Some(cancel(&client, &order.order_id).await);
                }
                Placed { kind, order, cancelled }
            });
        }
    }

    /// Waits until no more than so many of them have anything left to do.
    async fn left(&mut self, placed: &mut Vec<Placed>, most: usize) {
        while self.clients.len() > most {
            placed.push(self.clients.join_next().await.unwrap().unwrap());
        }
    }
}

#[tokio::test]
#[ignore = "takes some minutes: make soak"]
async fn ten_thousand_orders_end_as_they_should_with_a_minute_without_payments_in_the_middle() {
    end_as_they_should(10_000, Duration::from_secs(60)).await;
}

#[tokio::test]
async fn a_thousand_orders_end_as_they_should_with_some_seconds_without_payments_in_the_middle() {
    end_as_they_should(1_000, Duration::from_secs(10)).await;
}

async fn end_as_they_should(orders: usize, outage: Duration) {
    let mut random = randomness();
    let mut kinds: Vec<_> = (0..orders).map(|n| Kind::of(n % 1000)).collect();
    kinds.shuffle(&mut random);
    let kinds: Vec<_> = kinds.into_iter().enumerate().collect();
    let mut waybill = start().await;
    let start = Instant::now();

    let mut clients = Clients {
        client: waybill.client().await,
        places: Arc::new(Semaphore::new(CALLS_AT_ONCE)),
        random,
        clients: JoinSet::new(),
        undecodable: HashMap::new(),
    };
    let mut placed = Vec::new();
    let (before, rest) = kinds.split_at(orders * 2 / 5);
    let (during, later) = rest.split_at(orders / 5);
    clients.begin(&waybill, before, Duration::ZERO).await;
    clients.left(&mut placed, before.len() / 4).await;
    waybill.sandbox().process.kill();
    let back = Instant::now() + outage;
    eprintln!("{:?}: the payment service is killed", start.elapsed());
    clients.begin(&waybill, during, outage).await;
    sleep_until(back).await;
    waybill.sandbox().restart().await;
    eprintln!("{:?}: it is started again", start.elapsed());
    clients.begin(&waybill, later, Duration::ZERO).await;
    clients.left(&mut placed, 0).await;
    eprintln!("{:?}: every client is answered", start.elapsed());

    let ends = ends(&waybill, &placed).await;
    eprintln!("{:?}: every order has come to its end", start.elapsed());
    for step in STEPS {
        waybill.idle(step).await;
    }
    assert_eq!(placed.len() + clients.undecodable.len(), orders);
    outcome::check(&mut waybill, &placed, &ends, &clients.undecodable).await;
}

async fn start() -> Deployment {
    let mut stock = SKUS.to_vec();
    stock.push((DAMAGED, STOCK));
    let mut options = Options { stock, replicas: REPLICAS, payment_sandbox: true, ..Options::default() };
    options.processors.push(("MAX_ATTEMPTS", "3".to_owned()));
    let waybill = Deployment::start_with(options).await;
    for step in STEPS {
        waybill.idle(step).await;
    }
    eventually("damage", async || {
        waybill.inventory().await.put(stock_key(DAMAGED), "damaged".into()).await.ok()
    })
    .await;
    waybill
}

/// Each order as it stands in the end, in the order in which they were placed.
async fn ends(waybill: &Deployment, placed: &[Placed]) -> Vec<Order> {
    let ends = stream::iter(placed).map(async |Placed { kind, order, .. }| match kind.poison() {
        Some(_) => waybill.reached(&order.order_id, OrderStatus::Failed).await,
        None => waybill.finished(&order.order_id).await,
    });
    ends.buffered(READS_AT_ONCE).collect().await
}
