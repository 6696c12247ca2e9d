//! Whether open dead letters were lost: their stream deleted, purged, or gone with the broker's store.

use std::time::SystemTime;

use backbone::broker::streams::DEAD_LETTERS;
use backbone::log::loss_acknowledged;
use tracing::error;

/// The last known state of the dead letters. Kept while they cannot be read.
#[derive(Debug, Default)]
pub(crate) struct LostLetters {
    before: Option<Observation>,
    /// The stream was missing at the last check.
    is_missing: bool,
    lost: u64,
    noticed: Option<SystemTime>,
}

#[derive(Clone, Copy, Debug)]
struct Observation {
    created: SystemTime,
    open: u64,
}

impl LostLetters {
    /// The stream, created at `created`, has this many open dead letters, or no dead letter in any state.
    pub(crate) fn found(&mut self, created: SystemTime, open: u64, is_empty: bool) {
        self.is_missing = false;
        let before = self.before.replace(Observation { created, open });
        let Some(before) = before.filter(|before| before.open > 0) else { return };
        // Resolved letters are kept for weeks, so an empty stream has lost them.
        if before.created == created && !is_empty {
            return;
        }
        let letters = before.open;
        error!(
            letters,
            "stream {DEAD_LETTERS} has lost open dead letters; their orders are FAILED and cannot be redriven"
        );
        self.lost += letters;
        self.noticed = Some(SystemTime::now());
    }

    /// The stream could not be read. Returns whether it is time to recreate it, if it is missing.
    pub(crate) fn not_found(&mut self) -> bool {
        std::mem::replace(&mut self.is_missing, true)
    }

    /// Open dead letters that were lost and that no operator has acknowledged.
    pub(crate) fn unacknowledged(&self) -> u64 {
        let is_acknowledged =
            self.noticed.is_none_or(|noticed| loss_acknowledged().is_some_and(|at| at >= noticed));
        if is_acknowledged { 0 } else { self.lost }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn letters_that_are_resolved_are_not_lost() {
        let mut letters = LostLetters::default();
        letters.found(at(1), 3, false);
        letters.found(at(1), 0, false);
        letters.found(at(1), 0, true);
        letters.found(at(2), 0, true);
        assert_eq!(letters.unacknowledged(), 0);
    }

    #[test]
    fn open_letters_of_a_recreated_or_emptied_stream_are_lost() {
        let mut letters = LostLetters::default();
        letters.found(at(1), 3, false);
        assert!(!letters.not_found() && letters.not_found(), "at the second look");
        letters.found(at(2), 0, true);
        assert_eq!(letters.unacknowledged(), 3);
        letters.found(at(2), 2, false);
        letters.found(at(2), 0, true);
        assert_eq!(letters.unacknowledged(), 5);
    }
}
