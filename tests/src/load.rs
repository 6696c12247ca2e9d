//! Clients that go on placing orders while the test breaks things.

use std::error::Error;
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use proto::orders::v1::order_service_client::OrderServiceClient;
use proto::orders::v1::{CreateOrderRequest, Order};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::PATIENCE;

/// Orders placed side by side.
const CALLS_AT_ONCE: usize = 32;
/// What a client waits before it repeats a call.
const REPEAT_PAUSE: Duration = Duration::from_millis(50);

/// Orders on their way to the gateway, by clients that behave as the contract tells them to: what was not
/// answered is repeated with the same request_id until it is.
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

async fn place(mut client: OrderServiceClient<Channel>, request: CreateOrderRequest) -> Order {
    let start = Instant::now();
    loop {
        let status = match client.create_order(request.clone()).await {
            Ok(response) => return response.into_inner().order.expect("order"),
            Err(status) => status,
        };
        assert!(to_be_repeated(&status), "{} refused: {status:?}", request.request_id);
        assert!(start.elapsed() < PATIENCE, "{} not accepted: {status:?}", request.request_id);
        sleep(REPEAT_PAUSE).await;
    }
}

/// Whether the contract, or the loss of the connection, tells the client to call again.
fn to_be_repeated(status: &Status) -> bool {
    // A status that the client made up itself has the connection's error as its source.
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded) || status.source().is_some()
}
