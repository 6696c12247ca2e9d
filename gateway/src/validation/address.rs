//! The rules of a shipping address.

use proto::orders::v1::PostalAddress;

use super::violations::{Violations, is_short_text};

/// Longest postal_code and sorting_code, in characters.
const CODE_CHARS_MAX: usize = 32;
/// Longest names of regions, places, organizations and recipients, in characters.
const NAME_CHARS_MAX: usize = 100;
/// Longest address line, in characters.
const LINE_CHARS_MAX: usize = 200;
/// Longest BCP 47 tag (RFC 5646, section 4.4.1), in characters.
const LANGUAGE_CHARS_MAX: usize = 35;
/// Most address_lines, and most recipients.
const LINES_MAX: usize = 5;

impl Violations {
    pub(super) fn check_address(&mut self, address: &PostalAddress) {
        if !matches!(address.region_code.as_bytes(), [b'A'..=b'Z', b'A'..=b'Z']) {
            let rule = "must be a CLDR region code: two upper-case letters, such as CH";
            self.add("shipping_address.region_code", rule);
        }
        let language = &address.language_code;
        let is_tag = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if language.len() > LANGUAGE_CHARS_MAX || !language.chars().all(is_tag) {
            let rule = "characters of A-Z, a-z, 0-9 and \"-\", such as ja-Latn";
            let rule = format_args!("must be at most {LANGUAGE_CHARS_MAX} {rule}");
            self.add("shipping_address.language_code", rule);
        }
        for (field, text, chars_max) in [
            ("shipping_address.postal_code", &address.postal_code, CODE_CHARS_MAX),
            ("shipping_address.sorting_code", &address.sorting_code, CODE_CHARS_MAX),
            ("shipping_address.administrative_area", &address.administrative_area, NAME_CHARS_MAX),
            ("shipping_address.locality", &address.locality, NAME_CHARS_MAX),
            ("shipping_address.sublocality", &address.sublocality, NAME_CHARS_MAX),
            ("shipping_address.organization", &address.organization, NAME_CHARS_MAX),
        ] {
            self.check_short_text(field, text, chars_max);
        }
        self.check_lines("shipping_address.address_lines", &address.address_lines, LINE_CHARS_MAX);
        self.check_lines("shipping_address.recipients", &address.recipients, NAME_CHARS_MAX);
    }

    fn check_lines(&mut self, field: &str, lines: &[String], chars_max: usize) {
        if lines.len() > LINES_MAX {
            self.add(field, format_args!("must be at most {LINES_MAX}, not {}", lines.len()));
        }
        for (i, line) in lines.iter().enumerate().take(LINES_MAX) {
            if line.is_empty() || !is_short_text(line, chars_max) {
                let rule = format_args!("must be 1-{chars_max} characters, none of them a control character");
                self.add(format_args!("{field}[{i}]"), rule);
            }
        }
    }
}
