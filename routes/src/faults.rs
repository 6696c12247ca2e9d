//! Faults of a route file: where each is, and how to fix it.

use std::fmt;

/// Most characters of a name that a fault shows.
const SHOWN_CHARS_MAX: usize = 40;

/// Something that is wrong with a route file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The place, such as `routes.reviewed[2].status`. Empty: the file as a whole.
    pub place: String,
    /// The problem and the fix.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place.as_str() {
            "" => f.write_str(&self.problem),
            place => write!(f, "{place}: {}", self.problem),
        }
    }
}

/// Everything that is wrong with a route file. Displayed with one fault a line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// The faults of a file that has one alone.
    pub(crate) fn one(problem: impl Into<String>) -> Self {
        Self(vec![Fault { place: String::new(), problem: problem.into() }])
    }

    pub(crate) fn add(&mut self, place: impl Into<String>, problem: impl Into<String>) {
        self.0.push(Fault { place: place.into(), problem: problem.into() });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The faults.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().enumerate() {
            let line_break = if i == 0 { "" } else { "\n" };
            write!(f, "{line_break}{fault}")?;
        }
        Ok(())
    }
}

/// A name or text of the file as a fault shows it: in quotes, shortened, without control characters.
pub(crate) fn quoted(text: &str) -> String {
    let mut chars = text.chars();
    let shown: String = chars.by_ref().take(SHOWN_CHARS_MAX).collect();
    let rest = if chars.next().is_some() { "…" } else { "" };
    format!("{shown:?}{rest}")
}

/// A place within another: `routes` and `reviewed` make `routes.reviewed`. A key that is no plain word is quoted.
pub(crate) fn within(place: &str, key: &str) -> String {
    let is_plain = (1..=SHOWN_CHARS_MAX).contains(&key.len())
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    let key = if is_plain { key.to_owned() } else { quoted(key) };
    if place.is_empty() { key } else { format!("{place}.{key}") }
}
