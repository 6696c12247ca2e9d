//! What clients want of their orders, and what may come of it.

use std::time::Duration;

use harness::test_steps::{REFUSED, REFUSED_REASON, TEST_STEPS};
use harness::{cancel, create, item, order_of};
use proto::orders::v1::order_service_client::OrderServiceClient;
use proto::orders::v1::{CreateOrderRequest, Order, OrderStatus, Route};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tokio::time::{Instant, sleep, sleep_until};
use tonic::Status;
use tonic::transport::Channel;

use super::random_routes::RandomRoutes;
use super::{DAMAGED, SCARCE, TROUBLE, UNKNOWN};

const ORDERS: usize = 400;

/// What a client wants.
#[derive(Debug)]
pub(super) struct Wish {
    /// When it orders.
    at: Duration,
    request: CreateOrderRequest,
    /// The route that its order has to take.
    pub(super) route: Route,
    /// How long after the answer it cancels.
    cancel: Option<Duration>,
    /// How long after that it repeats its first request.
    repeat: Option<Duration>,
}

/// What it was told.
pub(super) struct Placed {
    pub(super) order: Order,
    pub(super) cancelled: Option<Result<Order, Status>>,
}

impl Wish {
    pub(super) async fn carry_out(&self, client: OrderServiceClient<Channel>, start: Instant) -> Placed {
        sleep_until(start + self.at).await;
        let order = create(&client, &self.request).await.unwrap();
        let mut cancelled = None;
        if let Some(pause) = self.cancel {
            sleep(pause).await;
            cancelled = Some(cancel(&client, &order.order_id).await);
        }
        if let Some(pause) = self.repeat {
            sleep(pause).await;
            let again = create(&client, &self.request).await.unwrap();
            assert_eq!((&again.order_id, again.create_time), (&order.order_id, order.create_time));
        }
        Placed { order, cancelled }
    }

    fn wants(&self, sku: &str) -> bool {
        self.request.items.iter().any(|item| item.sku == sku)
    }

    /// Whether an order may end so that nobody has cancelled. The first step of its route that rejects it decides.
    pub(super) fn may_end(&self, end: &Order) -> bool {
        let is_rejected = |reason| end.status() == OrderStatus::Rejected && end.reason == reason;
        let customer = &self.request.customer_id;
        for step in &self.route.steps {
            match step.name.as_str() {
                "inventory" if self.wants(UNKNOWN) => return is_rejected("OUT_OF_STOCK"),
                "inventory" if self.wants(SCARCE) && is_rejected("OUT_OF_STOCK") => return true,
                "payment" if customer.starts_with("declined") => return is_rejected("CARD_DECLINED"),
                name if TEST_STEPS.contains(&name) && customer.starts_with(REFUSED) => {
                    return is_rejected(REFUSED_REASON);
                }
                _ => {}
            }
        }
        end.status() == OrderStatus::Fulfilled && end.reason.is_empty()
    }
}

pub(super) fn draw_wishes(random: &mut StdRng, routes: &RandomRoutes) -> Vec<Wish> {
    let customers = ["good", "good", "good", "good", "declined", REFUSED, "slow", "lost", "away", "confused"];
    let skus = ["widget", "widget", "widget", "widget", DAMAGED, DAMAGED, SCARCE];
    let mut wishes: Vec<_> = (0..ORDERS)
        .map(|n| {
            let customer = format!("{}-{}", customers.choose(random).unwrap(), random.random_range(0..2));
            let lines = random.random_range(1..=3);
            let items = (0..lines).map(|_| item(skus.choose(random).unwrap(), random.random_range(1..=3)));
            let mut items: Vec<_> = items.collect();
            items.extend(random.random_bool(0.04).then(|| item(UNKNOWN, 1)));
            let (name, route) = routes.choose(random);
            let request = order_of(&customer, &format!("r-{n}"), items);
            let request = CreateOrderRequest { route: name, ..request };
            let cancel = random.random_bool(0.4).then(|| pause(random, Duration::from_secs(5)));
            let repeat = random.random_bool(0.2).then(|| pause(random, Duration::from_secs(1)));
            Wish { at: random.random_range(Duration::ZERO..TROUBLE), request, route, cancel, repeat }
        })
        .collect();
    wishes.sort_by_key(|wish| wish.at);
    wishes
}

/// Short more often than long.
fn pause(random: &mut StdRng, longest: Duration) -> Duration {
    longest.mul_f64(random.random_range(0.0f64..1.0).powi(3))
}
