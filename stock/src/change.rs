//! Stock that operators add, remove or set. Orders change the stock at the same time, so a change is relative, or names
//! the revision that it is based on. One batch contains the change and a record of its request, so that a retry finds
//! the result of the first call.

use std::time::Duration;

use backbone::broker::direct_get::ReadError;
use backbone::log::ids::Revision;
use data_encoding::HEXLOWER;
use program::backoff::Backoff;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::time::{Instant, sleep};

use crate::batch::{Batch, CommitError};
use crate::records::{parse_count, stock_key};
use crate::store::Store;

/// Most units of a SKU: what a client can say in JSON without losing digits.
pub const UNITS_MAX: u64 = 1_000_000_000_000;
/// How long a request may be retried.
const REQUEST_TTL: Duration = Duration::from_secs(7 * 24 * 60 * 60);
const REQUEST_KEY_BYTES: usize = 16;
const RETRY: Backoff = Backoff { initial: Duration::from_millis(20), max: Duration::from_secs(1) };

/// A change of a SKU's available units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// So many more.
    Add(u64),
    /// So many fewer, if there are as many.
    Remove(u64),
    /// So many, if nothing has changed since this revision; 0: the SKU does not exist.
    Set {
        /// Units.
        units: u64,
        /// The revision that the caller read.
        expected: u64,
    },
}

/// An operator's request.
#[derive(Clone, Debug)]
pub struct ChangeRequest {
    /// Identifies the request: a retry changes nothing.
    pub request_id: String,
    /// Whose units.
    pub sku: String,
    /// The change of the units.
    pub change: Change,
    /// The operator, for the record.
    pub operator: String,
}

/// The stock after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangeResult {
    /// Units available then.
    pub available: u64,
    /// Where that is written.
    pub revision: Revision,
    /// Whether an earlier request of the same name did it.
    pub is_repeat: bool,
}

/// A change that was not made.
#[derive(Debug, Error)]
pub enum ChangeError {
    /// The request's name belongs to another change.
    #[error("the request_id belongs to another change")]
    RequestIdReused,
    /// Fewer units are available than are to be removed.
    #[error("only {available} available")]
    TooFew {
        /// How many there are.
        available: u64,
    },
    /// There would be more than [`UNITS_MAX`].
    #[error("{available} available; the maximum is {UNITS_MAX}")]
    TooMany {
        /// How many there are.
        available: u64,
    },
    /// The stock has changed since the revision that was named.
    #[error("the stock is at revision {revision}")]
    Stale {
        /// Where it is.
        revision: Revision,
        /// How much it is, if that can be read.
        available: Option<u64>,
    },
    /// The count cannot be read, so nothing can be added to it.
    #[error("the count at revision {revision} cannot be read")]
    Unreadable {
        /// Where it is.
        revision: Revision,
    },
    /// The broker has no space; nothing was changed.
    #[error("no storage space: {0}")]
    Full(String),
    /// The broker refuses the change for a reason that stays; nothing was changed.
    #[error("the broker rejected the change: {0}")]
    Refused(String),
    /// Nothing was changed.
    #[error("nothing was changed: {0}")]
    Unavailable(String),
    /// Unknown; a retry shows the outcome.
    #[error("outcome unknown, the change was not acknowledged in time: {0}")]
    Unknown(String),
}

/// The record of a change.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    sku: String,
    change: Change,
    /// Units after it.
    available: u64,
    operator: String,
}

impl Store {
    /// Changes a SKU's stock, once.
    pub async fn change(
        &self,
        request: &ChangeRequest,
        deadline: Instant,
    ) -> Result<ChangeResult, ChangeError> {
        // Set once an earlier attempt may have been stored.
        let mut unknown: Option<String> = None;
        let mut overtaken = false;
        for attempts in 1.. {
            let failed = match self.try_change(request, overtaken).await {
                Ok(decided) => return decided,
                Err(failed) => failed,
            };
            overtaken = matches!(failed, AttemptError::Overtaken);
            let pause = match failed {
                AttemptError::Overtaken => Duration::ZERO,
                AttemptError::Unknown(error) => {
                    unknown = Some(error);
                    RETRY.after(attempts)
                }
                AttemptError::Nothing(error) => {
                    if Instant::now() + RETRY.after(attempts) >= deadline {
                        return Err(unknown.map_or(ChangeError::Unavailable(error), ChangeError::Unknown));
                    }
                    RETRY.after(attempts)
                }
            };
            if Instant::now() + pause >= deadline {
                let reason = "too many concurrent changes".to_owned();
                return Err(unknown.map_or(ChangeError::Unavailable(reason), ChangeError::Unknown));
            }
            sleep(pause).await;
        }
        Err(ChangeError::Unavailable("no attempt".to_owned()))
    }

    /// Reads, decides and commits. Inventory keeps writing the count of a SKU in demand, from its cache, and would
    /// always be first. So a change that was `overtaken` writes the same count again, which is quick; while inventory
    /// reads it, the batch is committed.
    async fn try_change(
        &self,
        request: &ChangeRequest,
        overtaken: bool,
    ) -> Result<Result<ChangeResult, ChangeError>, AttemptError> {
        if !self.connection.is_up() {
            return Err(AttemptError::Nothing("broker unavailable".to_owned()));
        }
        let (sku, change) = (&request.sku, request.change);
        let (stock, made) = (stock_key(sku), request_key(&request.request_id));
        let mut records = self.read_proven(&[stock.clone(), made.clone()]).await?;
        let made_before = records.remove(&made);
        if let Some(record) = made_before.as_ref().filter(|record| !record.value.is_empty()) {
            let before: Option<Record> = serde_json::from_slice(&record.value).ok();
            let before = before.filter(|before| before.sku == *sku && before.change == change);
            // The batch is atomic, so the count is stored directly before its record.
            let revision = Revision(record.revision.0.saturating_sub(1));
            let changed =
                |before: Record| ChangeResult { available: before.available, revision, is_repeat: true };
            return Ok(before.map(changed).ok_or(ChangeError::RequestIdReused));
        }
        let present = records.remove(&stock);
        let mut revision = present.as_ref().map_or(Revision::NONE, |present| present.revision);
        let seen = revision;
        let count = present.as_ref().map_or(Some(0), |present| parse_count(&present.value));
        let available = match decide(change, count, seen) {
            Ok(available) => available,
            Err(error) => return Ok(Err(error)),
        };
        let is_set = matches!(change, Change::Set { .. });
        if let Some(present) = present.filter(|_| overtaken && !is_set) {
            let touch = self.write(&stock, present.value.into(), revision);
            revision = match self.put(touch).await {
                Ok(revision) => revision,
                Err(CommitError::Conflict) => return Err(AttemptError::Overtaken),
                Err(CommitError::Full(error)) => return Ok(Err(ChangeError::Full(error))),
                Err(CommitError::Permanent(error)) => return Ok(Err(ChangeError::Refused(error))),
                // The touch changes no count, so an unknown outcome is harmless.
                Err(CommitError::Unknown(error)) => return Err(AttemptError::Nothing(error)),
            };
        }
        let record = Record { sku: sku.clone(), change, available, operator: request.operator.clone() };
        // Cannot fail: only strings and numbers.
        let record = serde_json::to_vec(&record).unwrap_or_default();
        let mut batch = Batch::default();
        batch.write(self.stock_write(sku, available, revision));
        let expected = made_before.map_or(Revision::NONE, |record| record.revision);
        let mut write = self.write(&made, record.into(), expected);
        write.ttl = Some(REQUEST_TTL);
        batch.write(write);
        match self.commit(batch).await {
            Ok(revisions) => {
                let revision = revisions.first().copied().unwrap_or(revision);
                Ok(Ok(ChangeResult { available, revision, is_repeat: false }))
            }
            Err(CommitError::Conflict) => Err(AttemptError::Overtaken),
            Err(CommitError::Full(error)) => Ok(Err(ChangeError::Full(error))),
            Err(CommitError::Permanent(error)) => Ok(Err(ChangeError::Refused(error))),
            Err(CommitError::Unknown(error)) => Err(AttemptError::Unknown(error)),
        }
    }
}

/// Why one try decided nothing.
enum AttemptError {
    /// Another writer has changed the stock, or made the same request.
    Overtaken,
    /// Nothing was sent.
    Nothing(String),
    /// Perhaps committed.
    Unknown(String),
}

impl From<ReadError> for AttemptError {
    fn from(error: ReadError) -> Self {
        Self::Nothing(error.to_string())
    }
}

/// How many units there are then, of a SKU that has `count` at `revision`; `None`: the count cannot be read.
fn decide(change: Change, count: Option<u64>, revision: Revision) -> Result<u64, ChangeError> {
    match (change, count) {
        (Change::Set { units, expected }, _) if Revision(expected) == revision => Ok(units),
        (Change::Set { .. }, available) => Err(ChangeError::Stale { revision, available }),
        (Change::Add(_) | Change::Remove(_), None) => Err(ChangeError::Unreadable { revision }),
        (Change::Add(units), Some(available)) => {
            let sum = available.checked_add(units).filter(|sum| *sum <= UNITS_MAX);
            sum.ok_or(ChangeError::TooMany { available })
        }
        (Change::Remove(units), Some(available)) => {
            available.checked_sub(units).ok_or(ChangeError::TooFew { available })
        }
    }
}

fn request_key(request_id: &str) -> String {
    let digest = Sha256::digest(request_id);
    format!("change.{}", HEXLOWER.encode(&digest[..REQUEST_KEY_BYTES]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_relative_or_names_what_it_saw() {
        let at = Revision(7);
        assert_eq!(decide(Change::Add(50), Some(100), at).ok(), Some(150));
        assert_eq!(decide(Change::Remove(100), Some(100), at).ok(), Some(0));
        let too_few = decide(Change::Remove(101), Some(100), at);
        assert!(matches!(too_few, Err(ChangeError::TooFew { available: 100 })), "{too_few:?}");
        let set = |expected| Change::Set { units: 5, expected };
        assert_eq!(decide(set(7), Some(100), at).ok(), Some(5));
        assert_eq!(decide(set(7), None, at).ok(), Some(5), "what cannot be read can be set");
        assert_eq!(decide(set(0), Some(0), Revision::NONE).ok(), Some(5));
        assert!(matches!(decide(set(6), Some(100), at), Err(ChangeError::Stale { .. })));
        assert!(matches!(decide(Change::Add(1), None, at), Err(ChangeError::Unreadable { .. })));
        let most = decide(Change::Add(1), Some(UNITS_MAX), at);
        assert!(matches!(most, Err(ChangeError::TooMany { .. })), "{most:?}");
    }

    #[test]
    fn a_request_is_one_key_of_the_bucket() {
        let key = request_key("weekly delivery > 7.*");
        assert!(key.starts_with("change.") && key.len() == 7 + 2 * REQUEST_KEY_BYTES);
        assert!(key.chars().all(|c| c.is_ascii_alphanumeric() || c == '.'), "{key}");
    }
}
