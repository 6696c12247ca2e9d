//! Makes a dead letter fit into one message of the broker by cutting off less important parts, which the dead letter
//! reports.

use proto::operations::v1::DeadLetter;

/// What a text ends with that was cut off.
const CUT_OFF: &str = "… (cut off)";

/// How much is cut off a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// Nothing.
    Nothing,
    /// The message that the dead letter is about, which is stored in stream ORDERS.
    Content,
    /// And all of each attempt's error but so many characters.
    Errors(usize),
}

impl Cut {
    /// Ever more.
    pub(super) const ALL: [Self; 5] =
        [Self::Nothing, Self::Content, Self::Errors(128), Self::Errors(32), Self::MOST];
    /// As much as can be.
    pub(super) const MOST: Self = Self::Errors(1);

    /// Cuts so much off.
    pub(super) fn apply(self, letter: &mut DeadLetter) {
        match self {
            Self::Nothing => {}
            Self::Content => omit_content(letter),
            Self::Errors(chars) => {
                omit_content(letter);
                for attempt in &mut letter.attempts {
                    cut_off(&mut attempt.error, chars);
                }
            }
        }
    }
}

fn omit_content(letter: &mut DeadLetter) {
    // A record of attempts has none to begin with.
    if !letter.headers.is_empty() || !letter.payload.is_empty() {
        letter.headers = Vec::new();
        letter.payload = Vec::new();
        letter.content_omitted = true;
    }
}

fn cut_off(text: &mut String, chars: usize) {
    let kept = text.strip_suffix(CUT_OFF).unwrap_or(text);
    if let Some((end, _)) = kept.char_indices().nth(chars) {
        *text = kept[..end].to_owned() + CUT_OFF;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use proto::operations::v1::{Attempt, Header};

    fn letter(attempts: usize) -> DeadLetter {
        let attempt = Attempt { error: "ä".repeat(512), ..Attempt::default() };
        DeadLetter {
            payload: vec![0; 20_000],
            headers: vec![Header { name: "ce-id".to_owned(), value: "x".repeat(100) }],
            attempts: vec![attempt; attempts],
            ..DeadLetter::default()
        }
    }

    #[test]
    fn each_cut_is_smaller_and_keeps_the_attempts() {
        let mut bytes = usize::MAX;
        let mut letter = letter(100);
        for cut in Cut::ALL {
            cut.apply(&mut letter);
            assert!(letter.encoded_len() < bytes, "{cut:?}");
            bytes = letter.encoded_len();
            assert_eq!(letter.attempts.len(), 100);
            // An attempt without an error is one that has not ended.
            assert!(letter.attempts.iter().all(|attempt| !attempt.error.is_empty()));
            assert_eq!(letter.content_omitted, cut != Cut::Nothing);
        }
        assert!(bytes < 4096, "{bytes}");
        assert_eq!(letter.attempts[0].error, "ä… (cut off)");
    }

    #[test]
    fn a_short_record_is_not_cut() {
        let attempt = Attempt { error: "short".to_owned(), ..Attempt::default() };
        let record = DeadLetter { attempts: vec![attempt, Attempt::default()], ..DeadLetter::default() };
        let mut cut = record.clone();
        Cut::Errors(32).apply(&mut cut);
        assert_eq!(cut, record);
    }
}
