//! The order log: every fact about an order is an event, appended by compare-and-set. There is no other
//! record of an order.

pub mod carrying;
pub mod creation_time;
pub mod deferral;
pub mod event;
pub mod ids;
pub mod lifecycle;
pub mod payment_method;
pub mod subjects;

mod append;
mod backlog;
mod carry;
mod carry_position;
mod counted;
mod created;
mod created_walk;
mod customer_events;
mod hidden;
pub(crate) mod known_losses;
mod leadership;
mod list;
mod live;
mod loss;
mod losses;
mod probe;
mod quorum;
mod read;
mod unknown_fields;
mod watch;
mod watch_customer;

use std::sync::Arc;

use async_nats::jetstream::stream::Stream;
use bytes::Bytes;
use proto::orders::v1::Order;
use proto::orders::v1::order_event::Detail;
use tokio::sync::watch::Sender;

pub use append::{AppendError, Appended};
pub use backlog::Backlog;
pub use carry::{CarryError, CarryProgress, LogBounds};
pub use carry_position::CarryPosition;
pub use known_losses::{LossCounts, loss_acknowledged};
pub use leadership::StepDown;
pub use list::Page;
pub use loss::{Loss, LossCause};
pub use losses::{acknowledge_loss, has_ever_lost_events};
pub use read::LogInfo;
pub use watch::{EventsLost, Update, Watch, WatchError};
pub use watch_customer::CustomerWatch;

use crate::broker::barrier::Barrier;
use crate::broker::connection::Connection;
use crate::broker::direct_get::ReadError;
use crate::broker::streams::ORDERS;
use crate::log::event::{Recorded, Writer};
use crate::log::ids::{OrderId, Revision};
use counted::Counted;
use live::LiveTopics;

/// One program's access to the order log. Cheap to clone.
#[derive(Clone, Debug)]
pub struct OrderLog {
    connection: Connection,
    stream: Stream<()>,
    live: Arc<LiveTopics>,
    barrier: Barrier,
    quorum: Sender<Result<(), String>>,
    /// Counts recoveries of the quorum. Live messages before the latest one may have been missed.
    regained: Sender<u64>,
    /// The customers with many orders, and how many messages the log has for each of their orders.
    many_orders: Arc<Counted<u64>>,
    /// The customers with many events.
    many_events: Arc<Counted<()>>,
    writer: Writer,
}

/// The current order, and the expectation for an append to it.
#[derive(Clone, Debug)]
pub struct OrderState {
    /// The order's id.
    pub id: OrderId,
    /// The order after its last event.
    pub order: Order,
    /// Sequence of the last message on the order's subjects: the order's revision, or that of a foreign
    /// message behind it.
    pub head: Revision,
    /// Position of the last event that changed the order; it may have expired.
    since: Revision,
    /// The id of the last event, chosen by its writer.
    event_id: String,
    /// Fields of a newer version, for the next event.
    unknown_fields: Bytes,
}

impl From<Recorded> for OrderState {
    fn from(last: Recorded) -> Self {
        let since = last.stands_since();
        let Recorded { id, order, revision: head, event_id, unknown_fields, .. } = last;
        Self { id, order, head, since, event_id, unknown_fields }
    }
}

impl OrderState {
    /// Position of the order's last event.
    pub fn revision(&self) -> Revision {
        Revision(self.order.revision)
    }

    /// Position of the last event that changed the order. One that is carried stands as it stood.
    pub fn stands_since(&self) -> Revision {
        self.since
    }

    /// Whether the order's last event is `carried`.
    pub fn is_carried(&self) -> bool {
        self.since < self.revision()
    }
}

/// Since when an order stands as it does that this event has carried.
fn carried_since(detail: &Detail) -> Option<Revision> {
    if let Detail::Carried(carried) = detail { Some(Revision(carried.since_revision)) } else { None }
}

impl OrderLog {
    /// The log behind `connection`, for a program called `source` that is no step. Does not touch the broker.
    pub async fn new(connection: Connection, source: &'static str) -> Result<Self, ReadError> {
        Self::open(connection, Writer { source, step: "" }).await
    }

    /// The log behind `connection`, for the program of a step. Does not touch the broker.
    pub async fn of_step(connection: Connection, step: &'static str) -> Result<Self, ReadError> {
        Self::open(connection, Writer { source: step, step }).await
    }

    async fn open(connection: Connection, writer: Writer) -> Result<Self, ReadError> {
        let stream = connection
            .jetstream
            .get_stream_no_info(ORDERS)
            .await
            .map_err(|error| ReadError::Broker(error.to_string()))?;
        let barrier = Barrier::of_orders(connection.clone());
        let (quorum, regained) = (Sender::new(Ok(())), Sender::default());
        Ok(Self {
            connection,
            stream,
            live: Arc::default(),
            barrier,
            quorum,
            regained,
            many_orders: Arc::default(),
            many_events: Arc::default(),
            writer,
        })
    }

    /// The connection that the log is reached by.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }
}
