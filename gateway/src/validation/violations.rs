//! The violations of a request, all reported at once.

use std::fmt::Display;

use backbone::log::ids::OrderId;
use tonic::Status;
use tonic_types::FieldViolation;

use crate::errors::{self, VIOLATIONS_MAX};

/// The violations of a request. A request can break a million rules at once, so those beyond the reported ones are only
/// counted.
#[derive(Default)]
pub(crate) struct Violations {
    reported: Vec<FieldViolation>,
    left_out: usize,
}

impl Violations {
    /// Most entries of one page.
    pub(crate) fn page_size(&mut self, page_size: i32, size_max: usize, size_default: usize) -> usize {
        match usize::try_from(page_size) {
            Ok(0) => size_default,
            Ok(size) if size <= size_max => size,
            Ok(_) | Err(_) => {
                let rule = format_args!("must be 1-{size_max}, or 0 for {size_default}, not {page_size}");
                self.add("page_size", rule);
                size_default
            }
        }
    }

    pub(crate) fn add(&mut self, field: impl Display, description: impl Display) {
        if self.reported.len() < VIOLATIONS_MAX {
            self.reported.push(FieldViolation::new(field.to_string(), description.to_string()));
        } else {
            self.left_out += 1;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.reported.is_empty()
    }

    pub(crate) fn into_result(self) -> Result<(), Status> {
        if self.reported.is_empty() { Ok(()) } else { Err(self.into_status()) }
    }

    pub(super) fn into_status(self) -> Status {
        errors::invalid(self.reported, self.left_out)
    }

    pub(super) fn check_order_id(&mut self, text: &str) -> Option<OrderId> {
        match text.parse() {
            Ok(id) => Some(id),
            Err(error) => {
                let problem = if text.is_empty() { "is required" } else { "is malformed" };
                self.add("order_id", format_args!("{problem}: {error}"));
                None
            }
        }
    }

    /// A text that may be empty.
    pub(super) fn check_short_text(&mut self, field: impl Display, text: &str, chars_max: usize) {
        if !is_short_text(text, chars_max) {
            let rule =
                format_args!("must be at most {chars_max} characters, none of them a control character");
            self.add(field, rule);
        }
    }

    pub(super) fn check_text(
        &mut self,
        field: impl Display,
        text: &str,
        chars_max: usize,
        punctuation: &str,
    ) {
        let allowed = |c: char| c.is_ascii_alphanumeric() || punctuation.contains(c);
        if text.is_empty() {
            self.add(field, "is required");
        } else if text.chars().count() > chars_max || !text.chars().all(allowed) {
            self.add(
                field,
                format_args!("must be 1-{chars_max} characters of A-Z, a-z, 0-9 and \"{punctuation}\""),
            );
        }
    }
}

/// Whether a text has at most so many characters, and no control characters.
pub(super) fn is_short_text(text: &str, chars_max: usize) -> bool {
    text.chars().count() <= chars_max && !text.chars().any(char::is_control)
}
