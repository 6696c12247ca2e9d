//! Atomic batches (NATS ADR-50): several writes to one stream, each with its own expectation, all stored or
//! none.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::client::PublishErrorKind;
use async_nats::jetstream::context::PublishError;
use backbone::broker::connection::Connection;
use backbone::broker::error_class::{ErrorClass, PublishFailure, publish_failure};
use backbone::broker::unanswered::{DISCARDS_MESSAGES, discards_messages};
use backbone::log::ids::Revision;
use bytes::Bytes;
use thiserror::Error;
use uuid::Uuid;

use crate::records::{STREAM, TTL};

/// Most writes of one batch; the server's own limit.
pub const WRITES_MAX: usize = 1000;

/// One write of a batch.
#[derive(Debug)]
pub struct Write {
    /// The subject that it is stored on.
    pub subject: String,
    /// The stored value.
    pub value: Bytes,
    /// Sequence of the last message on the subject.
    pub expected: Revision,
    /// When the value expires, if it does.
    pub ttl: Option<Duration>,
}

/// Writes that belong together. No two may have the same subject.
#[derive(Debug, Default)]
pub struct Batch(Vec<Write>);

/// Why a batch was not committed.
#[derive(Debug, Error)]
pub enum CommitError {
    /// A record was not as expected; nothing was stored.
    #[error("a record was changed concurrently")]
    Conflict,
    /// The broker has no space.
    #[error("no storage space: {0}")]
    Full(String),
    /// A write is larger than the broker takes, or refused for another reason that stays; nothing was stored.
    #[error("the broker rejected a record: {0}")]
    Permanent(String),
    /// Perhaps committed, perhaps not; reading the records shows which.
    #[error("no answer: {0}")]
    Unknown(String),
}

impl Batch {
    /// Adds a write.
    pub fn write(&mut self, write: Write) {
        self.0.push(write);
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sends the batch; returns the revision of each write, in their order.
    pub async fn commit(self, connection: &Connection) -> Result<Vec<Revision>, CommitError> {
        let storage = connection.storage();
        storage.admit(STREAM).map_err(CommitError::Full)?;
        let connects = *connection.connects().borrow();
        let subject = self.0.first().map(|write| write.subject.clone()).unwrap_or_default();
        let mut committed = self.send(connection).await;
        if let Err(CommitError::Unknown(_)) = &committed
            && connection.is_up()
            && discards_messages(connection, subject, connects).await
        {
            committed = Err(CommitError::Full(DISCARDS_MESSAGES.to_owned()));
        }
        match &committed {
            Ok(_) => storage.found_space(STREAM),
            Err(CommitError::Full(reason)) => storage.found_full(STREAM, reason),
            Err(CommitError::Conflict) => storage.found_conflict(STREAM),
            Err(CommitError::Permanent(_) | CommitError::Unknown(_)) => storage.found_nothing(STREAM),
        }
        committed
    }

    async fn send(self, connection: &Connection) -> Result<Vec<Revision>, CommitError> {
        let (jetstream, client) = (connection.jetstream(), connection.jetstream().client());
        let batch_id = Uuid::now_v7().simple().to_string();
        let count = self.0.len();
        for (i, write) in self.0.into_iter().enumerate() {
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Batch-Id", batch_id.as_str());
            headers.insert("Nats-Batch-Sequence", (i + 1).to_string());
            headers.insert("Nats-Expected-Last-Subject-Sequence", write.expected.to_string());
            if let Some(ttl) = write.ttl {
                headers.insert(TTL, format!("{}s", ttl.as_secs()));
            }
            if i + 1 < count {
                let sent = client.publish_with_headers(write.subject, headers, write.value).await;
                sent.map_err(|error| match error.kind() {
                    PublishErrorKind::MaxPayloadExceeded => CommitError::Permanent(error.to_string()),
                    PublishErrorKind::InvalidSubject | PublishErrorKind::Send => {
                        CommitError::Unknown(error.to_string())
                    }
                })?;
                continue;
            }
            headers.insert("Nats-Batch-Commit", "1");
            let ack =
                async { jetstream.publish_with_headers(write.subject, headers, write.value).await?.await };
            // The batch is atomic, and its acknowledgement has the sequence of the last message.
            let last = ack.await.map_err(|error| commit_error(&error))?.sequence;
            let first = last + 1 - count as u64;
            return Ok((first..=last).map(Revision).collect());
        }
        Ok(Vec::new())
    }
}

impl Write {
    /// Sends this write alone, which is faster than a batch; returns its revision.
    pub async fn put(self, connection: &Connection) -> Result<Revision, CommitError> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", self.expected.to_string());
        if let Some(ttl) = self.ttl {
            headers.insert(TTL, format!("{}s", ttl.as_secs()));
        }
        let jetstream = connection.jetstream();
        let ack = async { jetstream.publish_with_headers(self.subject, headers, self.value).await?.await };
        let ack = ack.await.map_err(|error| commit_error(&error))?;
        Ok(Revision(ack.sequence))
    }
}

fn commit_error(error: &PublishError) -> CommitError {
    match publish_failure(error) {
        PublishFailure::Refused(ErrorClass::Conflict) => CommitError::Conflict,
        PublishFailure::Refused(ErrorClass::Full) => CommitError::Full(error.to_string()),
        PublishFailure::Refused(ErrorClass::TooLarge | ErrorClass::Permanent) => {
            CommitError::Permanent(error.to_string())
        }
        PublishFailure::Refused(ErrorClass::Transient) | PublishFailure::Unanswered => {
            CommitError::Unknown(error.to_string())
        }
    }
}
