//! Long logs in a short time: messages written to the order log past the gateway.

use std::collections::BTreeMap;

use async_nats::HeaderMap;
use backbone::broker::direct_get;
use backbone::broker::streams::ORDERS;
use backbone::log::ids::{OrderId, OrderKey, Revision};
use backbone::log::subjects::{self, EventKind, ORDER_BARRIER, STORAGE_PROBE};
use futures::{StreamExt, stream};
use prost::Message;
use proto::orders::v1::{Order, OrderEvent};

use crate::deployment::Deployment;
use crate::eventually;

/// Messages written side by side.
const WRITES_AT_ONCE: usize = 512;

impl Deployment {
    /// Writes the first events of `count` further orders of the same customer as `order`, and gives their ids, oldest
    /// first.
    pub async fn seed_orders_like(&self, order: &Order, count: usize) -> Vec<String> {
        let jetstream = self.jetstream().await;
        let like: OrderId = order.order_id.parse().expect("order id");
        let first = subjects::order_kind(EventKind::Created, &like);
        let stored = direct_get::last_on(&jetstream.client(), ORDERS, &first).await.expect("log");
        let stored = stored.expect("first event");
        let next = subjects::parse(&stored.subject).expect("event").next.to_owned();
        let event = OrderEvent::decode(stored.payload).expect("event");
        let seeded = stream::iter(0..count).map(|n| {
            let id = OrderId { order: OrderKey::unique(), ..like };
            let mut event = event.clone();
            event.event_id = format!("seed-{n}");
            event.order.as_mut().expect("order").order_id = id.to_string();
            let subject = subjects::event(EventKind::Created, &id, &next);
            let publishing = jetstream.publish(subject, event.encode_to_vec().into());
            async move {
                let stored = publishing.await.expect("publish").await.expect("stored");
                (stored.sequence, id.to_string())
            }
        });
        let seeded: BTreeMap<u64, String> = seeded.buffer_unordered(WRITES_AT_ONCE).collect().await;
        seeded.into_values().collect()
    }

    /// Writes `count` messages of no order.
    pub async fn lengthen_log(&self, count: usize) {
        let jetstream = self.jetstream().await;
        let written = stream::iter(0..count).map(|_| {
            let publishing = jetstream.publish(STORAGE_PROBE, "".into());
            async { drop(publishing.await.expect("publish").await.expect("stored")) }
        });
        written.buffer_unordered(WRITES_AT_ONCE).collect::<()>().await;
    }

    /// Writes a message of no order, and waits until it has expired.
    pub async fn write_and_lose_a_message(&self) {
        let jetstream = self.jetstream().await;
        let mut headers = HeaderMap::new();
        headers.insert("Nats-TTL", "1s");
        let written =
            jetstream.publish_with_headers(ORDER_BARRIER, headers, "".into()).await.expect("publish");
        let sequence = Revision(written.await.expect("stored").sequence);
        eventually("an expired message", async || {
            let left = direct_get::at(&jetstream.client(), ORDERS, sequence).await.expect("log");
            left.is_none().then_some(())
        })
        .await;
    }
}
