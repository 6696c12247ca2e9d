//! Reading orders: the latest event holds the order as it stands; the order's subjects hold its history.

use std::time::SystemTime;

use async_nats::HeaderMap;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{DirectGetError, DirectGetErrorKind};
use tracing::warn;

use super::{OrderLog, OrderState};
use crate::direct_get::{self, ReadError, Stored};
use crate::event::Recorded;
use crate::ids::{CustomerKey, OrderId, Revision};
use crate::leader_get::found;
use crate::stream::{ORDERS, StreamState};
use crate::subjects::{self, EventKind};

/// How far the log goes, and which log it is.
#[derive(Clone, Debug)]
pub struct Extent {
    /// When the stream was made. One that was lost and made anew has another time, and counts from 1 again.
    pub created: SystemTime,
    /// The last revision of any order.
    pub last: Revision,
    /// How full and how safe it is.
    pub state: StreamState,
}

/// What lies on an order's subjects.
pub(super) enum Latest {
    /// The order.
    Order(Box<OrderState>),
    /// No event: nothing, or foreign messages up to here.
    Vacant(Revision),
}

impl Latest {
    fn into_order(self) -> Option<OrderState> {
        match self {
            Self::Order(order) => Some(*order),
            Self::Vacant(_) => None,
        }
    }
}

impl OrderLog {
    /// The order as it stands, or `None` if there never was one. Any replica may answer, so the order may be
    /// a moment old; that there is none is asked of the leader.
    pub async fn load(&self, id: &OrderId) -> Result<Option<OrderState>, ReadError> {
        direct_get::reachable(&self.connection.client)?;
        match self.stream.direct_get_last_for_subject(subjects::order(id)).await {
            Ok(last) => {
                let headers = last.headers;
                let found = self.state(id, &last.subject, Revision(last.sequence), &headers, last.payload);
                Ok(found.await?.into_order())
            }
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => self.load_latest(id).await,
            Err(error) => Err(read_error(&error)),
        }
    }

    /// The order as the stream's leader has it: for decisions.
    pub async fn load_latest(&self, id: &OrderId) -> Result<Option<OrderState>, ReadError> {
        Ok(self.latest(id).await?.into_order())
    }

    /// What the stream's leader has on the order's subjects.
    pub(super) async fn latest(&self, id: &OrderId) -> Result<Latest, ReadError> {
        match self.last_message(&subjects::order(id)).await? {
            Some(last) => {
                let headers = last.headers;
                self.state(id, &last.subject, Revision(last.sequence), &headers, last.payload).await
            }
            None => Ok(Latest::Vacant(Revision::NONE)),
        }
    }

    /// The last message that the stream's leader has on `filter`.
    pub(super) async fn last_message(&self, filter: &str) -> Result<Option<StreamMessage>, ReadError> {
        direct_get::reachable(&self.connection.client)?;
        found(self.stream.get_last_raw_message_by_subject(filter).await)
    }

    /// Whether the stream's leader has the first event of one of `customer`'s orders at `revision`.
    pub(super) async fn is_created_at(
        &self,
        customer: CustomerKey,
        revision: Revision,
    ) -> Result<bool, ReadError> {
        let message = found(self.stream.get_raw_message(revision.0).await)?;
        let event = message.and_then(|message| subjects::parse(&message.subject));
        Ok(event.is_some_and(|(kind, id)| kind == EventKind::Created && id.customer == customer))
    }

    /// When the stream's leader stored the message at `sequence`, if it has one there.
    pub(super) async fn stored_at(&self, sequence: u64) -> Result<Option<SystemTime>, ReadError> {
        let message = found(self.stream.get_raw_message(sequence).await)?;
        Ok(message.map(|message| message.time.into()))
    }

    /// The order's events after `after`, oldest first. Any replica may answer, so the latest may be missing;
    /// that there is none at all is asked of the leader.
    pub async fn history(&self, id: &OrderId, after: Revision) -> Result<Vec<Recorded>, ReadError> {
        let mut events = self.whole_history(id).await?;
        events.retain(|event| event.revision > after);
        Ok(events)
    }

    /// All of the order's events, oldest first.
    pub(super) async fn whole_history(&self, id: &OrderId) -> Result<Vec<Recorded>, ReadError> {
        let client = &self.connection.client;
        let stored = direct_get::last_of_each(client, ORDERS, &[subjects::order(id)]).await?;
        let found = stored.len();
        let mut events = decode_all(stored);
        // One message a subject is the whole history unless an event happened twice or a foreign message
        // hides one; then the chain has a gap, or ends too early, and the history is read message by message.
        if events.len() < found || !is_whole(&events) {
            events =
                decode_all(direct_get::all_from(client, ORDERS, &subjects::order(id), Revision::NONE).await?);
        }
        if events.is_empty() && self.load_latest(id).await?.is_some() {
            return Err(ReadError::NoAnswer("the replica that answered is behind".to_owned()));
        }
        Ok(events)
    }

    /// Asks the stream's leader what there is.
    pub async fn extent(&self) -> Result<Extent, ReadError> {
        direct_get::reachable(&self.connection.client)?;
        let info = self.stream.get_info().await.map_err(|error| ReadError::NoAnswer(error.to_string()))?;
        let (created, last) = (info.created.into(), Revision(info.state.last_sequence));
        Ok(Extent { created, last, state: StreamState::from(&info) })
    }

    async fn state(
        &self,
        id: &OrderId,
        subject: &str,
        head: Revision,
        headers: &HeaderMap,
        payload: bytes::Bytes,
    ) -> Result<Latest, ReadError> {
        let undecodable = match Recorded::decode(subject, head, Some(headers), payload) {
            Ok(last) => return Ok(Latest::Order(Box::new(last.into()))),
            Err(undecodable) => undecodable,
        };
        warn!(order_id = %id, sequence = head.0, error = %undecodable, "foreign message on an order's subject, passed over");
        let filter = subjects::order(id);
        let stored = direct_get::all_from(&self.connection.client, ORDERS, &filter, Revision::NONE).await?;
        let last = decode_all(stored).pop();
        Ok(last
            .map_or(Latest::Vacant(head), |last| Latest::Order(Box::new(OrderState { head, ..last.into() }))))
    }
}

/// Decodes what can be; what cannot is logged and passed over.
pub(super) fn decode_all(stored: Vec<Stored>) -> Vec<Recorded> {
    let decode = |stored: Stored| {
        Recorded::decode(&stored.subject, stored.sequence, Some(&stored.headers), stored.payload)
            .inspect_err(|error| {
                warn!(subject = %stored.subject, sequence = stored.sequence.0, %error, "foreign message, passed over");
            })
            .ok()
    };
    stored.into_iter().filter_map(decode).collect()
}

/// Whether each event is preceded by the one that it names, from the order's first on.
fn is_whole(events: &[Recorded]) -> bool {
    let mut previous = Revision::NONE;
    events.iter().all(|event| std::mem::replace(&mut previous, event.revision) == event.previous)
}

pub(super) fn read_error(error: &DirectGetError) -> ReadError {
    match error.kind() {
        DirectGetErrorKind::ErrorResponse(status, text) => ReadError::of(status, &text),
        DirectGetErrorKind::NotFound | DirectGetErrorKind::InvalidSubject => {
            ReadError::Broker(error.to_string())
        }
        DirectGetErrorKind::TimedOut | DirectGetErrorKind::Request | DirectGetErrorKind::Other => {
            ReadError::NoAnswer(error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_nats::StatusCode;

    #[test]
    fn a_stream_that_is_gone_or_without_a_leader_is_no_answer() {
        let direct = |status| {
            let response = DirectGetErrorKind::ErrorResponse(status, "no responders".to_owned());
            read_error(&DirectGetError::new(response))
        };
        assert!(matches!(direct(StatusCode::NO_RESPONDERS), ReadError::NoAnswer(_)));
        assert!(matches!(direct(StatusCode::TIMEOUT), ReadError::Broker(_)));
    }
}
