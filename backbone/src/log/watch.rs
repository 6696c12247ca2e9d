//! Watching an order: its history, and then every event as the stream republishes it.
//!
//! The live subject is a hint, the log is the truth. Live messages may be missed without notice (a reconnect, a slow
//! reader, a failover), so each event is checked against the previous one. The log is read again after every reconnect,
//! after every loss of the quorum, and at least every [`RECONCILE_INTERVAL`].
//!
//! A read that finds no new event may come from a stale replica. After a reconnect or a loss of the quorum, events have
//! probably been missed and a replica probably lags. So that read is proved
//! ([`Barrier`](crate::broker::barrier::Barrier)).

use std::collections::VecDeque;
use std::time::Duration;

use futures::Stream;
use futures::stream::unfold;
use program::backoff::Backoff;
use thiserror::Error;
use tokio::select;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::live::{Listener, LiveEvent};
use super::{LossCounts, OrderLog, OrderState};
use crate::broker::direct_get::ReadError;
use crate::log::event::Recorded;
use crate::log::ids::{OrderId, Revision};
use crate::log::lifecycle::is_finished;
use crate::log::subjects;

/// Longest time between two reads of the log; with one failed read between, a watcher is at most 30 s behind.
pub(super) const RECONCILE_INTERVAL: Duration = Duration::from_secs(25);
/// Wait before the next read after a failed one.
pub(super) const RECONCILE_RETRY: Duration = Duration::from_secs(1);
/// Wait before the next read when the replica that answered lacked a live event.
pub(super) const BEHIND: Backoff = Backoff { initial: Duration::from_millis(20), max: RECONCILE_RETRY };

/// One order's events, each exactly once and in order, ending when the order is finished.
#[derive(Debug)]
pub struct Watch {
    log: OrderLog,
    id: OrderId,
    live: Listener,
    connects: watch::Receiver<u64>,
    regained: watch::Receiver<u64>,
    losses: watch::Receiver<LossCounts>,
    reconcile_at: Instant,
    /// Events have probably been missed: the next read must be proved.
    needs_proof: bool,
    /// The latest live event.
    announced: Revision,
    /// Consecutive reads from replicas that had nothing new, although there is more.
    behind: u64,
    /// Read from the log, not yet returned.
    ready: VecDeque<Recorded>,
    /// Revision of the last event that was returned or is ready.
    last: Revision,
    /// Events up to this revision are older than the watch.
    caught_up: Revision,
    finished: bool,
}

/// An event as it is given to a watcher.
#[derive(Debug)]
pub struct Update {
    /// The event.
    pub event: Recorded,
    /// How long ago it was stored, if that was while it was watched.
    pub lag: Option<Duration>,
}

impl Update {
    /// An event that is returned now; `is_live` if it was stored during the watch.
    pub(super) fn now(event: Recorded, is_live: bool) -> Self {
        // The two clocks may disagree, so the event can seem to be in the future.
        let lag = event.stored.filter(|_| is_live).map(|stored| stored.elapsed().unwrap_or_default());
        Self { event, lag }
    }
}

/// A watch that cannot begin.
#[derive(Debug, Error)]
pub enum WatchError {
    /// The order has no event at that revision yet.
    #[error("the order's last revision is {last}")]
    Beyond {
        /// The order's last revision.
        last: Revision,
    },
    /// The log could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Why a watch ends before its order is finished: the log has lost the order's events, or has dropped them because they
/// were older than it keeps them.
#[derive(Debug, Error)]
#[error("the log has lost events of the order")]
pub struct EventsLost;

#[derive(Debug, Error)]
enum ReadLogError {
    #[error(transparent)]
    Lost(#[from] EventsLost),
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl OrderLog {
    /// Watches the order that was read as `current` from behind the event at `after`.
    pub async fn watch(&self, current: OrderState, after: Revision) -> Result<Watch, WatchError> {
        let id = current.id;
        // The replica that answered may lag.
        let current = if after > current.revision() { self.load_proven(&id).await? } else { Some(current) };
        let last = current.as_ref().map_or(Revision::NONE, OrderState::revision);
        if after > last {
            return Err(WatchError::Beyond { last });
        }
        let (connects, regained) = (self.connection.connects(), self.regained.subscribe());
        // Subscribe before reading the history, so that no event falls between the two.
        let live = self.live.listen(&self.connection.client, subjects::live_order(&id)).await?;
        let mut watch = Watch {
            log: self.clone(),
            id,
            live,
            connects,
            regained,
            losses: self.losses(),
            reconcile_at: Instant::now() + RECONCILE_INTERVAL,
            needs_proof: false,
            announced: after,
            behind: 0,
            ready: VecDeque::new(),
            last: after,
            caught_up: after,
            finished: false,
        };
        watch.connects.mark_unchanged();
        watch.read_log().await.map_err(|error| match error {
            ReadLogError::Lost(lost) => WatchError::Read(ReadError::NoAnswer(lost.to_string())),
            ReadLogError::Read(error) => error.into(),
        })?;
        watch.caught_up = watch.last;
        watch.finished = watch.ready.is_empty()
            && after >= last
            && current.is_some_and(|current| is_finished(&current.order));
        Ok(watch)
    }
}

impl Watch {
    /// The next event; `None` once the order is finished. Waits while nothing happens and while the broker is
    /// unavailable. Cancel-safe: an event is taken only by the call that returns it.
    pub async fn next(&mut self) -> Result<Option<Recorded>, EventsLost> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.finished = self.ready.is_empty() && is_finished(&event.order);
                return Ok(Some(event));
            }
            if self.finished {
                return Ok(None);
            }
            let gap = select! {
                received = self.live.next() => match received {
                    LiveEvent::Event(event) => self.receive(&event),
                    LiveEvent::Missed => true,
                },
                changed = self.connects.changed() => self.require_proof(changed.is_ok()),
                changed = self.regained.changed() => self.require_proof(changed.is_ok()),
                changed = self.losses.changed() => changed.is_ok(),
                () = sleep_until(self.reconcile_at) => true,
            };
            if !gap {
                continue;
            }
            match self.read_log().await {
                Ok(()) => {}
                Err(ReadLogError::Lost(lost)) => return Err(lost),
                Err(ReadLogError::Read(error)) => {
                    debug!(order_id = %self.id, %error, "watch could not read the log, retrying");
                    self.reconcile_at = Instant::now() + RECONCILE_RETRY;
                }
            }
        }
    }

    /// The events as a stream, which ends once the order is finished, or with an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Update, EventsLost>> + Send {
        unfold(Some(self), async |watch| {
            let mut watch = watch?;
            match watch.next().await {
                Ok(event) => {
                    let event = event?;
                    let is_live = event.revision > watch.caught_up;
                    Some((Ok(Update::now(event, is_live)), Some(watch)))
                }
                Err(lost) => Some((Err(lost), None)),
            }
        })
    }

    /// Something may have been missed.
    fn require_proof(&mut self, is_so: bool) -> bool {
        self.needs_proof |= is_so;
        is_so
    }

    /// Takes a live event; says whether events before it were missed.
    fn receive(&mut self, event: &Recorded) -> bool {
        if event.revision <= self.last {
            return false;
        }
        self.announced = self.announced.max(event.revision);
        if event.previous != self.last {
            return true;
        }
        self.last = event.revision;
        self.ready.push_back(event.clone());
        false
    }

    async fn read_log(&mut self) -> Result<(), ReadLogError> {
        let mut missed = if self.needs_proof {
            self.log.whole_history_proven(&self.id).await?
        } else {
            self.log.whole_history(&self.id).await?
        };
        let latest = missed.last().map_or(Revision::NONE, |latest| latest.revision);
        if latest < self.last {
            // The replica lags, unless the quorum has no more either.
            let current = self.log.load_proven(&self.id).await?;
            if current.is_none_or(|current| current.head < self.last) {
                return Err(EventsLost.into());
            }
        }
        self.needs_proof = false;
        missed.retain(|event| event.revision > self.last);
        self.last = self.last.max(latest);
        let pause = if self.last < self.announced {
            self.behind = if missed.is_empty() { self.behind + 1 } else { 1 };
            BEHIND.after(self.behind)
        } else {
            self.behind = 0;
            RECONCILE_INTERVAL
        };
        self.ready.extend(missed);
        self.reconcile_at = Instant::now() + pause;
        Ok(())
    }
}
