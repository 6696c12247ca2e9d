//! A gateway that speaks the real protocol and answers as the test's script says.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures::Stream;
use futures::stream::{self, StreamExt};
use proto::orders::v1::order_service_server::{OrderService, OrderServiceServer};
use proto::orders::v1::{
    CancelOrderRequest, CancelOrderResponse, CreateOrderRequest, CreateOrderResponse, GetOrderRequest,
    GetOrderResponse, ListOrderEventsRequest, ListOrderEventsResponse, ListOrdersRequest, ListOrdersResponse,
    Order, OrderEvent, OrderStatus, WatchOrderRequest, WatchOrderResponse, WatchOrdersRequest,
    WatchOrdersResponse,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

type Answers<T> = Box<dyn Fn(&T, usize) -> Result<Order, Status> + Send + Sync>;
type Pages = Box<dyn Fn(&ListOrdersRequest, usize) -> ListOrdersResponse + Send + Sync>;
type Watching = Box<dyn Fn(&WatchOrderRequest, usize) -> Vec<Result<Order, Status>> + Send + Sync>;

/// What the shop does. Each script gets the request and how many came before it.
pub(crate) struct Script {
    pub(crate) create: Answers<CreateOrderRequest>,
    pub(crate) get: Answers<GetOrderRequest>,
    pub(crate) cancel: Answers<CancelOrderRequest>,
    pub(crate) list: Pages,
    /// The events of every order.
    pub(crate) events: Vec<OrderEvent>,
    /// What the stream delivers. If the last is an order that is not fulfilled, the stream stays open after it.
    pub(crate) watch: Watching,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            create: Box::new(|_, _| Err(Status::unimplemented("create"))),
            get: Box::new(|_, _| Err(Status::unimplemented("get"))),
            cancel: Box::new(|_, _| Err(Status::unimplemented("cancel"))),
            list: Box::new(|_, _| ListOrdersResponse::default()),
            events: Vec::new(),
            watch: Box::new(|_, _| Vec::new()),
        }
    }
}

/// The requests that came.
#[derive(Clone, Default)]
pub(crate) struct Seen {
    pub(crate) creates: Arc<Mutex<Vec<CreateOrderRequest>>>,
    pub(crate) gets: Arc<Mutex<Vec<GetOrderRequest>>>,
    pub(crate) cancels: Arc<Mutex<Vec<CancelOrderRequest>>>,
    pub(crate) lists: Arc<Mutex<Vec<ListOrdersRequest>>>,
    pub(crate) watches: Arc<Mutex<Vec<WatchOrderRequest>>>,
    /// The API key or token of each call; empty without one.
    pub(crate) credentials: Arc<Mutex<Vec<String>>>,
}

/// Opens the shop on a free port; it closes with the test's runtime.
pub(crate) async fn open(script: Script) -> (SocketAddr, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let seen = Seen::default();
    let (_, health) = tonic_health::server::health_reporter();
    let credentials = seen.credentials.clone();
    let shop = OrderServiceServer::with_interceptor(
        Shop { script, seen: seen.clone() },
        move |request: Request<()>| {
            let metadata = request.metadata();
            let credential = metadata.get("x-api-key").or_else(|| metadata.get("authorization"));
            note(&credentials, credential.map_or("", |value| value.to_str().unwrap()).to_owned());
            Ok(request)
        },
    );
    let serving = Server::builder()
        .add_service(health)
        .add_service(shop)
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(serving);
    (addr, seen)
}

/// An order as it stands after some event.
pub(crate) fn order(status: OrderStatus, revision: u64) -> Order {
    Order { order_id: "customer-order".to_owned(), status: status.into(), revision, ..Order::default() }
}

struct Shop {
    script: Script,
    seen: Seen,
}

/// Takes down a request, and tells how many came before it.
fn note<T>(seen: &Mutex<Vec<T>>, request: T) -> usize {
    let mut seen = seen.lock().unwrap();
    seen.push(request);
    seen.len() - 1
}

#[tonic::async_trait]
impl OrderService for Shop {
    async fn create_order(
        &self,
        request: Request<CreateOrderRequest>,
    ) -> Result<Response<CreateOrderResponse>, Status> {
        let request = request.into_inner();
        let before = note(&self.seen.creates, request.clone());
        let order = (self.script.create)(&request, before)?;
        Ok(Response::new(CreateOrderResponse { order: Some(order) }))
    }

    async fn get_order(
        &self,
        request: Request<GetOrderRequest>,
    ) -> Result<Response<GetOrderResponse>, Status> {
        let request = request.into_inner();
        let before = note(&self.seen.gets, request.clone());
        let order = (self.script.get)(&request, before)?;
        Ok(Response::new(GetOrderResponse { order: Some(order) }))
    }

    type WatchOrderStream = Pin<Box<dyn Stream<Item = Result<WatchOrderResponse, Status>> + Send>>;

    async fn watch_order(
        &self,
        request: Request<WatchOrderRequest>,
    ) -> Result<Response<Self::WatchOrderStream>, Status> {
        let request = request.into_inner();
        let before = note(&self.seen.watches, request.clone());
        let orders = (self.script.watch)(&request, before);
        let stays_open = matches!(orders.last(), Some(Ok(order)) if order.status() != OrderStatus::Fulfilled);
        let updates = stream::iter(orders).map(|order| {
            let event = OrderEvent { order: Some(order?), ..OrderEvent::default() };
            Ok(WatchOrderResponse { event: Some(event) })
        });
        Ok(Response::new(if stays_open {
            Box::pin(updates.chain(stream::pending()))
        } else {
            Box::pin(updates)
        }))
    }

    async fn list_orders(
        &self,
        request: Request<ListOrdersRequest>,
    ) -> Result<Response<ListOrdersResponse>, Status> {
        let request = request.into_inner();
        let before = note(&self.seen.lists, request.clone());
        Ok(Response::new((self.script.list)(&request, before)))
    }

    async fn cancel_order(
        &self,
        request: Request<CancelOrderRequest>,
    ) -> Result<Response<CancelOrderResponse>, Status> {
        let request = request.into_inner();
        let before = note(&self.seen.cancels, request.clone());
        let order = (self.script.cancel)(&request, before)?;
        Ok(Response::new(CancelOrderResponse { order: Some(order) }))
    }

    async fn list_order_events(
        &self,
        request: Request<ListOrderEventsRequest>,
    ) -> Result<Response<ListOrderEventsResponse>, Status> {
        // Pages of one event each.
        let at: usize = request.into_inner().page_token.parse().unwrap_or(0);
        let events: Vec<_> = self.script.events.get(at).cloned().into_iter().collect();
        let next = (at + 1 < self.script.events.len()).then(|| (at + 1).to_string());
        Ok(Response::new(ListOrderEventsResponse { events, next_page_token: next.unwrap_or_default() }))
    }

    type WatchOrdersStream = Pin<Box<dyn Stream<Item = Result<WatchOrdersResponse, Status>> + Send>>;

    async fn watch_orders(
        &self,
        _: Request<WatchOrdersRequest>,
    ) -> Result<Response<Self::WatchOrdersStream>, Status> {
        Err(Status::unimplemented("watch orders"))
    }
}
