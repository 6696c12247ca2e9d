//! What a client does: orders, reads, watches.

use std::collections::HashMap;
use std::time::Duration;

use futures::{StreamExt, stream};
use proto::orders::v1::order_service_client::OrderServiceClient;
use proto::orders::v1::{
    CancelOrderRequest, CreateOrderRequest, GetOrderRequest, Money, Order, OrderEvent, OrderItem,
    OrderStatus, PostalAddress, Route, WatchOrderRequest, WatchOrderResponse,
};
use tokio::time::timeout;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, ClientTlsConfig};
use tonic::{Request, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::deployment::{Deployment, Gateway};
use crate::http::http_get;
use crate::{PATIENCE, Scrape, eventually};

/// Orders read side by side.
const READS_AT_ONCE: usize = 16;

impl Gateway {
    /// A channel, which connects when it is used, and again when the gateway is back.
    pub fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.grpc_addr)).expect("address");
        endpoint.connect_timeout(Duration::from_secs(5)).connect_lazy()
    }

    /// A channel with TLS, which connects when it is used.
    pub fn secure_channel(&self, tls: ClientTlsConfig) -> Channel {
        let endpoint = Channel::from_shared(format!("https://{}", self.grpc_addr)).expect("address");
        endpoint.connect_timeout(Duration::from_secs(5)).tls_config(tls).expect("TLS").connect_lazy()
    }

    /// What it answers to a health check, if it answers.
    pub async fn health(&self, service: &str) -> Option<ServingStatus> {
        health(self.channel(), service).await
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&self) {
        eventually("readiness", async || (self.http("/readyz").await.0 == 200).then_some(())).await;
    }

    /// Status and body of a path on its HTTP port.
    pub async fn http(&self, path: &str) -> (u16, String) {
        http_get(&self.ops_addr, path).await.unwrap_or_default()
    }
}

impl Deployment {
    /// What the gateway says at /metrics.
    pub async fn scrape(&self) -> Scrape {
        Scrape::read(&self.gateway.http("/metrics").await.1)
    }

    /// What the process of `step` that was started last says at /metrics.
    pub async fn scrape_of(&mut self, step: &str) -> Scrape {
        let (_, text) = self.http_of(step, "/metrics").await;
        Scrape::read(&text)
    }

    /// Status and body of a path on the HTTP port of the process of `step` that was started last.
    pub async fn http_of(&mut self, step: &str, path: &str) -> (u16, String) {
        let addr = self.processor(step).ops_addr().await;
        http_get(&addr, path).await.unwrap_or_default()
    }

    /// Status and body of a path on the gateway's HTTP port.
    pub async fn http(&self, path: &str) -> (u16, String) {
        self.gateway.http(path).await
    }

    /// A channel to the gateway, which connects when it is used.
    pub fn channel(&self) -> Channel {
        self.gateway.channel()
    }

    /// A client of the gateway.
    pub async fn client(&self) -> OrderServiceClient<Channel> {
        OrderServiceClient::new(self.channel())
    }

    /// Places an order by one call.
    pub async fn place(&self, request: CreateOrderRequest) -> Result<Order, Status> {
        let response = self.client().await.create_order(request).await?;
        Ok(response.into_inner().order.unwrap_or_default())
    }

    /// Reads an order by one call.
    pub async fn get(&self, order_id: &str) -> Result<Order, Status> {
        let request = GetOrderRequest { order_id: order_id.to_owned() };
        let response = self.client().await.get_order(request).await?;
        Ok(response.into_inner().order.unwrap_or_default())
    }

    /// Cancels an order by one call.
    pub async fn cancel(&self, order_id: &str) -> Result<Order, Status> {
        let request = CancelOrderRequest { order_id: order_id.to_owned(), message: "no longer".to_owned() };
        let response = self.client().await.cancel_order(request).await?;
        Ok(response.into_inner().order.unwrap_or_default())
    }

    /// Waits until the order is finished, and gives it.
    pub async fn finished(&self, order_id: &str) -> Order {
        let mut client = self.client().await;
        eventually(&format!("end of order {order_id}"), async || {
            let request = GetOrderRequest { order_id: order_id.to_owned() };
            let order = client.get_order(request).await.ok()?.into_inner().order?;
            backbone::log::lifecycle::is_finished(&order).then_some(order)
        })
        .await
    }

    /// Waits until the order has the status, and gives it.
    pub async fn reached(&self, order_id: &str, status: OrderStatus) -> Order {
        eventually(&format!("{} of order {order_id}", status.as_str_name()), async || {
            self.get(order_id).await.ok().filter(|order| order.status() == status)
        })
        .await
    }

    /// How many of the orders ended with each status.
    pub async fn statuses(&self, order_ids: &[String]) -> HashMap<OrderStatus, usize> {
        let ends = stream::iter(order_ids).map(|order_id| self.finished(order_id));
        let ends: Vec<_> = ends.buffer_unordered(READS_AT_ONCE).collect().await;
        let mut statuses = HashMap::new();
        for order in ends {
            *statuses.entry(order.status()).or_default() += 1;
        }
        statuses
    }

    /// Opens a watch.
    pub async fn watch(&self, order_id: &str, after_revision: u64) -> Result<Watcher, Status> {
        let request = WatchOrderRequest { order_id: order_id.to_owned(), after_revision };
        let stream = self.client().await.watch_order(request).await?.into_inner();
        Ok(Watcher { stream })
    }
}

/// What the server at the end of a channel answers to a health check, if it answers.
pub async fn health(channel: Channel, service: &str) -> Option<ServingStatus> {
    let request = HealthCheckRequest { service: service.to_owned() };
    let response = HealthClient::new(channel).check(request).await.ok()?;
    Some(response.into_inner().status())
}

/// A caller that shows a credential with every call: none, or one in the metadata.
#[derive(Clone, Debug, Default)]
pub struct Shows(Option<(&'static str, String)>);

impl Shows {
    /// An API key.
    pub fn key(key: &str) -> Self {
        Self(Some(("x-api-key", key.to_owned())))
    }

    /// A token.
    pub fn token(token: &str) -> Self {
        Self(Some(("authorization", format!("Bearer {token}"))))
    }

    /// A client that shows it on a channel.
    pub fn on(self, channel: Channel) -> OrderServiceClient<InterceptedService<Channel, Self>> {
        OrderServiceClient::with_interceptor(channel, self)
    }
}

impl Interceptor for Shows {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some((name, value)) = &self.0 {
            request.metadata_mut().insert(*name, value.parse().expect("metadata"));
        }
        Ok(request)
    }
}

/// An open watch of one order.
#[derive(Debug)]
pub struct Watcher {
    stream: Streaming<WatchOrderResponse>,
}

impl Watcher {
    /// The next event; `None` when the stream ended with OK.
    pub async fn next(&mut self) -> Result<Option<OrderEvent>, Status> {
        let message = timeout(PATIENCE, self.stream.message()).await.expect("an event, or the end");
        Ok(message?.map(|response| response.event.unwrap_or_default()))
    }

    /// The next event of a stream that has to go on.
    pub async fn event(&mut self) -> OrderEvent {
        self.next().await.expect("open stream").expect("a further event")
    }

    /// Every further event until the stream ended with OK.
    pub async fn rest(mut self) -> Vec<OrderEvent> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await.expect("an end with OK") {
            events.push(event);
        }
        events
    }
}

/// One item at a price of 3.50 EUR.
pub fn item(sku: &str, quantity: i32) -> OrderItem {
    let unit_price = Some(Money { currency_code: "EUR".to_owned(), minor_units: 350 });
    OrderItem { sku: sku.to_owned(), quantity, unit_price, ..OrderItem::default() }
}

/// A request for `items`, safe to retry under `request_id`.
pub fn order_of(customer_id: &str, request_id: &str, items: Vec<OrderItem>) -> CreateOrderRequest {
    let (request_id, customer_id) = (request_id.to_owned(), customer_id.to_owned());
    CreateOrderRequest { request_id, customer_id, items, ..CreateOrderRequest::default() }
}

/// A request with a value in every field that a client may leave out. Each text is unlike any other that Waybill writes.
pub fn full_order_of(customer_id: &str, request_id: &str, items: Vec<OrderItem>) -> CreateOrderRequest {
    let text = str::to_owned;
    let mut request = order_of(customer_id, request_id, items);
    for item in &mut request.items {
        item.name = text("Guide to the Galaxy, leather-bound");
        item.metadata = [(text("engraving"), text("dont-panic-in-large-letters"))].into();
    }
    CreateOrderRequest {
        metadata: [(text("campaign"), text("restaurant-at-the-end"))].into(),
        shipping_address: Some(PostalAddress {
            region_code: text("GB"),
            language_code: text("en"),
            postal_code: text("CT1-42"),
            sorting_code: text("CEDEX-42"),
            administrative_area: text("Cottingshire"),
            locality: text("Cottington"),
            sublocality: text("Bypassfield"),
            address_lines: vec![text("155 Country Lane of the Dents")],
            recipients: vec![text("Arthur Philip Dent")],
            organization: text("Megadodo Publications"),
        }),
        payment_method: text(PAYMENT_METHOD),
        note: text("beware of the leopard"),
        reference: text("PO-towel-4711"),
        ..request
    }
}

/// What [`full_order_of`] is paid with.
pub const PAYMENT_METHOD: &str = "tok_sirius-cybernetics-4242";

/// The texts of [`full_order_of`] that tell about people, and nothing else contains.
pub const PERSONAL: [&str; 14] = [
    PAYMENT_METHOD,
    "leather-bound",
    "engraving",
    "dont-panic",
    "campaign",
    "restaurant-at-the-end",
    "CT1-42",
    "CEDEX-42",
    "Cottingshire",
    "Bypassfield",
    "Country Lane",
    "Philip Dent",
    "beware of the leopard",
    "PO-towel-4711",
];

/// The route of orders that name none, at a gateway without a route file.
pub fn default_route() -> Route {
    routes::Routes::default().route("").expect("a default route")
}
