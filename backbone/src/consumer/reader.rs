//! Reading a step's durable consumer: the next message, how the consumer is, and leaving it.

use std::time::Duration;

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::response::Response;
use async_nats::{StatusCode, Subscriber};
use futures::StreamExt;
use tokio::select;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::debug;

use super::ack_floor::AckFloor;
use super::config::{ConsumerConfig, ConsumerTerms};
use super::durable::Durable;
use super::error::ConsumerError;
use super::requests::{self, Request, Requests};
use crate::broker::connection::Connection;
use crate::broker::streams::ORDERS;

/// How often the consumer's settings are read. The broker answers from memory, however long the stream is.
const CHECK_INTERVAL: Duration = Duration::from_secs(15);
/// How often its ack floor is recorded, for processes that start when no other one knows it.
const RECORD_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// How long a leaving reader waits for messages after its requests have expired.
const LAST_MESSAGES_TIMEOUT: Duration = Duration::from_millis(100);
/// How much longer it waits for the broker to learn that it leaves.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// An open consumer.
#[derive(Debug)]
pub struct Consumer {
    durable: Durable,
    connection: Connection,
    messages: Subscriber,
    requests: Requests,
    connects: watch::Receiver<u64>,
    check_at: Instant,
    /// The inbox for consumer info.
    info_inbox: String,
    floor: AckFloor,
    /// When the floor is recorded again.
    record_at: Instant,
    terms: ConsumerTerms,
    leave_at: Option<Instant>,
    /// Whether the broker knows that no more messages are requested.
    drained: bool,
}

impl Consumer {
    /// Opens the consumer: creates it if it is missing, and repairs it if it was edited. One that this user may not
    /// repair is used as it is. `floor` is its ack floor when it was last open.
    pub async fn open(
        connection: &Connection,
        config: &ConsumerConfig,
        floor: Option<&AckFloor>,
    ) -> Result<Self, async_nats::Error> {
        let mut connects = connection.connects();
        connects.mark_unchanged();
        let client = &connection.client;
        let inbox = client.new_inbox();
        let messages = client.subscribe(format!("{inbox}.*")).await?;
        let recorded = match floor {
            Some(_) => None,
            None => AckFloor::recorded(connection, &config.name).await?,
        };
        let former = floor.or(recorded.as_ref());
        let (durable, info) = Durable::open(connection, config, former).await?;
        let floor = AckFloor::again(former, &info, durable.wrong.is_some());
        Ok(Self {
            durable,
            connection: connection.clone(),
            messages,
            info_inbox: format!("{inbox}.look"),
            requests: Requests::new(inbox),
            connects,
            check_at: Instant::now() + CHECK_INTERVAL,
            floor,
            record_at: Instant::now(),
            terms: ConsumerTerms::of(&info),
            leave_at: None,
            drained: false,
        })
    }

    /// Ensures that the consumer exists and is configured as required, without reading from it.
    pub async fn provision(
        connection: &Connection,
        config: &ConsumerConfig,
    ) -> Result<(), async_nats::Error> {
        let (durable, _) = Durable::open(connection, config, None).await?;
        durable.wrong.map_or(Ok(()), |wrong| Err(wrong.into()))
    }

    /// The next message, for a reader that can take up to `wanted` more. An open pull request may deliver more than
    /// that, if `wanted` has decreased. Cancel-safe.
    pub async fn next(&mut self, wanted: usize) -> Result<Message, ConsumerError> {
        loop {
            if let Some(missing) = self.requests.missing(wanted) {
                self.ask(missing).await?;
            } else if self.requests.standing() == 0 {
                return std::future::pending().await;
            }
            let message = select! {
                message = self.messages.next() => message.ok_or(ConsumerError::Closed)?,
                // The broker drops pull requests when their connection ends.
                _ = self.connects.changed() => {
                    self.requests.give_up();
                    continue;
                }
                () = sleep_until(self.requests.silent_until()) => {
                    if self.requests.lost_one() {
                        return Err(ConsumerError::NoReply);
                    }
                    debug!(consumer = self.durable.name, "no reply from the broker, pull request resent");
                    self.requests.give_up();
                    continue;
                }
                () = sleep_until(self.check_at) => {
                    self.request_info().await?;
                    continue;
                }
            };
            if self.is_info_reply(&message) {
                self.check_info(&message)?;
                continue;
            }
            self.requests.heard();
            match message.status {
                None => {
                    self.requests.delivered();
                    return Ok(self.delivery(message));
                }
                Some(status) => {
                    let Some(request) = self.requests.request_of(&message) else { continue };
                    if status != StatusCode::TIMEOUT {
                        let description = message.description.unwrap_or_default();
                        return Err(ConsumerError::Refused(format!("{status} {description}")));
                    }
                    if self.requests.expired(request, &message) {
                        self.request_info().await?;
                    }
                }
            }
        }
    }

    /// The ack floor when the consumer was last configured as required.
    pub fn floor(&self) -> &AckFloor {
        &self.floor
    }

    /// The terms of the messages that the consumer delivers now.
    pub fn terms(&self) -> ConsumerTerms {
        self.terms
    }

    /// The settings that differ from the required ones, if this user may not reconcile them.
    pub fn wrong(&self) -> Option<&str> {
        self.durable.wrong.as_deref()
    }

    /// Messages that may still arrive although no more are requested.
    pub fn standing(&self) -> usize {
        self.requests.standing()
    }

    /// Stops pulling and returns messages that still arrive; `None` when that was all. Waits until no pull request is
    /// open, at most until `leave_by`. A broker in another account may not notice that the program is gone, and
    /// redelivers those messages only after ACK_WAIT.
    pub async fn last(&mut self, leave_by: Instant) -> Option<Message> {
        let ended_by = *self
            .leave_at
            .get_or_insert_with(|| leave_by.min(Instant::now() + requests::EXPIRY) + LAST_MESSAGES_TIMEOUT);
        loop {
            // Without a connection nothing can arrive.
            if self.requests.standing() > 0
                && self.connection.is_up()
                && let Ok(message) = timeout_at(ended_by, self.messages.next()).await
            {
                let message = message?;
                if self.is_delivery(&message) {
                    self.requests.delivered_last();
                    return Some(self.delivery(message));
                }
                self.end(&message);
            } else {
                self.requests.leave();
                // Drain instead of unsubscribing: messages that are already on their way would otherwise wait for
                // ACK_WAIT. On a closed connection this fails and there is nothing left to receive.
                if !std::mem::replace(&mut self.drained, true) {
                    self.messages.drain().await.ok()?;
                }
                let message = timeout_at(ended_by + DRAIN_TIMEOUT, self.messages.next()).await.ok()??;
                if self.is_delivery(&message) {
                    return Some(self.delivery(message));
                }
            }
        }
    }

    /// Records that a request delivers no more messages, if the status says so.
    fn end(&mut self, status: &async_nats::Message) {
        if self.requests.request_of(status).is_some() {
            self.requests.ended(status.status != Some(StatusCode::TIMEOUT), status);
        }
    }

    fn delivery(&self, message: async_nats::Message) -> Message {
        Message { message, context: self.connection.jetstream.clone() }
    }

    async fn ask(&mut self, wanted: usize) -> Result<(), ConsumerError> {
        if self.requests.standing() == 0 {
            self.connects.mark_unchanged();
        }
        let payload = serde_json::to_vec(&Request::of(wanted))
            .map_err(|error| ConsumerError::Refused(error.to_string()))?;
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{ORDERS}.{}", self.durable.name);
        let reply = self.requests.next_inbox();
        let asking = self.connection.client.publish_with_reply(subject, reply, payload.into());
        asking.await.map_err(|_| ConsumerError::Closed)?;
        self.requests.sent(wanted);
        Ok(())
    }

    fn is_delivery(&self, message: &async_nats::Message) -> bool {
        message.status.is_none() && !self.is_info_reply(message)
    }

    fn is_info_reply(&self, message: &async_nats::Message) -> bool {
        *message.subject == *self.info_inbox
    }

    /// Requests the consumer info without waiting for the answer. If it is lost, the next check shows the state.
    async fn request_info(&mut self) -> Result<(), ConsumerError> {
        self.check_at = Instant::now() + CHECK_INTERVAL;
        if Instant::now() >= self.record_at {
            self.record_at = Instant::now() + RECORD_INTERVAL;
            self.floor.record(&self.connection, &self.durable.name).await;
        }
        let subject = format!("$JS.API.CONSUMER.INFO.{ORDERS}.{}", self.durable.name);
        let reply = self.info_inbox.clone();
        self.connection
            .client
            .publish_with_reply(subject, reply, "".into())
            .await
            .map_err(|_| ConsumerError::Closed)
    }

    /// Checks that the consumer is configured as required, and that no messages are pending while none arrives.
    fn check_info(&mut self, answer: &async_nats::Message) -> Result<(), ConsumerError> {
        let Ok(Response::Ok(info)) = serde_json::from_slice::<Response<Info>>(&answer.payload) else {
            debug!(consumer = self.durable.name, "consumer info not readable");
            return Ok(());
        };
        if let Some(settings) = self.durable.edited(&info.config) {
            return Err(ConsumerError::Edited { settings });
        }
        if self.floor.is_of_former_leader(&info) {
            return Err(ConsumerError::LeaderChanged);
        }
        self.floor = AckFloor::again(Some(&self.floor), &info, self.durable.wrong.is_some());
        self.terms = ConsumerTerms::of(&info);
        let unserved = self.requests.take_unserved();
        let room = i64::try_from(info.num_ack_pending).unwrap_or(i64::MAX) < info.config.max_ack_pending;
        if unserved && info.num_pending > 0 && room && !info.paused {
            return Err(ConsumerError::Stuck { pending: info.num_pending });
        }
        Ok(())
    }
}
