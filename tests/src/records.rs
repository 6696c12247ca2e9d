//! What the broker holds, read past the gateway: the order log and inventory's bucket.

use std::collections::HashMap;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{self, kv};
use backbone::broker::connection::Connection;
use backbone::broker::credentials::BrokerConfig;
use backbone::broker::direct_get::{self, Stored};
use backbone::broker::streams::ORDERS;
use backbone::log::OrderLog;
use backbone::log::event::Recorded;
use backbone::log::ids::Revision;
use backbone::log::subjects::{ALL_ORDERS, EventKind};
use processor::inventory::{BUCKET, Reservation, ReservationState, reservation_key, stock_key};

use crate::deployment::Deployment;
use crate::eventually;
use crate::test_steps::{BUCKET as EFFECTS, Effect};

impl Deployment {
    /// A broker client of the test's own.
    pub async fn jetstream(&self) -> jetstream::Context {
        self.broker.jetstream().await
    }

    /// The order log as a Waybill program opens it, for a test that plays one.
    pub async fn order_log(&self) -> OrderLog {
        OrderLog::new(self.connection().await, "test").await.expect("order log")
    }

    /// The order log as the program of a step opens it.
    pub async fn step_log(&self, step: &'static str) -> OrderLog {
        OrderLog::of_step(self.connection().await, step).await.expect("order log")
    }

    async fn connection(&self) -> Connection {
        let config = BrokerConfig {
            nats_url: vec![self.broker.url().parse().expect("address")],
            nats_creds: None,
            nats_tls_ca: None,
            nats_tls_cert: None,
            nats_tls_key: None,
        };
        let connection = Connection::open(&config, "test").await.expect("connection");
        connection.up().await;
        connection
    }

    /// What a test step has on record, by order id.
    pub async fn effects(&self, step: &str) -> HashMap<String, Effect> {
        let client = self.jetstream().await.client();
        let (stream, filter) = (format!("KV_{EFFECTS}"), format!("$KV.{EFFECTS}.{step}.>"));
        let records = direct_get::all_from(&client, &stream, &filter, Revision::NONE).await.expect("bucket");
        let mut effects = HashMap::new();
        for record in records {
            let order_id = record.subject.split('.').nth(3).expect("an order").to_owned();
            let effect = serde_json::from_slice(&record.payload).expect("an effect");
            assert!(effects.insert(order_id, effect).is_none(), "two creation times: {}", record.subject);
        }
        effects
    }

    /// Every message in the log, in order.
    pub async fn messages(&self) -> Vec<Stored> {
        let client = self.jetstream().await.client();
        direct_get::all_from(&client, ORDERS, ALL_ORDERS, Revision::NONE).await.expect("log")
    }

    /// The subjects of every message in the log, in order.
    pub async fn subjects(&self) -> Vec<String> {
        self.messages().await.into_iter().map(|message| message.subject.to_string()).collect()
    }

    /// What happened to each order, in order.
    pub async fn histories(&self) -> HashMap<String, Vec<EventKind>> {
        let mut histories = HashMap::<_, Vec<_>>::new();
        for message in self.messages().await {
            let Stored { subject, sequence, headers, payload } = message;
            if let Ok(event) = Recorded::decode(&subject, sequence, Some(&headers), payload) {
                histories.entry(event.id.to_string()).or_default().push(event.kind());
            }
        }
        histories
    }

    /// What happened to one order, in order.
    pub async fn history(&self, order_id: &str) -> Vec<EventKind> {
        self.histories().await.remove(order_id).unwrap_or_default()
    }

    /// The bucket that inventory keeps.
    pub async fn inventory(&self) -> kv::Store {
        self.jetstream().await.get_key_value(BUCKET).await.expect("bucket")
    }

    /// Units of `sku` that are available, by inventory's own record.
    pub async fn available(&self, sku: &str) -> u64 {
        let value = self.inventory().await.get(stock_key(sku)).await.expect("bucket");
        String::from_utf8_lossy(&value.expect("stock")).parse().expect("count")
    }

    /// What inventory has on record for an order.
    pub async fn reservation(&self, order_id: &str) -> Option<Reservation> {
        let value = self.inventory().await.get(reservation_key(order_id)).await.expect("bucket")?;
        Some(serde_json::from_slice(&value).expect("reservation"))
    }

    /// Units of `sku` that orders hold, by inventory's own records.
    pub async fn held(&self, sku: &str) -> u64 {
        let client = self.jetstream().await.client();
        let stream = format!("KV_{BUCKET}");
        let filter = format!("$KV.{BUCKET}.{}", reservation_key(">"));
        let records = direct_get::all_from(&client, &stream, &filter, Revision::NONE).await.expect("bucket");
        let held = records.iter().map(|record| {
            let reservation: Reservation = serde_json::from_slice(&record.payload).expect("reservation");
            match reservation.state {
                ReservationState::Held => reservation.units.get(sku).copied().unwrap_or(0),
                ReservationState::Released => 0,
            }
        });
        held.sum()
    }

    /// A step's consumer, once it exists.
    pub async fn consumer(&self, step: &str) -> PullConsumer {
        let jetstream = self.jetstream().await;
        eventually(&format!("consumer of {step}"), async || {
            jetstream.get_consumer_from_stream(step, ORDERS).await.ok()
        })
        .await
    }

    /// Waits until a step has nothing left to do.
    pub async fn idle(&self, step: &str) {
        let mut consumer = self.consumer(step).await;
        eventually(&format!("{step} with nothing left to do"), async || {
            let info = consumer.info().await.ok()?;
            (info.num_pending == 0 && info.num_ack_pending == 0).then_some(())
        })
        .await;
    }
}
