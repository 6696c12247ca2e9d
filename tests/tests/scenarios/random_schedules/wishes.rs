//! What clients want of their orders, and what may come of it.

use std::time::Duration;

use harness::{cancel, create, item, order_of};
use proto::orders::v1::order_service_client::OrderServiceClient;
use proto::orders::v1::{CreateOrderRequest, Order, OrderStatus};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tokio::time::{Instant, sleep, sleep_until};
use tonic::Status;
use tonic::transport::Channel;

use super::{DAMAGED, SCARCE, TROUBLE, UNKNOWN};

const ORDERS: usize = 400;

/// What a client wants.
#[derive(Debug)]
pub(super) struct Wish {
    /// When it orders.
    at: Duration,
    request: CreateOrderRequest,
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

    /// Whether an order may end so that nobody has cancelled.
    pub(super) fn may_end(&self, end: &Order) -> bool {
        let declined = self.request.customer_id.starts_with("declined");
        match (end.status(), end.reason.as_str()) {
            (OrderStatus::Fulfilled, "") => !declined && !self.wants(UNKNOWN),
            (OrderStatus::Rejected, "CARD_DECLINED") => declined && !self.wants(UNKNOWN),
            (OrderStatus::Rejected, "OUT_OF_STOCK") => self.wants(UNKNOWN) || self.wants(SCARCE),
            _ => false,
        }
    }
}

pub(super) fn draw_wishes(random: &mut StdRng) -> Vec<Wish> {
    let customers = ["good", "good", "good", "good", "declined", "slow", "lost", "away", "confused"];
    let skus = ["widget", "widget", "widget", "widget", DAMAGED, DAMAGED, SCARCE];
    let mut wishes: Vec<_> = (0..ORDERS)
        .map(|n| {
            let customer = format!("{}-{}", customers.choose(random).unwrap(), random.random_range(0..2));
            let lines = random.random_range(1..=3);
            let items = (0..lines).map(|_| item(skus.choose(random).unwrap(), random.random_range(1..=3)));
            let mut items: Vec<_> = items.collect();
            items.extend(random.random_bool(0.04).then(|| item(UNKNOWN, 1)));
            let request = order_of(&customer, &format!("r-{n}"), items);
            let cancel = random.random_bool(0.4).then(|| pause(random, Duration::from_secs(5)));
            let repeat = random.random_bool(0.2).then(|| pause(random, Duration::from_secs(1)));
            Wish { at: random.random_range(Duration::ZERO..TROUBLE), request, cancel, repeat }
        })
        .collect();
    wishes.sort_by_key(|wish| wish.at);
    wishes
}

/// Short more often than long.
fn pause(random: &mut StdRng, longest: Duration) -> Duration {
    longest.mul_f64(random.random_range(0.0f64..1.0).powi(3))
}
