//! Events that the last messages of their subjects do not show, because another event followed on the same subject. The
//! next event of their order names them, so each is read by its sequence, and the log is not walked.

use std::collections::HashSet;

use super::OrderLog;
use super::read::decode_all;
use crate::broker::direct_get::{self, ReadError, Stored};
use crate::broker::streams::ORDERS;
use crate::log::event::Recorded;
use crate::log::ids::Revision;

/// Events that are read by their sequences; if more are hidden, many messages in one answer cost less.
const HIDDEN_MAX: usize = 256;

impl OrderLog {
    /// All events after `after` on some subjects, of which `stored` are the last messages, in the log's order. `None` if
    /// these do not show it: a foreign message may hide an event that no other one names, a replica lags, or too many are
    /// hidden.
    pub(super) async fn with_hidden(
        &self,
        stored: Vec<Stored>,
        after: Revision,
    ) -> Result<Option<Vec<Recorded>>, ReadError> {
        let found = stored.len();
        let mut events = decode_all(stored);
        if events.len() < found {
            return Ok(None);
        }
        let mut revisions: HashSet<_> = events.iter().map(|event| event.revision).collect();
        let (mut examined, mut first) = (0, None);
        while let Some(event) = events.get(examined) {
            examined += 1;
            let (id, previous) = (event.id, event.previous);
            if previous <= after || !revisions.insert(previous) {
                continue;
            }
            if let Some(hidden) = direct_get::at(&self.connection.client, ORDERS, previous).await? {
                match decode_all(vec![hidden]).pop().filter(|hidden| hidden.id == id) {
                    Some(hidden) if events.len() < found + HIDDEN_MAX => events.push(hidden),
                    Some(_) | None => return Ok(None),
                }
                continue;
            }
            let first = match first {
                Some(first) => first,
                None => *first.insert(self.bounds().await?.first),
            };
            // Unless it has expired, the replica that answered lags.
            if previous >= first {
                return Ok(None);
            }
        }
        events.sort_unstable_by_key(|event| event.revision);
        Ok(Some(events))
    }
}
