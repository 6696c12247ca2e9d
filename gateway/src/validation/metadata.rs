//! The rules of metadata: of an order, and of an item.

use std::collections::BTreeMap;

use super::violations::{Violations, is_short_text};

/// Longest key, in characters.
const KEY_CHARS_MAX: usize = 40;
/// Longest value, in characters.
const VALUE_CHARS_MAX: usize = 500;

impl Violations {
    /// A value that breaks the rules is named by its key if the key is plain, so that the answer stays small.
    pub(super) fn check_metadata(
        &mut self,
        field: &str,
        metadata: &BTreeMap<String, String>,
        entries_max: usize,
    ) {
        if metadata.len() > entries_max {
            self.add(field, format_args!("must have at most {entries_max} entries, not {}", metadata.len()));
            return;
        }
        let keys = metadata.keys().filter(|key| key.is_empty() || !is_short_text(key, KEY_CHARS_MAX)).count();
        if keys > 0 {
            let rule = "characters, none of them a control character";
            self.add(
                field,
                format_args!("must have keys of 1-{KEY_CHARS_MAX} {rule}; {keys} of the keys break this"),
            );
        }
        let mut unnamed = 0;
        for (key, value) in metadata {
            if is_short_text(value, VALUE_CHARS_MAX) {
                continue;
            }
            if is_plain_key(key) {
                self.check_short_text(format_args!("{field}[{key}]"), value, VALUE_CHARS_MAX);
            } else {
                unnamed += 1;
            }
        }
        if unnamed > 0 {
            let rule = "characters, none of them a control character";
            let description = format_args!(
                "must have values of at most {VALUE_CHARS_MAX} {rule}; {unnamed} of the values break this"
            );
            self.add(field, description);
        }
    }
}

fn is_plain_key(key: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:".contains(&byte);
    (1..=KEY_CHARS_MAX).contains(&key.len()) && key.bytes().all(is_plain)
}
