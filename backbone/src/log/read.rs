//! Reading orders: the latest event holds the order as it stands; the order's subjects hold its history.

use std::time::{Duration, SystemTime};

use async_nats::HeaderMap;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{DirectGetError, DirectGetErrorKind};
use program::backoff::Backoff;
use tokio::time::sleep;
use tracing::warn;

use super::{OrderLog, OrderState};
use crate::broker::direct_get::{self, ReadError, Stored};
use crate::broker::leader_get::{found, knows_no_leader};
use crate::broker::streams::{ORDERS, StreamState, info};
use crate::log::event::Recorded;
use crate::log::ids::{OrderId, Revision};
use crate::log::subjects;

/// Reads from a replica that is behind, before giving up.
const REPLICA_READS_MAX: u32 = 5;
const REPLICA_PAUSE: Duration = Duration::from_millis(50);
/// Requests for a message that is known to exist, before giving up.
const KNOWN_READS_MAX: u64 = 8;
/// Wait before the next one, which another replica may answer.
const KNOWN_PAUSE: Backoff = Backoff { initial: Duration::from_millis(5), max: Duration::from_millis(50) };

/// How far the log goes, and which log it is.
#[derive(Clone, Debug)]
pub struct LogInfo {
    /// When the stream was created. One that was lost and recreated has another time, and starts again at 1.
    pub created: SystemTime,
    /// The last revision of any order.
    pub last: Revision,
    /// How full and how safe it is.
    pub state: StreamState,
}

/// The latest message on an order's subjects.
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
    /// The current order, or `None` if it does not exist. Any replica may answer, so the order may be slightly stale. A
    /// missing order is proved ([`Barrier::last_of_each`](crate::broker::barrier::Barrier::last_of_each)).
    pub async fn load(&self, id: &OrderId) -> Result<Option<OrderState>, ReadError> {
        direct_get::reachable(&self.connection.client)?;
        match self.stream.direct_get_last_for_subject(subjects::order(id)).await {
            Ok(last) => {
                let headers = last.headers;
                let found = self.state(id, &last.subject, Revision(last.sequence), &headers, last.payload);
                Ok(found.await?.into_order())
            }
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => self.load_proven(id).await,
            Err(error) => Err(read_error(&error)),
        }
    }

    /// The current order: no later event was acknowledged before this call. For decisions where no later check detects
    /// a stale read.
    pub async fn load_proven(&self, id: &OrderId) -> Result<Option<OrderState>, ReadError> {
        Ok(self.proven(id).await?.into_order())
    }

    /// The order from the server that acts as the stream's leader: for decisions that an append follows, since the
    /// append detects a stale read. A missing order is proved.
    pub async fn load_latest(&self, id: &OrderId) -> Result<Option<OrderState>, ReadError> {
        Ok(self.latest(id).await?.into_order())
    }

    /// The latest message on the order's subjects, from a leader.
    pub(super) async fn latest(&self, id: &OrderId) -> Result<Latest, ReadError> {
        direct_get::reachable(&self.connection.client)?;
        let last = self.stream.get_last_raw_message_by_subject(&subjects::order(id)).await;
        if knows_no_leader(&last) {
            return self.proven(id).await;
        }
        let last = found(last)?;
        if let Some(StreamMessage { subject, sequence, headers, payload, .. }) = last
            && let found @ Latest::Order(_) =
                self.state(id, &subject, Revision(sequence), &headers, payload).await?
        {
            return Ok(found);
        }
        self.proven(id).await
    }

    /// The latest message on the order's subjects, proved.
    async fn proven(&self, id: &OrderId) -> Result<Latest, ReadError> {
        match self.barrier.last_of_each(&[subjects::order(id)]).await?.pop() {
            Some(Stored { subject, sequence, headers, payload }) => {
                self.state(id, &subject, sequence, &headers, payload).await
            }
            None => Ok(Latest::Vacant(Revision::NONE)),
        }
    }

    /// When the stream's leader stored the message at `sequence`, if it has one there.
    pub(super) async fn stored_at(&self, sequence: u64) -> Result<Option<SystemTime>, ReadError> {
        let message = found(self.stream.get_raw_message(sequence).await)?;
        Ok(message.map(|message| message.time.into()))
    }

    /// The order's events after `after`, oldest first. Any replica may answer, so the latest may be missing. A complete
    /// lack of events is proved.
    pub async fn history(&self, id: &OrderId, after: Revision) -> Result<Vec<Recorded>, ReadError> {
        let mut events = self.whole_history(id).await?;
        events.retain(|event| event.revision > after);
        Ok(events)
    }

    /// All of the order's events, oldest first.
    pub(super) async fn whole_history(&self, id: &OrderId) -> Result<Vec<Recorded>, ReadError> {
        let client = &self.connection.client;
        let stored = direct_get::last_of_each(client, ORDERS, &[subjects::order(id)]).await?;
        let events = self.complete(id, stored).await?;
        if events.is_empty() { self.whole_history_proven(id).await } else { Ok(events) }
    }

    /// All of the order's events, oldest first: none is missing that was acknowledged before this was called.
    pub(super) async fn whole_history_proven(&self, id: &OrderId) -> Result<Vec<Recorded>, ReadError> {
        let stored = self.barrier.last_of_each(&[subjects::order(id)]).await?;
        self.complete(id, stored).await
    }

    /// The order's events, of which some are the last ones on their subjects.
    async fn complete(&self, id: &OrderId, stored: Vec<Stored>) -> Result<Vec<Recorded>, ReadError> {
        let Some(last) = stored.last().map(|last| last.sequence) else { return Ok(Vec::new()) };
        match self.with_hidden(stored, Revision::NONE).await? {
            Some(events) => Ok(events),
            None => Ok(decode_all(self.all_reaching(id, last).await?)),
        }
    }

    /// The order's events, at least up to the one at `least`: an event that is missing here did not happen before that
    /// one.
    pub async fn history_reaching(&self, id: &OrderId, least: Revision) -> Result<Vec<Recorded>, ReadError> {
        for reads in 1..=REPLICA_READS_MAX {
            let history = self.history(id, Revision::NONE).await?;
            if history.last().is_some_and(|last| last.revision >= least) {
                return Ok(history);
            }
            sleep(REPLICA_PAUSE * reads).await;
        }
        Err(behind())
    }

    /// All messages on the order's subjects, by a replica that has the one at `least`.
    async fn all_reaching(&self, id: &OrderId, least: Revision) -> Result<Vec<Stored>, ReadError> {
        let filter = subjects::order(id);
        let stored = direct_get::all_from(&self.connection.client, ORDERS, &filter, Revision::NONE).await?;
        if stored.last().is_none_or(|last| last.sequence < least) { Err(behind()) } else { Ok(stored) }
    }

    /// Asks what there is. [`ReadError::Broker`] if there is no stream.
    pub async fn extent(&self) -> Result<LogInfo, ReadError> {
        direct_get::reachable(&self.connection.client)?;
        let info = info(&self.connection, ORDERS).await?;
        let (created, last) = (info.created.into(), Revision(info.state.last_sequence));
        Ok(LogInfo { created, last, state: StreamState::from(&info) })
    }

    /// The first message on `filter` from `from` on, from any replica. There is one at `known`: a replica that does not have
    /// it lags, and the next request may reach another.
    pub(super) async fn first_known(
        &self,
        filter: &str,
        from: Revision,
        known: Revision,
    ) -> Result<Option<Stored>, ReadError> {
        for reads in 1..=KNOWN_READS_MAX {
            let found = direct_get::first_from(&self.connection.client, ORDERS, filter, from).await?;
            if found.is_some() || from > known {
                return Ok(found);
            }
            sleep(KNOWN_PAUSE.after(reads)).await;
        }
        Err(behind())
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
        warn!(order_id = %id, sequence = head.0, error = %undecodable, "foreign message on an order's subject, skipped");
        let last = decode_all(self.all_reaching(id, head).await?).pop();
        Ok(last
            .map_or(Latest::Vacant(head), |last| Latest::Order(Box::new(OrderState { head, ..last.into() }))))
    }
}

/// Decodes the events; logs and skips those that cannot be decoded.
pub(super) fn decode_all(stored: Vec<Stored>) -> Vec<Recorded> {
    let decode = |stored: Stored| {
        Recorded::decode(&stored.subject, stored.sequence, Some(&stored.headers), stored.payload)
            .inspect_err(|error| {
                warn!(subject = %stored.subject, sequence = stored.sequence.0, %error, "foreign message, skipped");
            })
            .ok()
    };
    stored.into_iter().filter_map(decode).collect()
}

/// The replica that answered lags.
pub(super) fn behind() -> ReadError {
    ReadError::NoAnswer("the replica that answered lags".to_owned())
}

pub(super) fn read_error(error: &DirectGetError) -> ReadError {
    match error.kind() {
        DirectGetErrorKind::ErrorResponse(status, text) => ReadError::of(status, &text),
        DirectGetErrorKind::InvalidSubject => ReadError::Broker(error.to_string()),
        // NotFound proves nothing: the replica that answered may lag.
        DirectGetErrorKind::NotFound
        | DirectGetErrorKind::TimedOut
        | DirectGetErrorKind::Request
        | DirectGetErrorKind::Other => ReadError::NoAnswer(error.to_string()),
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
