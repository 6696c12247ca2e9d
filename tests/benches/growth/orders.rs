//! The orders of the whole run, by their numbers, and whose they are.

use harness::{Deployment, create, item, order_of};
use proto::orders::v1::order_service_client::OrderServiceClient;
use proto::orders::v1::{CreateOrderRequest, OrderItem};
use tonic::transport::Channel;

/// One unit of each in every order.
pub(crate) const SKUS: [&str; 2] = ["widget", "gadget"];
/// Orders of one customer.
pub(crate) const ORDERS_EACH: u64 = 20;
/// One order of so many is kept for reads.
const KEEP_EVERY: u64 = 10;
const CONNECTIONS: u64 = 4;

pub(crate) type Client = OrderServiceClient<Channel>;

/// The orders that were placed.
pub(crate) struct Orders {
    clients: Vec<Client>,
    customers: Customers,
    placed: u64,
    kept: Vec<Kept>,
}

/// An order to read.
#[derive(Clone)]
pub(crate) struct Kept {
    pub(crate) number: u64,
    pub(crate) order_id: String,
}

impl Orders {
    pub(crate) fn new(waybill: &Deployment, sizes: &[u64]) -> Self {
        let clients = (0..CONNECTIONS).map(|_| OrderServiceClient::new(waybill.channel())).collect();
        Self { clients, customers: Customers { sizes: sizes.to_owned() }, placed: 0, kept: Vec::new() }
    }

    pub(crate) fn placed(&self) -> u64 {
        self.placed
    }

    /// Takes the numbers of the next orders, which the caller places.
    pub(crate) fn take(&mut self, count: u64) -> std::ops::Range<u64> {
        let first = self.placed;
        self.placed += count;
        first..self.placed
    }

    pub(crate) fn client(&self, number: u64) -> Client {
        self.clients[(number % CONNECTIONS) as usize].clone()
    }

    pub(crate) fn customers(&self) -> &Customers {
        &self.customers
    }

    /// Whether to keep an order for reads.
    pub(crate) fn is_kept(number: u64) -> bool {
        number.is_multiple_of(KEEP_EVERY)
    }

    pub(crate) fn keep(&mut self, kept: impl IntoIterator<Item = Kept>) {
        self.kept.extend(kept);
    }

    pub(crate) fn kept(&self) -> &[Kept] {
        &self.kept
    }

    pub(crate) async fn place_next(&mut self) -> String {
        let number = self.take(1).start;
        place(&self.client(number), self.customers.request(number)).await
    }
}

/// Assigns orders to customers. Each stage has its own customers with 20 orders each, spread over all of that stage. So some
/// have only old orders, and most have orders from all over the log.
#[derive(Clone)]
pub(crate) struct Customers {
    /// How many orders the log has at the end of each stage.
    sizes: Vec<u64>,
}

impl Customers {
    /// Whose order it is.
    pub(crate) fn of(&self, number: u64) -> String {
        let ended = self.sizes.iter().filter(|size| **size <= number).count();
        let stage = ended.min(self.sizes.len() - 1);
        let first = stage.checked_sub(1).map_or(0, |earlier| self.sizes[earlier]);
        let customers = (self.sizes[stage] - first).div_ceil(ORDERS_EACH);
        format!("customer-{stage}-{}", number % customers)
    }

    pub(crate) fn request(&self, number: u64) -> CreateOrderRequest {
        let items: [OrderItem; SKUS.len()] = SKUS.map(|sku| item(sku, 1));
        order_of(&self.of(number), &format!("growth-{number}"), items.into())
    }
}

/// Places an order, and gives its id.
pub(crate) async fn place(client: &Client, request: CreateOrderRequest) -> String {
    create(client, &request).await.expect("order accepted").order_id
}
