//! A message of the order log as the step's consumer delivers it: its contents, and its possible dispositions.

use std::time::{Duration, SystemTime};

use async_nats::jetstream::{AckKind, Message};
use backbone::broker::trace_headers;
use backbone::consumer::ConsumerTerms;
use backbone::dead_letters::LetterId;
use backbone::log::event::{Recorded, Undecodable};
use backbone::log::ids::Revision;
use program::backoff::Backoff;
use program::trace::{self, Context};
use prost_types::Timestamp;
use tracing::{debug, warn};

/// Backoff before a message is redelivered.
pub(crate) const RETRY: Backoff =
    Backoff { initial: Duration::from_millis(200), max: Duration::from_secs(30) };
/// Maximum age of an event that counts as the order's present state. An older one has perhaps been cancelled meanwhile,
/// and a customer who cancels in time must not be charged first. An event older than the step's consumer does not count
/// either: it may have been delivered before.
const FRESH_AGE_MAX: Duration = Duration::from_secs(10);
/// Deliveries after which a message without its payload counts as having none. By then the consumer has been checked,
/// and an edit that omits payloads has been repaired.
const LEFT_OUT_DELIVERIES_MAX: i64 = 10;

/// How a message is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disposition {
    /// Acknowledge it: the order needs nothing more from the step.
    Acknowledge,
    /// Terminate it: the dead letter is stored.
    Terminate,
    /// Redeliver it after this delay.
    Retry(Duration),
}

impl Disposition {
    /// The label of metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Acknowledge => "done",
            Self::Terminate => "parked",
            Self::Retry(_) => "postponed",
        }
    }

    /// The acknowledgement that is sent to the broker.
    pub(crate) fn ack(self) -> AckKind {
        match self {
            Self::Acknowledge => AckKind::Ack,
            Self::Terminate => AckKind::Term,
            Self::Retry(delay) => AckKind::Nak(Some(delay)),
        }
    }
}

/// A message in progress.
#[derive(Debug)]
pub(crate) struct Delivery<'a> {
    pub(crate) message: &'a Message,
    /// The id of its dead letter, should there be one.
    pub(crate) id: LetterId,
    pub(crate) deliveries: i64,
    /// When it was stored. With the subject it distinguishes messages that had the same sequence in a stream that was
    /// recreated.
    pub(crate) published: Timestamp,
    /// Whether the event can be assumed to be the order's latest.
    pub(crate) is_fresh: bool,
}

impl<'a> Delivery<'a> {
    /// The broker's metadata of a message.
    pub(crate) fn of(message: &'a Message, step: &str, terms: ConsumerTerms) -> Result<Self, String> {
        let info = message.info().map_err(|error| error.to_string())?;
        let id = LetterId::new(step, Revision(info.stream_sequence)).map_err(|error| error.to_string())?;
        let (seconds, nanos) = (info.published.unix_timestamp(), info.published.nanosecond());
        let published = Timestamp { seconds, nanos: i32::try_from(nanos).unwrap_or_default() };
        let is_fresh = age(&published) <= FRESH_AGE_MAX && SystemTime::from(info.published) >= terms.since;
        Ok(Self { message, id, deliveries: info.delivered, published, is_fresh })
    }

    /// The trace context of the message: that of its headers, or a new one.
    pub(crate) fn context(&self) -> Context {
        let origin = self.message.headers.as_ref().and_then(trace_headers::read);
        trace::remote(origin.unwrap_or_else(trace::root))
    }

    /// Whether it was delivered before.
    pub(crate) fn is_redelivery(&self) -> bool {
        self.deliveries > 1
    }

    /// How often it was delivered before.
    pub(crate) fn deliveries_before(&self) -> usize {
        usize::try_from(self.deliveries - 1).unwrap_or_default()
    }

    /// The event in it.
    pub(crate) fn decode(&self) -> Result<Recorded, Undecodable> {
        let Message { message, .. } = self.message;
        Recorded::decode(
            &message.subject,
            self.id.sequence(),
            message.headers.as_ref(),
            message.payload.clone(),
        )
    }

    /// Whether the broker omitted the payload (`headers_only`), and may deliver it next time.
    pub(crate) fn lacks_payload(&self) -> bool {
        let size = self.message.headers.as_ref().and_then(|headers| headers.get_last("Nats-Msg-Size"));
        let is_left_out = self.message.payload.is_empty() && size.is_some_and(|size| size.as_str() != "0");
        is_left_out && self.deliveries <= LEFT_OUT_DELIVERIES_MAX
    }

    /// Which delivery this is, counted from 1.
    pub(crate) fn attempt(&self) -> u64 {
        u64::try_from(self.deliveries).unwrap_or(1)
    }

    /// The backoff after an attempt that does not count.
    pub(crate) fn pause(&self) -> Duration {
        RETRY.after(self.attempt())
    }
}

/// Sends an acknowledgement of any kind. A lost one leads to a redelivery, which finds the work done.
pub(crate) async fn acknowledge(step: &'static str, message: &Message, kind: AckKind) {
    if let AckKind::Nak(delay) = kind {
        debug!(step, subject = %message.subject, ?delay, "redelivery requested");
    }
    if let Err(error) = message.ack_with(kind).await {
        warn!(step, %error, "acknowledgement not sent");
    }
}

/// The age of a message; 0 if clocks disagree.
fn age(published: &Timestamp) -> Duration {
    let published = SystemTime::try_from(*published).ok();
    published.and_then(|published| published.elapsed().ok()).unwrap_or_default()
}
