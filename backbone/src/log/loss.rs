//! Whether events were lost between two samples of the log: pure.
//!
//! Waybill never deletes an event, and the broker only deletes events older than `max_age`. Any other missing event was
//! purged, deleted, or lost with the broker's store. STREAM.INFO shows that: the number of messages falls by more than
//! has expired, the sequence decreases, or the stream is another one.
//!
//! Barriers (`broker/barrier.rs`) expire after 10 s. The number that expired between two samples is known only as an
//! upper bound: the number of barriers at the first sample. So in a replicated log a removal of no more events than
//! that, a few dozen, is not detected. The count of a larger removal is too low by as many.

use std::time::{Duration, SystemTime};

/// Messages this close to their expiry count as expired, to allow for clock differences between servers.
pub(super) const EXPIRY_MARGIN: Duration = Duration::from_secs(60);
/// A barrier that was written after the last message of one sample has not expired when another one comes within this time.
const BARRIERS_KEPT: Duration = Duration::from_secs(9);

/// How the log was at one moment, by the broker's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LogSample {
    /// When it was observed.
    pub(super) at: SystemTime,
    /// When the stream was made.
    pub(super) created: SystemTime,
    /// Retention of messages; zero is forever.
    pub(super) max_age: Duration,
    pub(super) messages: u64,
    /// How many of the messages are barriers.
    pub(super) barriers: u64,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) first_time: SystemTime,
    pub(super) last_time: SystemTime,
    /// The first sequence that cannot expire within the margin, and when that was found out. `None`: not known.
    pub(super) unexpired: Option<UnexpiredRange>,
}

/// The part of the log that has not expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UnexpiredRange {
    pub(super) from: u64,
    /// Until then nothing from there on expires.
    pub(super) until: SystemTime,
}

/// What kind of loss it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossCause {
    /// The stream was deleted or its store was wiped, and it was recreated.
    Replaced,
    /// Messages were purged or deleted.
    Removed,
    /// The stream's last messages are gone, as after the return of an older copy of the store.
    RolledBack,
    /// Records outside of the log speak of events that it does not have.
    Missing,
}

impl LossCause {
    /// In words, for the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Replaced => "the stream was deleted or its storage was wiped, and it was recreated",
            Self::Removed => "events were purged or deleted",
            Self::RolledBack => "the last events are missing, as after an older storage was restored",
            Self::Missing => "other records name events that the log does not have",
        }
    }
}

/// Events that the log had and has no longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// What happened.
    pub cause: LossCause,
    /// How many are known to be lost. There may be more, written and lost between two samples.
    pub events: u64,
    /// They are among these sequences.
    pub sequences: (u64, u64),
    /// And were stored between these times.
    pub times: (SystemTime, SystemTime),
}

impl LogSample {
    /// The same with what was appended up to `sequence` since, and is known to be stored at the latest at `at`.
    pub(super) fn with_append(&self, sequence: u64, at: SystemTime) -> Self {
        if sequence <= self.last {
            return self.clone();
        }
        let first_time = if self.messages == 0 { self.at } else { self.first_time };
        let messages = self.messages + (sequence - self.last);
        Self { messages, last: sequence, first_time, last_time: at, ..self.clone() }
    }

    /// How many of the messages are events.
    pub(super) fn events(&self) -> u64 {
        self.messages.saturating_sub(self.barriers)
    }

    /// How long from now on none of the messages can expire, because the oldest is young enough.
    pub(super) fn expires_within(&self, margin: Duration) -> bool {
        let is_kept = |age: Duration| age + margin < self.max_age;
        !self.max_age.is_zero()
            && self.messages > 0
            && !self.at.duration_since(self.first_time).is_ok_and(is_kept)
    }

    /// The loss since `before`. A lower sequence is not judged here: a deposed leader that does not know it yet answers
    /// like that.
    pub(super) fn lost_since(&self, before: &Self) -> Option<Loss> {
        if self.created != before.created {
            return (before.events() > 0).then_some(Loss {
                cause: LossCause::Replaced,
                events: before.events(),
                sequences: (before.first, before.last),
                times: (before.first_time, before.last_time),
            });
        }
        if self.last < before.last {
            return None;
        }
        let removed = (before.messages + (self.last - before.last)).saturating_sub(self.messages);
        let barriers = self.barriers_expired_since(before);
        let events = removed.saturating_sub(self.expired_since(before) + barriers);
        // A removal from the front reaches up to the message that is now the first.
        let is_front =
            self.first > before.first && events + barriers >= removed.min(self.first - before.first);
        let to_time = if is_front && self.messages > 0 { self.first_time } else { before.last_time };
        let to = if is_front { self.first.saturating_sub(1) } else { before.last };
        (events > 0).then_some(Loss {
            cause: LossCause::Removed,
            events,
            sequences: (before.first, to.max(before.first)),
            times: (before.first_time, to_time),
        })
    }

    /// How many barriers may have expired since then, at the most.
    fn barriers_expired_since(&self, before: &Self) -> u64 {
        if before.barriers + self.barriers == 0 {
            return 0;
        }
        // A server that was cut off may have reported an old state.
        let apart = self.at.duration_since(before.last_time).unwrap_or_default();
        let written = if apart > BARRIERS_KEPT { self.last.saturating_sub(before.last) } else { 0 };
        before.barriers + written
    }

    /// How many messages may have expired since then, at the most.
    fn expired_since(&self, before: &Self) -> u64 {
        let from_front = self.first.saturating_sub(before.first);
        if self.max_age.is_zero() && before.max_age.is_zero() {
            return 0;
        }
        // An operator has changed the retention, perhaps to a shorter one.
        if self.max_age != before.max_age {
            return from_front;
        }
        match before.unexpired {
            Some(unexpired) if self.at <= unexpired.until => {
                unexpired.from.min(self.first).saturating_sub(before.first)
            }
            // Too long between the two observations. Only the age of the last message is known.
            Some(_) | None => {
                let age_of_last = self.at.duration_since(before.last_time).unwrap_or_default();
                let is_young = age_of_last + EXPIRY_MARGIN < self.max_age;
                if self.first > before.last && is_young { 0 } else { from_front }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(3600);

    fn at(s: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + s)
    }

    /// A log of one message a second since second 1, of which those before `first` are gone.
    fn sample(now: u64, first: u64) -> LogSample {
        LogSample {
            at: at(now),
            created: at(0),
            max_age: HOUR,
            messages: now + 1 - first,
            barriers: 0,
            first,
            last: now,
            first_time: at(first),
            last_time: at(now),
            unexpired: Some(UnexpiredRange { from: first, until: at(now) + EXPIRY_MARGIN }),
        }
    }

    #[test]
    fn appending_loses_nothing() {
        assert_eq!(sample(20, 1).lost_since(&sample(10, 1)), None);
        assert_eq!(sample(10, 1).lost_since(&sample(10, 1)), None);
    }

    #[test]
    fn a_purge_is_a_loss() {
        let lost = sample(434, 400).lost_since(&sample(434, 1)).unwrap();
        assert_eq!((lost.cause, lost.events, lost.sequences), (LossCause::Removed, 399, (1, 399)));
        assert_eq!(lost.times, (at(1), at(400)));
        let all = LogSample { messages: 0, first: 435, ..sample(434, 1) };
        let lost = all.lost_since(&sample(434, 1)).unwrap();
        assert_eq!((lost.events, lost.sequences, lost.times), (434, (1, 434), (at(1), at(434))));
    }

    #[test]
    fn a_deletion_in_the_middle_is_a_loss() {
        let holed = LogSample { messages: 96, ..sample(100, 1) };
        let lost = holed.lost_since(&sample(90, 1)).unwrap();
        assert_eq!((lost.cause, lost.events, lost.sequences), (LossCause::Removed, 4, (1, 90)));
        let same = LogSample { messages: 106, ..sample(110, 1) };
        assert_eq!(same.lost_since(&holed), None, "said once");
    }

    #[test]
    fn expired_barriers_are_no_loss() {
        let before = LogSample { barriers: 8, ..sample(100, 1) };
        let expired = LogSample { messages: 93, barriers: 3, ..sample(101, 1) };
        assert_eq!(expired.lost_since(&before), None);
        let purged = LogSample { messages: 42, barriers: 3, ..sample(101, 1) };
        let lost = purged.lost_since(&before).unwrap();
        assert_eq!((lost.cause, lost.events), (LossCause::Removed, 51));
        // Only barriers were written since.
        let later = LogSample { messages: 92, barriers: 1, ..sample(130, 1) };
        assert_eq!(later.lost_since(&before), None);
        // The first is the old state of a server that was cut off.
        let old = LogSample { at: at(111), ..before.clone() };
        let fresh = LogSample { messages: 97, barriers: 2, ..sample(112, 1) };
        assert_eq!(fresh.lost_since(&old), None);
        let replaced = LogSample { created: at(1), ..sample(1, 1) };
        assert_eq!(replaced.lost_since(&before).unwrap().events, 92);
    }

    #[test]
    fn expiry_is_no_loss() {
        let expiring =
            LogSample { unexpired: Some(UnexpiredRange { from: 70, until: at(3660) }), ..sample(3600, 1) };
        assert!(expiring.expires_within(EXPIRY_MARGIN) && !sample(100, 1).expires_within(EXPIRY_MARGIN));
        assert_eq!(sample(3650, 50).lost_since(&expiring), None);
        let lost = sample(3650, 1000).lost_since(&expiring).unwrap();
        assert_eq!(lost.events, 1000 - 70, "of those that could not expire");
    }

    #[test]
    fn distant_samples_only_prove_that_everything_is_gone() {
        let before = sample(3600, 1);
        assert_eq!(sample(5000, 1400).lost_since(&before), None);
        let empty = LogSample { messages: 0, first: 3601, last: 3600, ..sample(5000, 1) };
        assert_eq!(empty.lost_since(&before).unwrap().events, 3600);
        let after_all = LogSample { at: at(8000), ..empty };
        assert_eq!(after_all.lost_since(&before), None, "all of it was old enough");
    }

    #[test]
    fn another_retention_explains_removals() {
        let shorter = LogSample { max_age: S, ..sample(100, 99) };
        assert_eq!(shorter.lost_since(&sample(100, 1)), None);
        let for_ever = LogSample { max_age: Duration::ZERO, ..sample(100, 1) };
        let purged = LogSample { max_age: Duration::ZERO, ..sample(100, 99) };
        assert_eq!(purged.lost_since(&for_ever).unwrap().events, 98);
    }

    #[test]
    fn a_replaced_stream_has_lost_everything() {
        let new = LogSample { created: at(500), ..sample(0, 1) };
        let lost = new.lost_since(&sample(434, 35)).unwrap();
        assert_eq!((lost.cause, lost.events, lost.sequences), (LossCause::Replaced, 400, (35, 434)));
        assert_eq!(new.lost_since(&sample(0, 1)), None, "it held nothing");
    }

    #[test]
    fn events_appended_since_the_last_sample_are_lost_too() {
        let before = sample(10, 1).with_append(12, at(11));
        assert_eq!((before.messages, before.last_time), (12, at(11)));
        assert_eq!(sample(10, 1).with_append(9, at(11)), sample(10, 1), "seen before");
        let empty = LogSample { messages: 0, first: 1, last: 0, ..sample(0, 1) };
        assert_eq!(empty.with_append(3, at(1)).messages, 3);
    }

    proptest! {
        /// A reply of a deposed leader between two samples never counts as a loss.
        #[test]
        fn an_old_answer_is_no_loss(now in 1u64..1000, ago in 0u64..1000) {
            let (fresh, old) = (sample(now, 1), sample(now.saturating_sub(ago), 1));
            prop_assert_eq!(old.lost_since(&fresh), None);
            prop_assert_eq!(fresh.lost_since(&old), None);
        }

        #[test]
        fn each_message_that_is_removed_is_counted(now in 2u64..1000, removed in 1u64..1000) {
            let removed = removed.min(now);
            let after = LogSample { messages: now - removed, ..sample(now, 1) };
            prop_assert_eq!(after.lost_since(&sample(now, 1)).map(|loss| loss.events), Some(removed));
        }
    }
}
