//! Clients that go on placing orders while the test breaks things.

use std::error::Error;
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use proto::orders::v1::order_service_client::OrderServiceClient;
use proto::orders::v1::{CancelOrderRequest, CreateOrderRequest, Order};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::PATIENCE;

/// Orders placed side by side.
const CALLS_AT_ONCE: usize = 32;
/// The delay of a client before it retries a call.
const REPEAT_PAUSE: Duration = Duration::from_millis(50);

/// Orders sent to the gateway by clients that follow the contract: a call without an answer is retried with the same
/// request_id.
#[derive(Debug)]
pub struct Load {
    placing: JoinHandle<Vec<Order>>,
    acknowledged: watch::Receiver<usize>,
}

impl Load {
    /// Begins to place the orders in the background.
    pub fn start(channel: Channel, requests: Vec<CreateOrderRequest>) -> Self {
        let (count, acknowledged) = watch::channel(0);
        let client = OrderServiceClient::new(channel);
        let placing = tokio::spawn(async move {
            let calls = stream::iter(requests).map(|request| place(client.clone(), request));
            let mut placed = calls.buffer_unordered(CALLS_AT_ONCE);
            let mut orders = Vec::new();
            while let Some(order) = placed.next().await {
                orders.push(order);
                count.send_replace(orders.len());
            }
            orders
        });
        Self { placing, acknowledged }
    }

    /// Waits until so many orders are acknowledged.
    pub async fn acknowledged(&mut self, count: usize) {
        let reached = self.acknowledged.wait_for(|acknowledged| *acknowledged >= count);
        timeout(PATIENCE, reached).await.expect("acknowledged orders in time").expect("clients that go on");
    }

    /// How many orders are acknowledged by now.
    pub fn count(&self) -> usize {
        *self.acknowledged.borrow()
    }

    /// Waits until every order is acknowledged, and gives them all.
    pub async fn all(self) -> Vec<Order> {
        self.placing.await.expect("clients that end well")
    }
}

async fn place(client: OrderServiceClient<Channel>, request: CreateOrderRequest) -> Order {
    let placed = create(&client, &request).await;
    placed.unwrap_or_else(|status| panic!("{} refused: {status:?}", request.request_id))
}

/// Places an order, by as many calls as it takes.
pub async fn create(
    client: &OrderServiceClient<Channel>,
    request: &CreateOrderRequest,
) -> Result<Order, Status> {
    let created = insist(|| {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.create_order(request).await }
    });
    Ok(created.await?.order.expect("order"))
}

/// Cancels an order, by as many calls as it takes.
pub async fn cancel(client: &OrderServiceClient<Channel>, order_id: &str) -> Result<Order, Status> {
    let cancelled = insist(|| {
        let request = CancelOrderRequest { order_id: order_id.to_owned(), message: String::new() };
        let mut client = client.clone();
        async move { client.cancel_order(request).await }
    });
    Ok(cancelled.await?.order.expect("order"))
}

/// Makes a call as the contract asks of clients: it is retried until there is an answer.
async fn insist<T, F>(mut call: impl FnMut() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let start = Instant::now();
    loop {
        let status = match call().await {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) if to_be_repeated(&status) => status,
            Err(status) => return Err(status),
        };
        assert!(start.elapsed() < PATIENCE, "no answer within {PATIENCE:?}: {status:?}");
        sleep(REPEAT_PAUSE).await;
    }
}

/// Whether the contract, or the loss of the connection, tells the client to call again.
fn to_be_repeated(status: &Status) -> bool {
    // A status that the client made itself has the connection's error as its source.
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded) || status.source().is_some()
}
