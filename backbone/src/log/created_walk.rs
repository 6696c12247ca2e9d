//! Finding the newest orders of a customer with many: the log is walked backwards, window by window, and each window forwards,
//! from order to order. This loads only the part of the log where these orders are.

use futures::{StreamExt, TryStreamExt, stream};

use super::OrderLog;
use super::created::{CreatedOrder, Scan};
use super::read::decode_all;
use crate::broker::direct_get::{ReadError, first_from, last_on};
use crate::broker::streams::ORDERS;
use crate::log::ids::Revision;
use crate::log::subjects::EventKind;

/// Messages in the first window, at least.
const WINDOW_MIN: u64 = 64;
/// How much wider than the last one a window becomes at most.
const WIDENING_MAX: u64 = 4;
/// Orders wanted from each part of a window.
const ORDERS_EACH_SLICE: u64 = 4;
/// Parts of a window that are walked concurrently.
const SLICES_AT_ONCE: usize = 32;

/// The orders of a window or a part of it, and up to where none is missing, if the server that answered may not have
/// all of it.
struct Walked {
    created: Vec<CreatedOrder>,
    open_from: Option<Revision>,
}

impl OrderLog {
    /// The newest `count` orders before `before`, or more, from any replica. There is about one in `messages_each`.
    pub(super) async fn scan_many(
        &self,
        filter: &str,
        before: Option<Revision>,
        count: u64,
        messages_each: u64,
    ) -> Result<Scan, ReadError> {
        let end = match before {
            Some(before) => before,
            None => Revision(self.extent().await?.last.0 + 1),
        };
        let width = messages_each.saturating_mul(count).saturating_mul(5) / 4;
        let (mut to, mut width, mut walked_messages) = (end, width.max(WINDOW_MIN), 0);
        let (mut created, mut reached) = (Vec::new(), end);
        loop {
            let from = Revision(to.0.saturating_sub(width).max(1));
            let slices = ((count - created.len() as u64) / ORDERS_EACH_SLICE).max(1);
            let walked = self.walk(filter, from, to, slices).await?;
            reached = walked.open_from.map_or(reached, |open| reached.min(open));
            let mut older = walked.created;
            older.append(&mut created);
            created = older;
            let (found, is_first) = (created.len() as u64, from <= Revision(1));
            if found >= count || is_first {
                return Ok(Scan { created, reached, from, is_first });
            }
            if found == 0 && before.is_none() && to == end {
                // The customer has ordered nothing for some time.
                let last = last_on(&self.connection.client, ORDERS, filter).await?;
                to = last.map_or(Revision(1), |last| from.min(Revision(last.sequence.0 + 1)));
                continue;
            }
            walked_messages += to.0 - from.0;
            let missing = walked_messages * (count - found) / found.max(1) * 5 / 4;
            width = if found == 0 {
                WIDENING_MAX * width
            } else {
                missing.clamp(WINDOW_MIN, WIDENING_MAX * width)
            };
            to = from;
        }
    }

    /// The orders from `from` to before `to`, in `slices`.
    async fn walk(
        &self,
        filter: &str,
        from: Revision,
        to: Revision,
        slices: u64,
    ) -> Result<Walked, ReadError> {
        let nothing = Walked { created: Vec::new(), open_from: None };
        // Each slice of an empty window would be walked to the end of the log.
        let from = match first_from(&self.connection.client, ORDERS, filter, from).await? {
            Some(first) if first.sequence < to => first.sequence,
            Some(_) => return Ok(nothing),
            None => return Ok(Walked { open_from: Some(Revision(from.0 - 1)), ..nothing }),
        };
        let width = (to.0 - from.0).div_ceil(slices).max(1);
        let starts = (from.0..to.0).step_by(usize::try_from(width).unwrap_or(usize::MAX));
        let slices =
            starts.map(|start| self.walk_slice(filter, Revision(start), to.min(Revision(start + width))));
        let slices = stream::iter(slices).buffered(SLICES_AT_ONCE);
        let nothing = Walked { created: Vec::new(), open_from: None };
        slices
            .try_fold(nothing, async |mut walked, slice| {
                walked.created.extend(slice.created);
                walked.open_from = walked.open_from.or(slice.open_from);
                Ok(walked)
            })
            .await
    }

    async fn walk_slice(&self, filter: &str, from: Revision, to: Revision) -> Result<Walked, ReadError> {
        let (mut created, mut from) = (Vec::new(), from);
        while from < to {
            match first_from(&self.connection.client, ORDERS, filter, from).await? {
                Some(message) if message.sequence < to => {
                    from = Revision(message.sequence.0 + 1);
                    let events = decode_all(vec![message]).into_iter();
                    let events = events.filter(|event| event.kind() == EventKind::Created);
                    created
                        .extend(events.map(|event| CreatedOrder { id: event.id, revision: event.revision }));
                }
                // A server that has this message has all before it.
                Some(_) => break,
                None => return Ok(Walked { created, open_from: Some(Revision(from.0 - 1)) }),
            }
        }
        Ok(Walked { created, open_from: None })
    }
}
