//! Barriers: proof that a message does not exist. A server that is partitioned from the others, or that lags, answers
//! reads from an incomplete copy. So a message that its answer lacks may still exist. A barrier is a small message in
//! the stream itself. Once the stream's Raft group has committed it, every answer that includes it comes from a server
//! with all messages acknowledged before.
//!
//! A stream with one replica needs no barrier: its only server has every message.

use std::collections::HashMap;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use program::backoff::Backoff;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use crate::broker::connection::Connection;
use crate::broker::direct_get::{self, Batch, ReadError, Stored};
use crate::broker::publish::{Outcome, publish};
use crate::broker::streams::{DEAD_LETTERS, ORDERS, info};
use crate::log::ids::Revision;
use crate::log::subjects;

/// How long a barrier waits for its acknowledgement.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a proof takes at most, the reads behind the barrier included.
const PROOF_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a barrier is kept: longer than any reader waits for it.
const TTL: &str = "10s";
/// Least time between two barriers of one process, so that lookups of missing records do not fill the log.
const INTERVAL: Duration = Duration::from_millis(10);
/// Wait before the next read from a replica that lags.
const LOOK: Backoff = Backoff { initial: Duration::from_millis(10), max: Duration::from_millis(200) };
/// Messages before a barrier that are searched for the last one on a busy filter.
const RECENT_MESSAGES: u32 = 256;
/// How long the number of replicas of a stream is cached.
const REPLICAS_BELIEVED: Duration = Duration::from_secs(10);

/// The barriers of one stream. Cheap to clone; clones share them.
#[derive(Clone, Debug)]
pub struct Barrier {
    connection: Connection,
    stream: &'static str,
    subject: String,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The latest barrier. Locked while it is in flight.
    last: Mutex<Option<Attempt>>,
    /// Locked during the request.
    replicated: Mutex<Option<Replicated>>,
    /// The position of the last message on a filter, while a reader waits for it.
    positions: StdMutex<HashMap<String, Weak<Mutex<Option<Position>>>>>,
    /// When the stream's group last committed a write of this process, and the connection that sent it. A commit does
    /// not cover the server of another connection.
    committed: StdMutex<Option<(Instant, u64)>>,
}

/// Whether the stream has several replicas, and when and by which connection that was read.
#[derive(Debug)]
struct Replicated {
    begun: Instant,
    by: u64,
    answer: Result<bool, ReadError>,
}

#[derive(Debug)]
struct Position {
    begun: Instant,
    last: Result<Revision, ReadError>,
}

#[derive(Debug)]
struct Attempt {
    begun: Instant,
    committed: Result<Revision, String>,
}

impl Barrier {
    /// The barriers of the order log.
    pub fn of_orders(connection: Connection) -> Self {
        Self::new(connection, ORDERS, subjects::ORDER_BARRIER)
    }

    /// The barriers of the dead letters.
    pub fn of_dead_letters(connection: Connection) -> Self {
        Self::new(connection, DEAD_LETTERS, "DEAD_LETTER.barrier")
    }

    /// The barriers of another stream, on a subject of its own. The stream has to allow a TTL for each message.
    pub fn new(connection: Connection, stream: &'static str, subject: &str) -> Self {
        Self { connection, stream, subject: subject.to_owned(), shared: Arc::default() }
    }

    /// Waits until the stream's group has committed a barrier that was begun after this call, and returns its revision;
    /// `None` if the stream has one replica. All waiting callers share one barrier. Cancel-safe.
    pub async fn pass(&self) -> Result<Option<Revision>, ReadError> {
        let asked = Instant::now();
        if !self.is_replicated().await? {
            return Ok(None);
        }
        let mut last = self.shared.last.lock().await;
        if let Some(last) = last.as_ref() {
            if last.begun >= asked {
                return last.committed.clone().map(Some).map_err(ReadError::NoAnswer);
            }
            sleep_until(last.begun + INTERVAL).await;
        }
        let begun = Instant::now();
        let committed = match self.write(None).await {
            Outcome::Stored(revision) => Ok(revision),
            Outcome::Conflict => Err("barrier rejected".to_owned()),
            Outcome::Full(error)
            | Outcome::TooLarge(error)
            | Outcome::Permanent(error)
            | Outcome::Unavailable(error)
            | Outcome::Unknown(error) => Err(format!("stream {} does not commit: {error}", self.stream)),
        };
        let attempt = last.insert(Attempt { begun, committed });
        attempt.committed.clone().map(Some).map_err(ReadError::NoAnswer)
    }

    /// The last message on each subject that matches one of `filters`, by sequence. A subject without one had no
    /// message when this was called.
    pub async fn last_of_each(&self, filters: &[String]) -> Result<Vec<Stored>, ReadError> {
        let deadline = Instant::now() + PROOF_TIMEOUT;
        let client = &self.connection.client;
        let proof = async {
            let Some(barrier) = self.pass().await? else {
                return direct_get::last_of_each(client, self.stream, filters).await;
            };
            let with_barrier = [filters, std::slice::from_ref(&self.subject)].concat();
            for looks in 1.. {
                match direct_get::last_of_each(client, self.stream, &with_barrier).await {
                    Ok(mut stored) => {
                        let is_proof =
                            |last: &Stored| *last.subject == *self.subject && last.sequence >= barrier;
                        if stored.iter().any(is_proof) {
                            stored.retain(|last| *last.subject != *self.subject);
                            return Ok(stored);
                        }
                    }
                    // Another server may answer the next read.
                    Err(ReadError::NoAnswer(_)) => {}
                    Err(error) => return Err(error),
                }
                sleep(LOOK.after(looks)).await;
            }
            Err(lags())
        };
        timeout_at(deadline, proof).await.unwrap_or_else(|_| Err(lags()))
    }

    /// Position of the last message on `filter`, [`Revision::NONE`] if there is none: no later one was acknowledged
    /// before this call. All callers that wait for the same filter share the answer, because the stream accepts one
    /// conditional message per filter at a time.
    pub async fn last_on(&self, filter: &str) -> Result<Revision, ReadError> {
        let asked = Instant::now();
        let position = self.position(filter);
        let mut position = position.lock().await;
        if let Some(position) = position.as_ref().filter(|position| position.begun >= asked) {
            return position.last.clone();
        }
        let begun = Instant::now();
        let last = self.find_last_on(filter).await;
        position.insert(Position { begun, last }).last.clone()
    }

    /// Position of the last message whose subject `matches`, if it is among the last ones of the stream: no later one was
    /// acknowledged before this call. For filters that match very many subjects. The broker visits each of them for
    /// [`Self::last_on`], and stores no message meanwhile. `None` if it is not among the last ones, or the stream has one
    /// replica.
    pub async fn recent_on(&self, matches: impl Fn(&str) -> bool) -> Result<Option<Revision>, ReadError> {
        let proof = async {
            let Some(barrier) = self.pass().await? else { return Ok(None) };
            let (mut last, mut from) = (None, Revision(barrier.0.saturating_sub(RECENT_MESSAGES.into())));
            for looks in 1.. {
                let client = &self.connection.client;
                match direct_get::batch_from(client, self.stream, direct_get::ALL, from, RECENT_MESSAGES)
                    .await
                {
                    Ok(Batch { messages, .. }) => {
                        let found = messages.iter().rfind(|message| matches(&message.subject));
                        last = found.map(|found| found.sequence).or(last);
                        let reached = messages.last().map_or(Revision::NONE, |message| message.sequence);
                        if reached >= barrier {
                            return Ok(last);
                        }
                        from = from.max(Revision(reached.0 + 1));
                        if !messages.is_empty() {
                            continue;
                        }
                    }
                    // Another server may answer the next read.
                    Err(ReadError::NoAnswer(_)) => {}
                    Err(error) => return Err(error),
                }
                sleep(LOOK.after(looks)).await;
            }
            Err(lags())
        };
        timeout(PROOF_TIMEOUT, proof).await.unwrap_or_else(|_| Err(lags()))
    }

    /// Whether answers need a proof: the stream has several replicas, and the one that answers may lag.
    pub async fn is_needed(&self) -> Result<bool, ReadError> {
        self.is_replicated().await
    }

    /// The answer that all waiting callers of `filter` share.
    fn position(&self, filter: &str) -> Arc<Mutex<Option<Position>>> {
        let mut positions = self.shared.positions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(position) = positions.get(filter).and_then(Weak::upgrade) {
            return position;
        }
        positions.retain(|_, position| position.strong_count() > 0);
        let position = Arc::default();
        positions.insert(filter.to_owned(), Arc::downgrade(&position));
        position
    }

    async fn find_last_on(&self, filter: &str) -> Result<Revision, ReadError> {
        let deadline = Instant::now() + PROOF_TIMEOUT;
        let proof = async {
            if !self.is_replicated().await? {
                return self.last_anywhere(filter).await;
            }
            let mut barrier = None;
            for looks in 1.. {
                // The replica that answers may lag.
                if let Ok(last) = self.last_anywhere(filter).await {
                    if barrier.is_some_and(|barrier| last > barrier) {
                        return Ok(last);
                    }
                    // The barrier is stored only if there is no later message.
                    match self.write(Some((filter.to_owned(), last))).await {
                        Outcome::Stored(_) => return Ok(last),
                        // On a busy filter there always is a later message. A message after a barrier is recent enough.
                        Outcome::Conflict => {
                            if barrier.is_none() {
                                barrier = self.pass().await?;
                            }
                        }
                        Outcome::Unavailable(_) => {}
                        Outcome::Full(error)
                        | Outcome::TooLarge(error)
                        | Outcome::Permanent(error)
                        | Outcome::Unknown(error) => return Err(ReadError::NoAnswer(error)),
                    }
                }
                sleep(LOOK.after(looks)).await;
            }
            Err(lags())
        };
        timeout_at(deadline, proof).await.unwrap_or_else(|_| Err(lags()))
    }

    /// A write sent by this connection was committed.
    pub(crate) fn committed(&self, connects: u64) {
        *self.last_commit() = Some((Instant::now(), connects));
    }

    /// Whether a write sent by the present connection was committed within this time.
    pub(crate) fn has_committed_within(&self, time: Duration) -> bool {
        let now = *self.connection.connects().borrow();
        self.last_commit().is_some_and(|(committed, by)| by == now && committed.elapsed() <= time)
    }

    /// Position of the last message on `filter`, from any replica.
    async fn last_anywhere(&self, filter: &str) -> Result<Revision, ReadError> {
        let last = direct_get::last_on(&self.connection.client, self.stream, filter).await?;
        Ok(last.map_or(Revision::NONE, |last| last.sequence))
    }

    /// Publishes a barrier; with an expectation, only if that is the last message on its filter.
    async fn write(&self, expectation: Option<(String, Revision)>) -> Outcome {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-TTL", TTL);
        let deadline = Instant::now() + COMMIT_TIMEOUT;
        let (connection, subject) = (&self.connection, self.subject.clone());
        let connects = *connection.connects().borrow();
        let outcome =
            publish(connection, self.stream, subject, headers, Bytes::new(), expectation, deadline).await;
        if matches!(outcome, Outcome::Stored(_)) {
            self.committed(connects);
        }
        outcome
    }

    async fn is_replicated(&self) -> Result<bool, ReadError> {
        let asked = Instant::now();
        let mut replicated = self.shared.replicated.lock().await;
        let by = *self.connection.connects().borrow();
        if let Some(last) = replicated.as_ref().filter(|last| last.by == by) {
            let is_believed = last.answer.is_ok() && last.begun.elapsed() < REPLICAS_BELIEVED;
            // All waiting callers share the answer.
            if is_believed || last.begun >= asked {
                return last.answer.clone();
            }
        }
        direct_get::reachable(&self.connection.client)?;
        let begun = Instant::now();
        let answer = info(&self.connection, self.stream).await.map(|info| info.config.num_replicas > 1);
        *replicated = Some(Replicated { begun, by, answer: answer.clone() });
        answer
    }

    /// No holder panics, so a poisoned lock is used as it is.
    fn last_commit(&self) -> MutexGuard<'_, Option<(Instant, u64)>> {
        self.shared.committed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lags() -> ReadError {
    ReadError::NoAnswer("no server proved in time that it is up to date".to_owned())
}
