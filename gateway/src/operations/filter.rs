//! The selection of open dead letters of a call, and the tokens of its pages.

use std::time::{Duration, SystemTime};

use backbone::log::ids::Revision;
use prost_types::Timestamp;
use proto::operations::v1::DeadLetter;
use sha2::{Digest, Sha256};

use crate::page_token;

const TOKEN_HASH_BYTES: usize = 8;

/// The selected open dead letters.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    pub(super) step: String,
    pub(super) fingerprint: String,
    pub(super) older_than: Duration,
}

impl Filter {
    /// The step, if only its dead letters are selected.
    pub(super) fn step(&self) -> Option<&str> {
        (!self.step.is_empty()).then_some(&self.step)
    }

    pub(super) fn matches(&self, letter: &DeadLetter, now: SystemTime) -> bool {
        let age = now.duration_since(time_of(letter.create_time)).unwrap_or_default();
        (self.step.is_empty() || self.step == letter.step)
            && (self.fingerprint.is_empty() || self.fingerprint == letter.fingerprint)
            && age >= self.older_than
    }

    /// The token of the page that begins at `next`.
    pub(super) fn token(&self, next: Revision) -> String {
        page_token::encode(next, &self.name())
    }

    /// Where a page begins, by a token of this filter.
    pub(super) fn parse(&self, token: &str) -> Option<Revision> {
        page_token::decode(token, &self.name())
    }

    fn name(&self) -> [u8; TOKEN_HASH_BYTES] {
        let text = format!("{} {} {:?}", self.step, self.fingerprint, self.older_than);
        let digest = Sha256::digest(text);
        std::array::from_fn(|i| digest[i])
    }
}

/// The age of a dead letter counts from its creation.
fn time_of(timestamp: Option<Timestamp>) -> SystemTime {
    timestamp.and_then(|time| SystemTime::try_from(time).ok()).unwrap_or(SystemTime::UNIX_EPOCH)
}
