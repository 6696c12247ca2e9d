//! The events that the stream republishes, shared by all watchers of the same subject. There is one subscription per
//! subject, however many watchers there are, and no watcher slows another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_nats::{Client, Message, Subscriber};
use futures::StreamExt;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::broadcast::{self, Receiver, Sender};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use crate::broker::direct_get::ReadError;
use crate::log::event::Recorded;
use crate::log::ids::Revision;
use crate::log::subjects::LIVE_PREFIX;

/// Events held for the slowest watcher of a subject. One that falls further behind reads the log.
const EVENTS_BUFFERED_MAX: usize = 16;

/// The watched subjects.
#[derive(Debug, Default)]
pub(super) struct LiveTopics {
    subjects: Mutex<HashMap<String, Weak<Topic>>>,
}

/// One subject, for as long as it is watched.
#[derive(Debug)]
struct Topic {
    subject: String,
    events: Sender<Arc<Recorded>>,
    live: Arc<LiveTopics>,
    _receiving: AbortOnDropHandle<()>,
}

/// The messages that one watcher receives on a subject.
#[derive(Debug)]
pub(super) struct Listener {
    events: Receiver<Arc<Recorded>>,
    _topic: Arc<Topic>,
}

/// A received message.
#[derive(Debug)]
pub(super) enum LiveEvent {
    Event(Arc<Recorded>),
    /// Some events, which the listener was too slow for.
    Missed,
}

impl LiveTopics {
    /// Subscribes to `subject`. Receives what is stored after this returns, unless the connection is lost.
    pub(super) async fn listen(
        self: &Arc<Self>,
        client: &Client,
        subject: String,
    ) -> Result<Listener, ReadError> {
        if let Some(topic) = self.topic(&subject) {
            return Ok(Listener::of(topic));
        }
        let subscriber = client.subscribe(subject.clone()).await;
        let subscriber = subscriber.map_err(|error| ReadError::NoAnswer(error.to_string()))?;

        let mut subjects = self.lock();
        // Another caller may have subscribed meanwhile.
        if let Some(topic) = subjects.get(&subject).and_then(Weak::upgrade) {
            return Ok(Listener::of(topic));
        }
        let (events, _) = broadcast::channel(EVENTS_BUFFERED_MAX);
        let receiving = AbortOnDropHandle::new(tokio::spawn(receive(subscriber, events.clone())));
        let topic = Topic { subject: subject.clone(), events, live: self.clone(), _receiving: receiving };
        let topic = Arc::new(topic);
        subjects.insert(subject, Arc::downgrade(&topic));
        Ok(Listener::of(topic))
    }

    fn topic(&self, subject: &str) -> Option<Arc<Topic>> {
        self.lock().get(subject).and_then(Weak::upgrade)
    }

    /// No holder panics, so a poisoned lock is used as it is.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Weak<Topic>>> {
        self.subjects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        let mut subjects = self.live.lock();
        // A newer topic may have replaced this one.
        if subjects.get(&self.subject).is_some_and(|topic| topic.strong_count() == 0) {
            subjects.remove(&self.subject);
        }
        if subjects.capacity() > 4 * subjects.len() {
            subjects.shrink_to_fit();
        }
    }
}

impl Listener {
    fn of(topic: Arc<Topic>) -> Self {
        Self { events: topic.events.subscribe(), _topic: topic }
    }

    /// The next message. Cancel-safe.
    pub(super) async fn next(&mut self) -> LiveEvent {
        match self.events.recv().await {
            Ok(event) => LiveEvent::Event(event),
            Err(RecvError::Lagged(_)) => LiveEvent::Missed,
            // Never happens: the topic held here owns a sender.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }

    /// Messages already received.
    pub(super) fn try_next(&mut self) -> Option<LiveEvent> {
        match self.events.try_recv() {
            Ok(event) => Some(LiveEvent::Event(event)),
            Err(TryRecvError::Lagged(_)) => Some(LiveEvent::Missed),
            Err(TryRecvError::Empty | TryRecvError::Closed) => None,
        }
    }
}

/// Forwards messages to the current receivers. Ends with the topic.
async fn receive(mut subscriber: Subscriber, events: Sender<Arc<Recorded>>) {
    while let Some(message) = subscriber.next().await {
        let subject = message.subject.clone();
        match decode(message) {
            // Without listeners sending fails. That is not an error: the topic is dropped, which ends this task.
            Ok(event) => drop(events.send(Arc::new(event))),
            Err(error) => warn!(%subject, error, "foreign message on a live subject, skipped"),
        }
    }
}

/// Reads a republished message: the stream says in a header where it stored it.
fn decode(message: Message) -> Result<Recorded, String> {
    let headers = message.headers.as_ref();
    // The last one is the broker's; the publisher may have set one before it.
    let sequence = headers.and_then(|headers| headers.get_last("Nats-Sequence"));
    let sequence = sequence.and_then(|text| text.as_str().parse().ok());
    let sequence = sequence.ok_or("no Nats-Sequence")?;
    let subject = message.subject.strip_prefix(LIVE_PREFIX).unwrap_or_default();
    Recorded::decode(subject, Revision(sequence), headers, message.payload).map_err(|error| error.to_string())
}
