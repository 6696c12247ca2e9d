//! Following one order without missing an update, over streams that may break.

use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Order, OrderEvent, WatchOrderRequest, WatchOrderResponse};
use tokio::time::sleep;
use tonic::{Status, Streaming};

use crate::client::{self, Orders};

/// How often in a row a stream may break, or not open, before the watch gives up.
const FAILED_ATTEMPTS_MAX: u32 = 10;

/// One event of an order.
#[derive(Debug)]
pub(crate) struct Update {
    /// The order after the event.
    pub(crate) order: Order,
    /// What happened; `None` for a kind of event that is newer than this program.
    pub(crate) detail: Option<Detail>,
    /// The step that wrote the event; empty for other writers.
    pub(crate) step: String,
    /// Of the call or step that wrote the event; may be empty.
    pub(crate) trace_id: String,
}

impl Update {
    /// The event as the gateway sent it.
    pub(crate) fn of(event: OrderEvent) -> Result<Self, Status> {
        match event.order {
            Some(order) => {
                Ok(Self { order, detail: event.detail, step: event.step, trace_id: event.trace_id })
            }
            None => Err(Status::data_loss("the gateway sent an event without its order")),
        }
    }
}

/// Follows an order from a revision on. When the stream breaks, takes up after the last revision seen.
#[derive(Debug)]
pub(crate) struct Watch {
    orders: Orders,
    order_id: String,
    revision: u64,
    stream: Option<Streaming<WatchOrderResponse>>,
    failed_attempts: u32,
}

impl Watch {
    /// Sends no request before the first [`Watch::next`].
    pub(crate) fn new(orders: Orders, order_id: String, after_revision: u64) -> Self {
        Self { orders, order_id, revision: after_revision, stream: None, failed_attempts: 0 }
    }

    /// The next update; `None` once the order is finished. An error is final.
    pub(crate) async fn next(&mut self) -> Result<Option<Update>, Status> {
        loop {
            match self.next_of_stream().await {
                Ok(Some(update)) => {
                    self.revision = update.order.revision;
                    self.failed_attempts = 0;
                    return Ok(Some(update));
                }
                Ok(None) => return Ok(None),
                Err(status) => {
                    self.stream = None;
                    self.pause_after(status).await?;
                }
            }
        }
    }

    async fn next_of_stream(&mut self) -> Result<Option<Update>, Status> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let request =
                    WatchOrderRequest { order_id: self.order_id.clone(), after_revision: self.revision };
                let opened = client::answer(self.orders.watch_order(request)).await?;
                self.stream.insert(opened)
            }
        };
        match stream.message().await? {
            Some(response) => Update::of(response.event.unwrap_or_default()).map(Some),
            None => Ok(None),
        }
    }

    async fn pause_after(&mut self, status: Status) -> Result<(), Status> {
        match client::pause_before_retry(&status, self.failed_attempts) {
            Some(pause) if self.failed_attempts < FAILED_ATTEMPTS_MAX => {
                self.failed_attempts += 1;
                sleep(pause).await;
                Ok(())
            }
            Some(_) | None => Err(status),
        }
    }
}
