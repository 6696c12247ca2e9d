//! Watching all orders of a customer. An event of one order does not show whether an event of another order was missed.
//! So a live event is only a hint that the log has new events. Every event is read from the log, in the log's order.

use std::collections::VecDeque;
use std::time::Duration;

use futures::Stream;
use futures::stream::unfold;
use tokio::select;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::OrderLog;
use super::customer_events::{CustomerEvents, Reading};
use super::live::{Listener, LiveEvent};
use super::watch::{BEHIND, RECONCILE_INTERVAL, RECONCILE_RETRY, Update, WatchError};
use crate::broker::direct_get::{ReadError, first_from};
use crate::broker::streams::ORDERS;
use crate::log::event::Recorded;
use crate::log::ids::{CustomerKey, Revision};
use crate::log::subjects;

/// The events of all orders of a customer, each exactly once and in the log's order. Never ends.
#[derive(Debug)]
pub struct CustomerWatch {
    log: OrderLog,
    customer: CustomerKey,
    live: Listener,
    connects: watch::Receiver<u64>,
    regained: watch::Receiver<u64>,
    /// Events have probably been missed: the position up to which to read must be proved.
    needs_proof: bool,
    read_at: Instant,
    reading: Reading,
    /// Read from the log, not yet returned.
    ready: VecDeque<Recorded>,
    /// Up to where the log has been read.
    read: Revision,
    /// Events up to this revision are older than the watch; `None` until all of them have been read.
    caught_up: Option<Revision>,
    /// The latest event that arrived live, or is known to exist.
    announced: Revision,
    /// Consecutive reads from replicas that had nothing new, although there is more.
    behind: u64,
}

impl OrderLog {
    /// Watches all orders of `customer` from behind the event at `after`.
    pub async fn watch_customer(
        &self,
        customer: CustomerKey,
        after: Revision,
    ) -> Result<CustomerWatch, WatchError> {
        let mut connects = self.connection.connects();
        connects.mark_unchanged();
        let live = self.live.listen(&self.connection.client, subjects::live_customer(customer)).await?;
        let mut last = None;
        if after > Revision::NONE && !self.has_event_from(customer, after).await? {
            let found = match self.barrier.last_on(&subjects::customer(customer)).await? {
                // All events of this customer may have expired.
                Revision::NONE => match self.barrier.pass().await? {
                    Some(barrier) => barrier,
                    None => self.extent().await?.last,
                },
                found => *last.insert(found),
            };
            if after > found {
                return Err(WatchError::Beyond { last: found });
            }
        }
        let caught_up = last.filter(|last| *last == after);
        let until_first_read = if caught_up.is_some() { RECONCILE_INTERVAL } else { Duration::ZERO };
        Ok(CustomerWatch {
            log: self.clone(),
            customer,
            live,
            connects,
            regained: self.regained.subscribe(),
            needs_proof: false,
            read_at: Instant::now() + until_first_read,
            reading: Reading::Few,
            ready: VecDeque::new(),
            read: after,
            caught_up,
            announced: last.unwrap_or(after),
            behind: 0,
        })
    }

    /// Whether a customer with very many events has one at or behind `from`. For others, the last event is the cheaper
    /// question.
    async fn has_event_from(&self, customer: CustomerKey, from: Revision) -> Result<bool, ReadError> {
        if self.many_events.get(customer).is_none() {
            return Ok(false);
        }
        let client = &self.connection.client;
        Ok(first_from(client, ORDERS, &subjects::customer(customer), from).await?.is_some())
    }
}

impl CustomerWatch {
    /// The next event. Waits while nothing happens and while the broker is unavailable. Cancel-safe: an event is taken
    /// only by the call that returns it.
    pub async fn next(&mut self) -> Recorded {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return event;
            }
            select! {
                () = sleep_until(self.read_at) => {}
                received = self.live.next() => self.receive(received),
                _ = self.connects.changed() => self.require_proof(),
                _ = self.regained.changed() => self.require_proof(),
            }
            // One read serves all live messages that arrived meanwhile.
            while let Some(received) = self.live.try_next() {
                self.receive(received);
            }
            if self.read_at <= Instant::now()
                && let Err(error) = self.read_log().await
            {
                debug!(%error, "watch could not read the log, retrying");
                self.read_at = Instant::now() + RECONCILE_RETRY;
            }
        }
    }

    /// The events as a stream, which never ends.
    pub fn into_stream(self) -> impl Stream<Item = Update> + Send {
        unfold(self, async |mut watch| {
            let event = watch.next().await;
            let is_live = watch.caught_up.is_some_and(|caught_up| event.revision > caught_up);
            Some((Update::now(event, is_live), watch))
        })
    }

    /// Something may have been missed.
    fn require_proof(&mut self) {
        (self.needs_proof, self.read_at) = (true, Instant::now());
    }

    fn receive(&mut self, received: LiveEvent) {
        match received {
            LiveEvent::Event(event) if event.revision <= self.read => return,
            LiveEvent::Event(event) => self.announced = self.announced.max(event.revision),
            LiveEvent::Missed => {}
        }
        self.read_at = Instant::now();
    }

    async fn read_log(&mut self) -> Result<(), ReadError> {
        if self.needs_proof {
            self.announced = self.announced.max(self.log.last_event_of(self.customer).await?);
            self.needs_proof = false;
        }
        let events = self.log.customer_events(self.customer, self.read, self.announced, self.reading);
        let CustomerEvents { events, read, more } = events.await?;
        let is_new = !events.is_empty();
        self.ready.extend(events);
        self.read = self.read.max(read);
        self.reading = more.unwrap_or(Reading::Few);
        if more.is_none() {
            self.caught_up.get_or_insert(self.read);
        }
        let pause = if more.is_some() {
            Duration::ZERO
        } else if self.read < self.announced {
            self.behind = if is_new { 1 } else { self.behind + 1 };
            BEHIND.after(self.behind)
        } else {
            self.behind = 0;
            RECONCILE_INTERVAL
        };
        self.read_at = Instant::now() + pause;
        Ok(())
    }
}
