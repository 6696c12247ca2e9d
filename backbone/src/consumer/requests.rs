//! The open pull requests at the broker.
//!
//! Nothing is prefetched: the broker sends only as many messages as the reader has requested. The reader sends a
//! request when none is open, or when it could take twice as many messages as are requested. So a busy reader requests
//! several messages at a time, and no reader waits for a timer.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

/// How long one pull request lasts. A program that stops has to wait for its end.
pub(super) const EXPIRY: Duration = Duration::from_secs(2);
/// A broker that is silent for so long while a request is open has lost the request.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Requests in a row that the broker may lose. If more are lost, the cause is not the requests.
const LOST_MAX: u32 = 1;
/// How long pull requests may deliver nothing before the program checks whether messages are pending.
const UNSERVED_MAX: Duration = Duration::from_secs(30);

/// Requests to the broker.
#[derive(Serialize)]
pub(super) struct Request {
    batch: usize,
    /// Nanoseconds.
    expires: u128,
}

impl Request {
    pub(super) fn of(batch: usize) -> Self {
        Self { batch, expires: EXPIRY.as_nanos() }
    }
}

/// Requested messages, and how many of them may still arrive.
#[derive(Debug)]
pub(super) struct Requests {
    /// The broker answers request number n on `<inbox>.<n>`.
    inbox: String,
    latest: u64,
    /// Requests up to this one were given up.
    given_up: u64,
    /// The latest request before a message came.
    served: u64,
    /// Messages that the requests since then may still deliver.
    standing: usize,
    silent_until: Instant,
    /// Requests lost since the latest message from the broker.
    lost: u32,
    /// Since when requests have delivered nothing.
    unserved_since: Instant,
    /// The latest of them, once that is long ago; the next check shows whether messages were pending.
    unserved: Option<u64>,
}

impl Requests {
    pub(super) fn new(inbox: String) -> Self {
        let now = Instant::now();
        Self {
            inbox,
            latest: 0,
            given_up: 0,
            served: 0,
            standing: 0,
            silent_until: now,
            lost: 0,
            unserved_since: now,
            unserved: None,
        }
    }

    /// Messages that may still arrive although no more are requested.
    pub(super) fn standing(&self) -> usize {
        self.standing
    }

    /// How many more to ask for, for a reader that can take up to `wanted`; `None` for no request now.
    pub(super) fn missing(&self, wanted: usize) -> Option<usize> {
        (wanted > 0 && wanted >= 2 * self.standing).then(|| wanted - self.standing)
    }

    /// The inbox for the answers to the next request.
    pub(super) fn next_inbox(&mut self) -> String {
        self.latest += 1;
        format!("{}.{}", self.inbox, self.latest)
    }

    /// The request was sent.
    pub(super) fn sent(&mut self, wanted: usize) {
        self.standing += wanted;
        self.silent_until = Instant::now() + SILENCE_MAX;
    }

    /// When the broker has been silent for too long.
    pub(super) fn silent_until(&self) -> Instant {
        self.silent_until
    }

    /// The broker was silent for too long. Returns whether a further request is useless.
    pub(super) fn lost_one(&mut self) -> bool {
        self.lost += 1;
        self.lost > LOST_MAX
    }

    /// The broker has sent something.
    pub(super) fn heard(&mut self) {
        self.silent_until = Instant::now() + SILENCE_MAX;
        self.lost = 0;
    }

    /// A message has come.
    pub(super) fn delivered(&mut self) {
        self.standing = self.standing.saturating_sub(1);
        self.served = self.latest;
        self.unserved_since = Instant::now();
    }

    /// A message has arrived at a reader that leaves.
    pub(super) fn delivered_last(&mut self) {
        self.standing = self.standing.saturating_sub(1);
    }

    /// No requested message arrives any more.
    pub(super) fn give_up(&mut self) {
        self.given_up = self.latest;
        self.standing = 0;
    }

    /// The request that a status is about, unless it was given up.
    pub(super) fn request_of(&self, status: &async_nats::Message) -> Option<u64> {
        let request: u64 = status.subject.strip_prefix(&self.inbox)?.strip_prefix('.')?.parse().ok()?;
        (request > self.given_up).then_some(request)
    }

    /// A request has expired. Returns whether requests have delivered nothing for so long that the cause must be
    /// checked.
    pub(super) fn expired(&mut self, request: u64, status: &async_nats::Message) -> bool {
        self.standing = self.standing.saturating_sub(unserved(status));
        let is_long = self.served < request && self.unserved_since.elapsed() > UNSERVED_MAX;
        if is_long {
            self.unserved_since = Instant::now();
            self.unserved = Some(request);
        }
        is_long
    }

    /// A request delivers no more messages, to a reader that leaves.
    pub(super) fn ended(&mut self, is_refused: bool, status: &async_nats::Message) {
        self.standing = if is_refused { 0 } else { self.standing.saturating_sub(unserved(status)) };
    }

    /// The reader waits for no more messages.
    pub(super) fn leave(&mut self) {
        self.standing = 0;
    }

    /// Whether requests had delivered nothing at the last check of the cause, and still have not.
    pub(super) fn take_unserved(&mut self) -> bool {
        self.unserved.take().is_some_and(|request| self.served < request)
    }
}

/// How many messages an expired request did not deliver.
fn unserved(expired: &async_nats::Message) -> usize {
    let header = expired.headers.as_ref().and_then(|headers| headers.get("Nats-Pending-Messages"));
    header.and_then(|value| value.as_str().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_sent_when_none_is_open_or_demand_doubles() {
        let mut requests = Requests::new("_INBOX.x".to_owned());
        assert_eq!(requests.missing(0), None);
        assert_eq!(requests.missing(4), Some(4));
        assert_eq!(requests.next_inbox(), "_INBOX.x.1");
        requests.sent(4);
        assert_eq!((requests.missing(7), requests.missing(8)), (None, Some(4)));
        for _ in 0..4 {
            requests.delivered();
        }
        assert_eq!((requests.standing(), requests.missing(1)), (0, Some(1)));
        requests.sent(1);
        requests.give_up();
        assert_eq!(requests.standing(), 0);
    }

    #[test]
    fn a_second_lost_request_in_a_row_is_an_error() {
        let mut requests = Requests::new("_INBOX.x".to_owned());
        assert!(!requests.lost_one());
        assert!(requests.lost_one());
        requests.heard();
        assert!(!requests.lost_one());
    }
}
