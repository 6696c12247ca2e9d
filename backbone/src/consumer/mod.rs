//! A durable pull consumer of the order log, shared by all replicas of whoever reads under its name.
//!
//! Nothing is fetched ahead: the broker sends only as many messages as the reader has said it can take. The reader
//! asks for more when nothing stands, or when it could take twice as many as do: so a busy one asks for several at
//! a time, and none waits for a timer.

pub mod lag;

mod ack_floor;
mod durable;

use std::time::{Duration, SystemTime};

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::response::Response;
use async_nats::{StatusCode, Subscriber};
use futures::StreamExt;
use serde::Serialize;
use thiserror::Error;
use tokio::select;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::debug;

pub use crate::consumer::ack_floor::Floor;

use crate::broker::connection::Connection;
use crate::broker::streams::ORDERS;
use crate::consumer::durable::Durable;
use crate::log::subjects::{self, EventKind};

/// How long one request for messages stands. Whoever leaves has to wait for its end.
const REQUEST_EXPIRY: Duration = Duration::from_secs(2);
/// A broker silent for so long while a request stands has lost it.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Requests in a row that the broker may lose. After more of them it is not the requests.
const LOST_REQUESTS_MAX: u32 = 1;
/// For how long requests may bring nothing before somebody looks whether there was nothing.
const UNSERVED_MAX: Duration = Duration::from_secs(30);
/// How often the consumer's settings are looked at. The broker answers from memory, however long the stream is.
const LOOK_INTERVAL: Duration = Duration::from_secs(15);
/// How often its floor is recorded, for those who start when nobody is left who knows it.
const RECORD_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// How much longer than its requests stand a leaving reader waits for what they bring.
const LAST_MESSAGES_TIMEOUT: Duration = Duration::from_millis(100);
/// How much longer it waits for the broker to learn that it leaves.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

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
pub struct Terms {
    /// How long the broker waits for a sign of life. Another program may have chosen that.
    pub ack_wait: Duration,
    /// When the consumer was made. What is older may have been brought before, by another of its name.
    pub since: SystemTime,
    /// Whether it brings the event of an order that is carried, so that older ones need not be kept for it.
    pub brings_carried: bool,
}

impl Terms {
    fn of(info: &Info) -> Self {
        let carried = subjects::kind(EventKind::Carried);
        let brings_carried = info.config.filter_subjects.contains(&carried);
        Self { ack_wait: info.config.ack_wait, since: info.created.into(), brings_carried }
    }
}

/// An open consumer.
#[derive(Debug)]
pub struct Consumer {
    durable: Durable,
    connection: Connection,
    messages: Subscriber,
    /// Answers to request number n come to `<inbox>.<n>`.
    inbox: String,
    request: u64,
    /// Requests up to this one were given up.
    given_up: u64,
    /// The latest request before a message came.
    served: u64,
    /// Messages that the requests since then may still bring.
    standing: usize,
    silent_until: Instant,
    /// Requests lost since the latest sign of life.
    lost: u32,
    connects: watch::Receiver<u64>,
    look_at: Instant,
    /// Where the answer to a look comes.
    look_inbox: String,
    /// Since when requests have brought nothing.
    unserved_since: Instant,
    /// The latest of them, once that is long ago; the next look tells whether there was nothing.
    unserved: Option<u64>,
    floor: Floor,
    /// When the floor is recorded again.
    record_at: Instant,
    terms: Terms,
    leave_at: Option<Instant>,
    /// Whether the broker was told that no more is wanted.
    drained: bool,
}

/// The consumer brings no more messages and has to be opened anew.
#[derive(Debug, Error)]
pub enum Lost {
    /// The broker refuses its requests.
    #[error("the broker answered {0}")]
    Refused(String),
    /// There are messages and room for them, and none came.
    #[error("{pending} messages are pending and none was delivered")]
    Stuck {
        /// Messages that it should have delivered.
        pending: u64,
    },
    /// Somebody has edited it, so that it may pass messages over, hold them back, or bring them too often.
    #[error("it was edited: {settings}")]
    Edited {
        /// What is other than it has to be.
        settings: String,
    },
    /// Another server leads its replicas, and may have passed messages over.
    #[error("it has got another leader")]
    Led,
    /// Whatever is asked, nothing comes, although the connection is up: so the broker knows no longer whom to answer.
    #[error("no sign of life from the broker, although it was asked again")]
    Silent,
    /// The connection is closed for good.
    #[error("the connection is closed")]
    Closed,
}

#[derive(Serialize)]
struct Request {
    batch: usize,
    /// Nanoseconds.
    expires: u128,
}

impl Consumer {
    /// Opens the consumer: makes it if it is missing, and makes it right if somebody has edited it. One that this user
    /// may not make right is used as it is. `floor` is how far it had come when it was open before.
    pub async fn open(
        connection: &Connection,
        config: &ConsumerConfig,
        floor: Option<&Floor>,
    ) -> Result<Self, async_nats::Error> {
        let mut connects = connection.connects();
        connects.mark_unchanged();
        let client = &connection.client;
        let inbox = client.new_inbox();
        let messages = client.subscribe(format!("{inbox}.*")).await?;
        let recorded = match floor {
            Some(_) => None,
            None => Floor::recorded(connection, config.name).await?,
        };
        let former = floor.or(recorded.as_ref());
        let (durable, info) = Durable::open(connection, config, former).await?;
        let floor = Floor::again(former, &info, durable.wrong.is_some());
        Ok(Self {
            durable,
            connection: connection.clone(),
            messages,
            look_inbox: format!("{inbox}.look"),
            inbox,
            request: 0,
            given_up: 0,
            served: 0,
            standing: 0,
            silent_until: Instant::now(),
            lost: 0,
            connects,
            look_at: Instant::now() + LOOK_INTERVAL,
            unserved_since: Instant::now(),
            unserved: None,
            floor,
            record_at: Instant::now(),
            terms: Terms::of(&info),
            leave_at: None,
            drained: false,
        })
    }

    /// Makes sure that the consumer is there and as it has to be, without reading from it.
    pub async fn provision(
        connection: &Connection,
        config: &ConsumerConfig,
    ) -> Result<(), async_nats::Error> {
        let (durable, _) = Durable::open(connection, config, None).await?;
        durable.wrong.map_or(Ok(()), |wrong| Err(wrong.into()))
    }

    /// The next message, for a reader that can take up to `wanted` more. A request that stands already may
    /// bring more than that, if less is wanted than was before. Cancel-safe.
    pub async fn next(&mut self, wanted: usize) -> Result<Message, Lost> {
        loop {
            if wanted > 0 && wanted >= 2 * self.standing {
                self.ask(wanted - self.standing).await?;
            } else if self.standing == 0 {
                return std::future::pending().await;
            }
            let message = select! {
                message = self.messages.next() => message.ok_or(Lost::Closed)?,
                // The broker forgets requests with the connection that they came by.
                _ = self.connects.changed() => {
                    self.give_up();
                    continue;
                }
                () = sleep_until(self.silent_until) => {
                    self.lost += 1;
                    if self.lost > LOST_REQUESTS_MAX {
                        return Err(Lost::Silent);
                    }
                    debug!(consumer = self.durable.name, "no sign of life from the broker, asked again");
                    self.give_up();
                    continue;
                }
                () = sleep_until(self.look_at) => {
                    self.look().await?;
                    continue;
                }
            };
            if self.is_answer_to_look(&message) {
                self.learn(&message)?;
                continue;
            }
            self.silent_until = Instant::now() + SILENCE_MAX;
            self.lost = 0;
            match message.status {
                None => {
                    self.standing = self.standing.saturating_sub(1);
                    self.served = self.request;
                    self.unserved_since = Instant::now();
                    return Ok(self.delivery(message));
                }
                Some(status) => {
                    let Some(request) = self.request_of(&message).filter(|request| *request > self.given_up)
                    else {
                        continue;
                    };
                    if status != StatusCode::TIMEOUT {
                        let description = message.description.unwrap_or_default();
                        return Err(Lost::Refused(format!("{status} {description}")));
                    }
                    self.standing = self.standing.saturating_sub(unserved(&message));
                    if self.served < request && self.unserved_since.elapsed() > UNSERVED_MAX {
                        self.unserved_since = Instant::now();
                        self.unserved = Some(request);
                        self.look().await?;
                    }
                }
            }
        }
    }

    /// How far it had come when it was last as it has to be.
    pub fn floor(&self) -> &Floor {
        &self.floor
    }

    /// What holds for the messages that it brings now.
    pub fn terms(&self) -> Terms {
        self.terms
    }

    /// In what the consumer is other than it has to be, if this user may not make it right.
    pub fn wrong(&self) -> Option<&str> {
        self.durable.wrong.as_deref()
    }

    /// Messages that may come although no more are asked for.
    pub fn standing(&self) -> usize {
        self.standing
    }

    /// Asks for no more, and gives out what still comes: the message, or `None` when that was all. Waits until no request
    /// stands, but no longer than until `leave_by`: a broker that is asked from another account may not notice that
    /// nobody listens any more, and what it then delivers comes again only after ACK_WAIT.
    pub async fn last(&mut self, leave_by: Instant) -> Option<Message> {
        let ended_by = *self
            .leave_at
            .get_or_insert_with(|| leave_by.min(Instant::now() + REQUEST_EXPIRY) + LAST_MESSAGES_TIMEOUT);
        loop {
            // A broker that is away brings nothing.
            if self.standing > 0
                && self.connection.is_up()
                && let Ok(message) = timeout_at(ended_by, self.messages.next()).await
            {
                let message = message?;
                if self.is_delivery(&message) {
                    self.standing -= 1;
                    return Some(self.delivery(message));
                }
                self.end(&message);
            } else {
                self.standing = 0;
                // What the broker sends before it learns of the end still comes; unsubscribing would lose it until
                // ACK_WAIT. With a connection that is closed, leaving is all that is left to do.
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

    /// Takes note that a request brings no more, if that is what the broker says.
    fn end(&mut self, status: &async_nats::Message) {
        if self.request_of(status).is_some_and(|request| request > self.given_up) {
            let refused = status.status != Some(StatusCode::TIMEOUT);
            self.standing = if refused { 0 } else { self.standing.saturating_sub(unserved(status)) };
        }
    }

    fn delivery(&self, message: async_nats::Message) -> Message {
        Message { message, context: self.connection.jetstream.clone() }
    }

    async fn ask(&mut self, wanted: usize) -> Result<(), Lost> {
        if self.standing == 0 {
            self.connects.mark_unchanged();
        }
        self.request += 1;
        let request = Request { batch: wanted, expires: REQUEST_EXPIRY.as_nanos() };
        let payload = serde_json::to_vec(&request).map_err(|error| Lost::Refused(error.to_string()))?;
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{ORDERS}.{}", self.durable.name);
        let reply = format!("{}.{}", self.inbox, self.request);
        self.connection
            .client
            .publish_with_reply(subject, reply, payload.into())
            .await
            .map_err(|_| Lost::Closed)?;
        self.standing += wanted;
        self.silent_until = Instant::now() + SILENCE_MAX;
        Ok(())
    }

    fn give_up(&mut self) {
        self.given_up = self.request;
        self.standing = 0;
    }

    /// The request that a status is about.
    fn request_of(&self, status: &async_nats::Message) -> Option<u64> {
        status.subject.strip_prefix(&self.inbox)?.strip_prefix('.')?.parse().ok()
    }

    fn is_delivery(&self, message: &async_nats::Message) -> bool {
        message.status.is_none() && !self.is_answer_to_look(message)
    }

    fn is_answer_to_look(&self, message: &async_nats::Message) -> bool {
        *message.subject == *self.look_inbox
    }

    /// Asks how the consumer is. Nothing waits for the answer; without one the next look tells.
    async fn look(&mut self) -> Result<(), Lost> {
        self.look_at = Instant::now() + LOOK_INTERVAL;
        if Instant::now() >= self.record_at {
            self.record_at = Instant::now() + RECORD_INTERVAL;
            self.floor.record(&self.connection, self.durable.name).await;
        }
        let subject = format!("$JS.API.CONSUMER.INFO.{ORDERS}.{}", self.durable.name);
        let reply = self.look_inbox.clone();
        self.connection.client.publish_with_reply(subject, reply, "".into()).await.map_err(|_| Lost::Closed)
    }

    /// Whether the consumer is as it has to be, and whether nothing came because there is nothing.
    fn learn(&mut self, answer: &async_nats::Message) -> Result<(), Lost> {
        let Ok(Response::Ok(info)) = serde_json::from_slice::<Response<Info>>(&answer.payload) else {
            debug!(consumer = self.durable.name, "no answer how the consumer is");
            return Ok(());
        };
        if let Some(settings) = self.durable.edited(&info.config) {
            return Err(Lost::Edited { settings });
        }
        if self.floor.is_of_former_leader(&info) {
            return Err(Lost::Led);
        }
        self.floor = Floor::again(Some(&self.floor), &info, self.durable.wrong.is_some());
        self.terms = Terms::of(&info);
        let unserved = self.unserved.take().is_some_and(|request| self.served < request);
        let room = i64::try_from(info.num_ack_pending).unwrap_or(i64::MAX) < info.config.max_ack_pending;
        if unserved && info.num_pending > 0 && room && !info.paused {
            return Err(Lost::Stuck { pending: info.num_pending });
        }
        Ok(())
    }
}

/// How many messages a request that has expired did not bring.
fn unserved(expired: &async_nats::Message) -> usize {
    let header = expired.headers.as_ref().and_then(|headers| headers.get("Nats-Pending-Messages"));
    header.and_then(|value| value.as_str().parse().ok()).unwrap_or(0)
}
