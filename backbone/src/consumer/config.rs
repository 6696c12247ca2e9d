//! The events that a consumer reads, and the terms of the messages that it delivers.

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
    /// How long the broker waits for an acknowledgement or progress before it redelivers a message.
    pub ack_wait: Duration,
}

/// The consumer's properties that a reader needs for each message.
#[derive(Clone, Copy, Debug)]
pub struct ConsumerTerms {
    /// How long the broker waits for an acknowledgement or progress. Another program may have chosen that.
    pub ack_wait: Duration,
    /// When the consumer was created. Older messages may have been delivered before, by another consumer of its name.
    pub since: SystemTime,
    /// Whether the consumer delivers `carried` events. If so, older events of a carried order need not be kept for it.
    pub brings_carried: bool,
}

impl ConsumerTerms {
    pub(super) fn of(info: &Info) -> Self {
        let carried = subjects::kind(EventKind::Carried);
        let brings_carried = info.config.filter_subjects.contains(&carried);
        Self { ack_wait: info.config.ack_wait, since: info.created.into(), brings_carried }
    }
}
