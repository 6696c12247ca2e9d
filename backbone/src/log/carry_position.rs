//! How far carrying has come, and which program carries: one record, written by compare-and-set.

use std::time::{Duration, SystemTime};

use async_nats::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;
use tracing::warn;

use super::OrderLog;
use crate::broker::direct_get::ReadError;
use crate::broker::leader_get;
use crate::broker::publish::{Outcome, publish};
use crate::broker::streams::DEAD_LETTERS;
use crate::log::carrying::Schedule;
use crate::log::ids::Revision;

/// Beside the floors of the consumers, in the stream that keeps one message a subject.
const SUBJECT: &str = "DEAD_LETTER.carrier";
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

/// How far carrying has come. If the record is lost, the log is read from its beginning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarryPosition {
    /// When the log was created. The record does not apply to another log.
    pub log_created: SystemTime,
    /// The first message that was not examined.
    pub next: u64,
    /// The time up to which all stored messages were examined.
    pub until: SystemTime,
    /// The schedule that holds.
    pub schedule: Schedule,
    /// The program that carries, by a name that it generated.
    pub holder: String,
}

impl OrderLog {
    /// The record and its position.
    pub async fn carry_position(&self) -> Result<(Option<CarryPosition>, Revision), ReadError> {
        let record = leader_get::last(&self.connection, DEAD_LETTERS, SUBJECT).await?;
        let Some(record) = record else { return Ok((None, Revision::NONE)) };
        let position = serde_json::from_slice(&record.payload).inspect_err(|error| {
            warn!(subject = SUBJECT, %error, "foreign message in place of the carry position, skipped");
        });
        Ok((position.ok(), record.sequence))
    }

    /// Records a position in the place of the one at `expected`. `None` if another program was first, or the broker is
    /// unavailable.
    pub async fn record_carry_position(
        &self,
        position: &CarryPosition,
        expected: Revision,
    ) -> Option<Revision> {
        let record = json!(position).to_string();
        let expectation = Some((SUBJECT.to_owned(), expected));
        let deadline = Instant::now() + PUBLISH_TIMEOUT;
        let (subject, headers) = (SUBJECT.to_owned(), HeaderMap::new());
        let published =
            publish(&self.connection, DEAD_LETTERS, subject, headers, record.into(), expectation, deadline);
        match published.await {
            Outcome::Stored(revision) => Some(revision),
            Outcome::Conflict => None,
            Outcome::Unavailable(error)
            | Outcome::Full(error)
            | Outcome::TooLarge(error)
            | Outcome::Permanent(error)
            | Outcome::Unknown(error) => {
                warn!(error, "carry position not recorded");
                None
            }
        }
    }
}
