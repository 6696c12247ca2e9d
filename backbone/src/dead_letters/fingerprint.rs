//! The fingerprint that dead letters of one cause share.

use data_encoding::HEXLOWER;
use proto::operations::v1::DeadLetterReason;
use sha2::{Digest, Sha256};

const FINGERPRINT_BYTES: usize = 6;
/// Words as long as this name something, and do not say what happened to it.
const WORD_CHARS_MAX: usize = 15;

/// A short hash of step, reason and error, in which numbers and ids do not count: 12 hexadecimal digits.
pub fn fingerprint(step: &str, reason: DeadLetterReason, error: &str) -> String {
    let mut hash = Sha256::new();
    for part in [step, reason.as_str_name(), &without_names(error)] {
        hash.update(part);
        hash.update([0]);
    }
    HEXLOWER.encode(&hash.finalize()[..FINGERPRINT_BYTES])
}

/// The text with every word that has a digit in it, or is too long for a word, made the same.
fn without_names(text: &str) -> String {
    let mut words = Vec::new();
    for word in text.split(|c: char| !c.is_alphanumeric()) {
        let named = word.contains(|c: char| c.is_ascii_digit()) || word.chars().count() > WORD_CHARS_MAX;
        words.push(if named { "#" } else { word });
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use DeadLetterReason::{RetriesExhausted, Undecodable};

    fn of(error: &str) -> String {
        fingerprint("inventory", RetriesExhausted, error)
    }

    #[test]
    fn numbers_and_ids_do_not_count() {
        let first = of("order vmsiot3cpmafjant-abcdefghijklmnopqrstuvwxyz: 3 wanted, 2 available");
        let second = of("order aaaaaaaaaaaaaaaa-3isgv5ekudwcflhkyy2v6cpqsu: 17 wanted, 0 available");
        assert_eq!(first, second);
        assert_eq!(first.len(), 12);
    }

    #[test]
    fn another_step_reason_or_cause_is_another_fingerprint() {
        let first = of("the attempt panicked");
        assert_ne!(first, of("the attempt took longer than 30s"));
        assert_ne!(first, fingerprint("payment", RetriesExhausted, "the attempt panicked"));
        assert_ne!(first, fingerprint("inventory", Undecodable, "the attempt panicked"));
    }
}
