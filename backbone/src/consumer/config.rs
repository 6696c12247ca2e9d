//! What a consumer reads and how, and what holds for the messages that it brings.

use std::time::{Duration, SystemTime};

use async_nats::jetstream::consumer::Info;

use crate::log::subjects::{self, EventKind};

/// What a consumer reads, and how.
#[derive(Clone, Debug)]
pub struct ConsumerConfig {
    /// The durable name.
    pub name: &'static str,
    /// Events that it reads.
    pub events: Vec<EventKind>,
    /// How long the broker waits for a sign of life about a message before it delivers it again.
    pub ack_wait: Duration,
}

/// What a reader has to know of the consumer about each message that it brings.
#[derive(Clone, Copy, Debug)]
pub struct ConsumerTerms {
    /// How long the broker waits for a sign of life. Another program may have chosen that.
    pub ack_wait: Duration,
    /// When the consumer was created. Older messages may have been delivered before, by another consumer of its name.
    pub since: SystemTime,
    /// Whether it brings the event of an order that is carried, so that older ones need not be kept for it.
    pub brings_carried: bool,
}

impl ConsumerTerms {
    pub(super) fn of(info: &Info) -> Self {
        let carried = subjects::kind(EventKind::Carried);
        let brings_carried = info.config.filter_subjects.contains(&carried);
        Self { ack_wait: info.config.ack_wait, since: info.created.into(), brings_carried }
    }
}
