//! Keys of mappings, and names.

use std::collections::HashSet;

use crate::faults::{Faults, quoted, within};
use crate::yaml::Node;

/// Most characters of the name of a route or a step.
const NAME_CHARS_MAX: usize = 32;

/// The entries of a mapping whose keys are text. Reports the others, and keys that occur twice.
pub(super) fn keys<'a>(
    entries: &'a [(Node, Node)],
    place: &str,
    faults: &mut Faults,
) -> Vec<(&'a str, &'a Node)> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for (key, value) in entries {
        let Node::Text(key) = key else {
            faults.add(place, format!("a key must be text; one is {}", key.kind()));
            continue;
        };
        if !seen.insert(key) {
            faults.add(within(place, key), "occurs twice; remove or rename one");
        }
        found.push((key.as_str(), value));
    }
    found
}

/// Reports a key that has no meaning.
pub(super) fn unknown_key(key: &str, place: &str, known: &[&str], faults: &mut Faults) {
    faults.add(within(place, key), format!("unknown key; the keys here are {}", known.join(", ")));
}

/// Whether a text can be the name of a route or a step. Reports one that cannot.
pub(super) fn is_name(name: &str, place: &str, faults: &mut Faults) -> bool {
    let is_name = name.len() <= NAME_CHARS_MAX
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    if !is_name {
        faults.add(
            place,
            format!(
                "{} is not a valid name; use 1-{NAME_CHARS_MAX} characters of a-z, 0-9 and '-', starting with a letter",
                quoted(name)
            ),
        );
    }
    is_name
}
