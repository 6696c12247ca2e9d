//! Reading the events of all orders of a customer, in the log's order.
//!
//! If there are few, the broker answers the last event on each subject without walking the log. An event that was followed
//! by another on the same subject is missing there (`hidden.rs`). If there are many, and for events that have just been
//! announced, the log is read in batches. Far from its end, where a batch costs much, it is read event by event.

use super::OrderLog;
use super::created::FEW_ORDERS;
use super::read::decode_all;
use crate::broker::direct_get::{Batch, ReadError, batch_from, last_of_few};
use crate::broker::streams::ORDERS;
use crate::log::event::Recorded;
use crate::log::ids::{CustomerKey, Revision};
use crate::log::subjects;

/// Events that are read at once.
const FEW_EVENTS: u64 = 4 * FEW_ORDERS;
/// Maximum bytes of these.
const FEW_BYTES_MAX: u32 = 1024 * 1024;
/// Messages that are read at once rather than asking for all subjects of the customer.
const NEAR_MESSAGES: u64 = 1024;
/// Messages at the end of the log that the broker counts in less time than many requests take.
const BATCH_FROM_MESSAGES: u64 = 65_536;
/// Most events of one answer or one walk.
const READ_MESSAGES_MAX: u32 = 64;
/// Maximum bytes of the events of one walk; the event that exceeds it is the last one.
const WALK_BYTES_MAX: usize = 1024 * 1024;

/// Some events of a customer.
#[derive(Debug)]
pub(super) struct CustomerEvents {
    /// In the log's order.
    pub(super) events: Vec<Recorded>,
    /// No event is missing up to here.
    pub(super) read: Revision,
    /// How the next events are to be read; `None` if there probably are none.
    pub(super) more: Option<Reading>,
}

/// How to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// The last event on each subject, if there are few.
    Few,
    /// Event by event.
    Walk,
}

impl OrderLog {
    /// Events of `customer`'s orders after `after`, from any replica. One at `announced` is known to exist.
    pub(super) async fn customer_events(
        &self,
        customer: CustomerKey,
        after: Revision,
        announced: Revision,
        reading: Reading,
    ) -> Result<CustomerEvents, ReadError> {
        let filter = &subjects::customer(customer);
        let is_near = |to: Revision| after < to && to.0 - after.0 <= NEAR_MESSAGES;
        if is_near(announced) {
            return self.batch_events(filter, after, None).await;
        }
        // The only server of a stream has every message up to its end.
        let last = self.extent().await?.last;
        let end = if self.barrier.is_needed().await? { None } else { Some(last) };
        if end.is_some_and(|end| end <= after) {
            return Ok(CustomerEvents { events: Vec::new(), read: after, more: None });
        }
        let may_be_few = reading == Reading::Few && self.many_events.get(customer).is_none();
        if may_be_few
            && !end.is_some_and(is_near)
            && let Some(all) = self.few_events(customer, filter, after).await?
        {
            return Ok(all);
        }
        if last.0.saturating_sub(after.0) <= BATCH_FROM_MESSAGES {
            return self.batch_events(filter, after, end).await;
        }
        self.walk_events(filter, after, announced, end).await
    }

    /// The last of `customer`'s events, proved; [`Revision::NONE`] if the stream's only server has every message, so that
    /// its answers need no proof.
    pub(super) async fn last_event_of(&self, customer: CustomerKey) -> Result<Revision, ReadError> {
        if !self.barrier.is_needed().await? {
            return Ok(Revision::NONE);
        }
        let is_of_customer =
            |subject: &str| subjects::parse(subject).is_some_and(|event| event.id.customer == customer);
        if self.many_events.get(customer).is_some()
            && let Some(last) = self.barrier.recent_on(is_of_customer).await?
        {
            return Ok(last);
        }
        self.barrier.last_on(&subjects::customer(customer)).await
    }

    /// All events after `after`, if they are few.
    async fn few_events(
        &self,
        customer: CustomerKey,
        filter: &str,
        after: Revision,
    ) -> Result<Option<CustomerEvents>, ReadError> {
        let client = &self.connection.client;
        // From the beginning of the log on, the broker counts without walking it.
        if batch_from(client, ORDERS, filter, Revision::NONE, 1).await?.total() > FEW_EVENTS {
            self.many_events.insert(customer, ());
            return Ok(None);
        }
        let from = Revision(after.0 + 1);
        let few = last_of_few(client, ORDERS, filter, from, FEW_BYTES_MAX).await?;
        let Some(Batch { messages, remaining, stream_end }) = few else { return Ok(None) };
        let last = messages.last().map_or(after, |last| last.sequence);
        let events = if remaining == 0 { self.with_hidden(messages, after).await? } else { None };
        let read = stream_end.max(last);
        Ok(events.map(|events| CustomerEvents { events, read, more: None }))
    }

    /// The first events after `after`, in one answer. The broker counts the others.
    async fn batch_events(
        &self,
        filter: &str,
        after: Revision,
        end: Option<Revision>,
    ) -> Result<CustomerEvents, ReadError> {
        let from = Revision(after.0 + 1);
        let batch = batch_from(&self.connection.client, ORDERS, filter, from, READ_MESSAGES_MAX).await?;
        let read = batch.messages.last().map_or(after, |last| last.sequence);
        let events = decode_all(batch.messages);
        if batch.remaining > 0 {
            return Ok(CustomerEvents { events, read, more: Some(Reading::Walk) });
        }
        Ok(CustomerEvents { events, read: end.map_or(read, |end| read.max(end)), more: None })
    }

    /// The first events after `after`, one by one.
    async fn walk_events(
        &self,
        filter: &str,
        after: Revision,
        announced: Revision,
        end: Option<Revision>,
    ) -> Result<CustomerEvents, ReadError> {
        let (mut events, mut bytes, mut read) = (Vec::new(), 0, after);
        while events.len() < READ_MESSAGES_MAX as usize && bytes < WALK_BYTES_MAX {
            match self.first_known(filter, Revision(read.0 + 1), announced).await {
                Ok(Some(message)) => {
                    read = message.sequence;
                    bytes += message.payload.len();
                    events.extend(decode_all(vec![message]));
                }
                Ok(None) => {
                    let read = end.map_or(read, |end| read.max(end));
                    return Ok(CustomerEvents { events, read, more: None });
                }
                Err(ReadError::NoAnswer(_)) if read > after => break,
                Err(error) => return Err(error),
            }
        }
        Ok(CustomerEvents { events, read, more: Some(Reading::Walk) })
    }
}
