//! The backlog of a step: the messages that its consumer has not acknowledged, and the age of the oldest.

use std::time::SystemTime;

use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::context::ConsumerInfoErrorKind;

use super::OrderLog;
use crate::broker::direct_get::{self, ReadError, Stored};
use crate::broker::streams::ORDERS;
use crate::log::event::stored;
use crate::log::ids::Revision;
use crate::log::subjects;

/// The messages that a consumer has not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Not delivered yet.
    pub pending: u64,
    /// Delivered, and not acknowledged: worked on, or waiting for a further attempt.
    pub ack_pending: u64,
    /// When the oldest of all these was stored; `None` if there are none.
    pub oldest: Option<SystemTime>,
}

impl OrderLog {
    /// The backlog of a consumer of the log, asked now. A leader that lags (`lags`) does not know what is pending, so it is
    /// counted.
    pub async fn backlog_of(&self, consumer: &str, lags: bool) -> Result<Backlog, ReadError> {
        direct_get::reachable(&self.connection.client)?;
        let info = self.stream.consumer_info(consumer).await;
        let info = &info.map_err(|error| ReadError::NoAnswer(error.to_string()))?;
        let pending = if lags { self.unseen_by(info).await?.max(info.num_pending) } else { info.num_pending };
        let ack_pending = info.num_ack_pending as u64;
        let mut backlog = Backlog { pending, ack_pending, oldest: None };
        if pending == 0 && ack_pending == 0 {
            return Ok(backlog);
        }
        // Everything up to the ack floor is acknowledged, so the consumer's first message after it is not. The floor of an idle
        // consumer stays where it was, and the position that the consumer has reached does not.
        let acknowledged = if ack_pending > 0 { &info.ack_floor } else { &info.delivered };
        let from = Revision(acknowledged.stream_sequence.saturating_add(1));
        let mut oldest: Option<Stored> = None;
        for filter in filters(info) {
            let found = self.first_for(filter, from).await?;
            oldest = match (oldest, found) {
                (Some(one), Some(other)) if one.sequence <= other.sequence => Some(one),
                (one, other) => other.or(one),
            };
        }
        backlog.oldest = oldest.and_then(|oldest| stored(&oldest.headers));
        match backlog.oldest {
            Some(_) => Ok(backlog),
            // The replica lags, or the message has just expired or been deleted.
            None => Err(ReadError::NoAnswer("the consumer's oldest message was not found".to_owned())),
        }
    }

    /// The first message for a step from `from` on. From the beginning of the stream on, the broker would visit every
    /// subject there is, to find out where to begin. So the first message is read by itself.
    async fn first_for(&self, filter: &str, from: Revision) -> Result<Option<Stored>, ReadError> {
        let client = &self.connection.client;
        let first = Revision(1);
        if from <= first {
            let found = direct_get::at(client, ORDERS, first).await?;
            if let Some(found) = found.filter(|found| subjects::matches(filter, &found.subject)) {
                return Ok(Some(found));
            }
        }
        direct_get::first_from(client, ORDERS, filter, from.max(Revision(2))).await
    }

    /// Whether the log has a consumer of this name.
    pub async fn has_consumer(&self, consumer: &str) -> Result<bool, ReadError> {
        direct_get::reachable(&self.connection.client)?;
        match self.stream.consumer_info(consumer).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => Ok(false),
            Err(error) => Err(ReadError::NoAnswer(error.to_string())),
        }
    }

    /// How many messages for the consumer come after its position.
    async fn unseen_by(&self, info: &Info) -> Result<u64, ReadError> {
        let from = Revision(info.delivered.stream_sequence.saturating_add(1));
        let mut unseen = 0;
        for filter in filters(info) {
            unseen += direct_get::batch_from(&self.connection.client, ORDERS, filter, from, 1).await?.total();
        }
        Ok(unseen)
    }
}

pub(super) fn filters(info: &Info) -> Vec<&str> {
    let config = &info.config;
    let several = config.filter_subjects.iter().map(String::as_str);
    let one = Some(config.filter_subject.as_str()).filter(|filter| !filter.is_empty());
    several.chain(one).collect()
}
