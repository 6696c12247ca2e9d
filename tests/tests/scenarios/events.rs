//! Reading the events of an order.

use backbone::log::subjects::EventKind;
use harness::eventually;
use proto::orders::v1::order_service_client::OrderServiceClient;
use proto::orders::v1::{ListOrderEventsRequest, Order, OrderEvent};
use tonic::Code;
use tonic::transport::Channel;

/// The history of an order, read again while a busy machine does not answer in time.
pub(crate) async fn history(client: &OrderServiceClient<Channel>, order_id: &str) -> Vec<OrderEvent> {
    eventually(&format!("history of {order_id}"), async || {
        let request = ListOrderEventsRequest { order_id: order_id.to_owned(), ..Default::default() };
        match client.clone().list_order_events(request).await {
            Ok(response) => Some(response.into_inner().events),
            Err(status) if matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded) => None,
            Err(status) => panic!("{status:?}"),
        }
    })
    .await
}

/// What happened, in one word.
pub(crate) fn kind(event: &OrderEvent) -> EventKind {
    EventKind::of(event.detail.as_ref().expect("detail"))
}

/// What happened, in order.
pub(crate) fn kinds(events: &[OrderEvent]) -> Vec<EventKind> {
    events.iter().map(kind).collect()
}

/// The order after the event.
pub(crate) fn after(event: &OrderEvent) -> &Order {
    event.order.as_ref().expect("order")
}

/// Where each event is in the log.
pub(crate) fn revisions(events: &[OrderEvent]) -> Vec<u64> {
    events.iter().map(|event| after(event).revision).collect()
}
