//! Open dead letters by pages, and their number by cause.

use std::collections::HashMap;
use std::time::SystemTime;

use backbone::broker::direct_get::ReadError;
use backbone::dead_letters::{DeadLetterPage, DeadLetters, StoredDeadLetter};
use backbone::log::ids::Revision;
use proto::operations::v1::{DeadLetter, DeadLetterGroup};

use super::filter::Filter;

/// Maximum number of dead letters that one call reads.
pub(super) const EXAMINED_MAX: usize = 20_000;
/// Maximum number of causes in one answer; each may take a kilobyte.
const GROUPS_MAX: usize = 500;

/// A page of open dead letters.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) letters: Vec<DeadLetter>,
    pub(super) next: Option<Revision>,
    pub(super) groups: Vec<DeadLetterGroup>,
    pub(super) groups_incomplete: bool,
}

/// Reads a page of `size` dead letters, starting at `from`. A first page also counts all of them.
pub(super) async fn read(
    letters: &DeadLetters,
    filter: &Filter,
    from: Option<Revision>,
    size: usize,
) -> Result<Page, ReadError> {
    let counting = from.is_none();
    let mut page = Page::default();
    let mut groups = HashMap::<String, DeadLetterGroup>::new();
    let mut walk = Walk::new(letters, filter, from);
    while let Some(kept) = walk.next().await? {
        if page.letters.len() < size {
            page.letters.push(in_list(kept.letter.clone()));
        } else {
            page.next.get_or_insert(kept.position());
            if !counting {
                break;
            }
        }
        if counting {
            groups.entry(kept.letter.fingerprint.clone()).or_insert_with(|| group(&kept.letter)).count += 1;
        }
    }
    if page.next.is_none() {
        page.next = walk.stopped_at;
    }
    page.groups_incomplete = counting && walk.stopped_at.is_some();
    page.groups = groups.into_values().collect();
    page.groups.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.fingerprint.cmp(&b.fingerprint)));
    page.groups_incomplete |= page.groups.len() > GROUPS_MAX;
    page.groups.truncate(GROUPS_MAX);
    Ok(page)
}

/// The open dead letters that match a filter, oldest first, one after the other.
pub(super) struct Walk<'a> {
    letters: &'a DeadLetters,
    filter: &'a Filter,
    now: SystemTime,
    read: std::vec::IntoIter<StoredDeadLetter>,
    from: Option<Revision>,
    examined: usize,
    /// Where to continue, if the limit of dead letters was read.
    stopped_at: Option<Revision>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(letters: &'a DeadLetters, filter: &'a Filter, from: Option<Revision>) -> Self {
        let from = Some(from.unwrap_or(Revision::NONE));
        let now = SystemTime::now();
        Self { letters, filter, now, read: Vec::new().into_iter(), from, examined: 0, stopped_at: None }
    }

    pub(super) async fn next(&mut self) -> Result<Option<StoredDeadLetter>, ReadError> {
        loop {
            if let Some(kept) = self.read.find(|kept| self.filter.matches(&kept.letter, self.now)) {
                return Ok(Some(kept));
            }
            let Some(from) = self.from else { return Ok(None) };
            if self.examined >= EXAMINED_MAX {
                self.stopped_at = Some(from);
                return Ok(None);
            }
            let DeadLetterPage { letters, next } = self.letters.open_from(self.filter.step(), from).await?;
            self.examined += letters.len();
            self.read = letters.into_iter();
            self.from = next;
        }
    }
}

/// The dead letter without the parts that would make a list too large.
pub(super) fn in_list(mut letter: DeadLetter) -> DeadLetter {
    letter.headers = Vec::new();
    letter.payload = Vec::new();
    letter.attempts.drain(..letter.attempts.len().saturating_sub(1));
    letter
}

fn group(letter: &DeadLetter) -> DeadLetterGroup {
    DeadLetterGroup {
        fingerprint: letter.fingerprint.clone(),
        step: letter.step.clone(),
        reason: letter.reason,
        count: 0,
        sample_error: letter.attempts.last().map(|last| last.error.clone()).unwrap_or_default(),
    }
}
