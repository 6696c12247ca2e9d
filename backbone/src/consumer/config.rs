//! What a consumer reads, and the terms of the messages that it delivers.

use std::time::{Duration, SystemTime};

use async_nats::jetstream::consumer::Info;

use crate::log::subjects::{self, EventKind};

/// What a consumer reads, and how.
#[derive(Clone, Debug)]
pub struct ConsumerConfig {
    /// The durable name.
    pub name: String,
    /// The subjects that it reads. One filter only: the broker walks its whole index for several.
    pub filter: String,
    /// How long the broker waits for an acknowledgement or progress before it redelivers a message.
    pub ack_wait: Duration,
}

impl ConsumerConfig {
    /// The consumer of all events after which `step` acts.
    pub fn of_step(step: &str, ack_wait: Duration) -> Self {
        Self { name: step.to_owned(), filter: subjects::for_step(step), ack_wait }
    }

    /// A second consumer of a step: all events by which orders are carried, for every next step.
    pub fn of_carried(name: &str, ack_wait: Duration) -> Self {
        Self { name: name.to_owned(), filter: subjects::kind(EventKind::Carried), ack_wait }
    }
}

/// The consumer's properties that a reader needs for each message.
#[derive(Clone, Copy, Debug)]
pub struct ConsumerTerms {
    /// How long the broker waits for an acknowledgement or progress. Another program may have chosen that.
    pub ack_wait: Duration,
    /// When the consumer was created. Older messages may have been delivered before, by another consumer of its name.
    pub since: SystemTime,
}

impl ConsumerTerms {
    pub(super) fn of(info: &Info) -> Self {
        Self { ack_wait: info.config.ack_wait, since: info.created.into() }
    }
}
