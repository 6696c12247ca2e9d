//! The names of dead letters.

use std::fmt;
use std::str::FromStr;

use proto::operations::v1::DeadLetterState;
use thiserror::Error;

use crate::log::ids::Revision;
use crate::log::subjects::is_step_name;

/// The subjects that belong to dead letters: `DEAD_LETTER.<state>.<step>.<sequence>`.
pub const ALL_DEAD_LETTERS: &str = "DEAD_LETTER.>";
/// All dead letters and records of attempts.
pub(super) const ALL_LETTERS: &str = "DEAD_LETTER.*.*.*";

/// Identifies a dead letter: the step that gave up, and the sequence of the message in the order log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LetterId {
    step: String,
    sequence: Revision,
}

/// A text that is not the id of a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a dead_letter_id is the name of a step, '-', and a sequence, such as inventory-42")]
pub struct MalformedLetterId;

impl LetterId {
    /// The dead letter of `step` about the message at `sequence`.
    pub fn new(step: &str, sequence: Revision) -> Result<Self, MalformedLetterId> {
        if !is_step_name(step) || sequence == Revision::NONE {
            return Err(MalformedLetterId);
        }
        Ok(Self { step: step.to_owned(), sequence })
    }

    /// The step that owns the dead letter.
    pub fn step(&self) -> &str {
        &self.step
    }

    /// Which message it is about.
    pub fn sequence(&self) -> Revision {
        self.sequence
    }

    /// The subject of the dead letter in one of its states.
    pub(super) fn subject(&self, state: DeadLetterState) -> String {
        format!("DEAD_LETTER.{}.{}.{}", word(state), self.step, self.sequence)
    }

    /// Filter that matches the dead letter in every state.
    pub(super) fn filter(&self) -> String {
        format!("DEAD_LETTER.*.{}.{}", self.step, self.sequence)
    }
}

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.step, self.sequence)
    }
}

impl FromStr for LetterId {
    type Err = MalformedLetterId;

    fn from_str(text: &str) -> Result<Self, MalformedLetterId> {
        let (step, sequence) = text.rsplit_once('-').ok_or(MalformedLetterId)?;
        let number: u64 = sequence.parse().map_err(|_| MalformedLetterId)?;
        // Each dead letter has exactly one text: no leading zeros or plus sign.
        if number.to_string() != sequence {
            return Err(MalformedLetterId);
        }
        Self::new(step, Revision(number))
    }
}

/// All open dead letters, of all steps or of one.
pub(super) fn open(step: Option<&str>) -> String {
    format!("DEAD_LETTER.{}.{}.*", word(DeadLetterState::Open), step.unwrap_or("*"))
}

/// All dead letters in one state.
pub(super) fn all_in(state: DeadLetterState) -> String {
    format!("DEAD_LETTER.{}.>", word(state))
}

/// The word for a state in a subject. Before a dead letter exists there is a record of attempts.
fn word(state: DeadLetterState) -> &'static str {
    match state {
        DeadLetterState::Unspecified => "attempts",
        DeadLetterState::Open => "open",
        DeadLetterState::Redriven => "redriven",
        DeadLetterState::Discarded => "discarded",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_id_reads_back_as_itself(step in "[a-z][a-z0-9-]{0,31}", sequence in 1u64..) {
            let id = LetterId::new(&step, Revision(sequence)).unwrap();
            prop_assert_eq!(id.to_string().parse(), Ok(id));
        }

        #[test]
        fn only_the_canonical_text_is_an_id(text in "\\PC{0,40}|[a-z*.>-]{1,8}-[0-9+]{1,4}") {
            if let Ok(id) = text.parse::<LetterId>() {
                prop_assert_eq!(id.to_string(), text);
                prop_assert_eq!(id.filter().split('.').count(), 4);
            }
        }
    }
}
