//! Reserves for many orders at once. The broker commits some hundred batches a second of any size, so the requests that
//! wait during one batch form the next one. There is no timer.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use backbone::broker::direct_get::ReadError;
use program::backoff::Backoff;
use program::trace::{self, FutureExt};
use proto::orders::v1::Order;
use stock::{
    BUCKET, Batch, CommitError, ORDER_SKUS_MAX, Records, ReservationState, Store, WRITES_MAX,
    reservation_key, stock_key,
};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::{Span, debug, info_span};

use super::ledger::{Answer, Entry, Ledger, NeedsRead, ReservationRequest};
use crate::creation_time::CreationTime;
use crate::step::StepError;

/// Requests that wait for the next batch; further ones wait for a slot.
const QUEUE_REQUESTS_MAX: usize = 1000;
/// Maximum number of writes of one request: each SKU's stock and the reservation.
const REQUEST_WRITES_MAX: usize = ORDER_SKUS_MAX + 1;
/// After this long without a commit the requests fail, and the orders are retried later.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY: Backoff = Backoff { initial: Duration::from_millis(20), max: Duration::from_secs(1) };

/// The queue of all reservation requests of this process.
#[derive(Debug)]
pub(super) struct Reservations {
    queue: mpsc::Sender<Request>,
    answer_timeout: Duration,
    _batching: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Request {
    order_id: String,
    creation_time: CreationTime,
    action: ReservationRequest,
    reply: oneshot::Sender<Result<Answer, StepError>>,
}

impl Reservations {
    /// A caller has an answer within `answer_timeout`.
    pub(super) fn start(store: Store, answer_timeout: Duration) -> Self {
        let (queue, requests) = mpsc::channel(QUEUE_REQUESTS_MAX);
        // A request may wait for the batch before its own.
        let commit_timeout = COMMIT_TIMEOUT.min(answer_timeout / 2);
        let batcher = ReservationBatcher { store, stock: HashMap::new(), commit_timeout };
        let _batching = AbortOnDropHandle::new(tokio::spawn(batcher.serve(requests)));
        Self { queue, answer_timeout, _batching }
    }

    /// The outcome of the order's request, once it is durable. A retry changes nothing more.
    pub(super) async fn ask(&self, order: &Order, action: ReservationRequest) -> Result<Answer, StepError> {
        let closed = || StepError::Unavailable("the inventory is closed".to_owned());
        let span = request_span(order, &action);
        let (reply, answer) = oneshot::channel();
        let creation_time = CreationTime::of(order)?;
        let request = Request { order_id: order.order_id.clone(), creation_time, action, reply };
        let answered = async {
            self.queue.send(request).await.map_err(|_| closed())?;
            answer.await.map_err(|_| closed())?
        };
        let late = |_| Err(StepError::Unavailable("inventory: no commit in time".to_owned()));
        let answer = timeout(self.answer_timeout, answered)
            .with_context(trace::within(&span))
            .await
            .unwrap_or_else(late);
        match &answer {
            Ok(Answer::Held | Answer::Kept | Answer::Released(_) | Answer::OutOfStock(_)) => {}
            Ok(Answer::Refused(reason)) => trace::fail(&span, "refused", reason),
            Err(error) => trace::fail(&span, "unavailable", error),
        }
        answer
    }
}

/// The span of one order's request: from the queue to the commit of its batch.
fn request_span(order: &Order, action: &ReservationRequest) -> Span {
    let operation = match action {
        ReservationRequest::Reserve(_) => "reserve",
        ReservationRequest::Release => "release",
        ReservationRequest::Keep => "keep",
    };
    info_span!(
        "ask",
        otel.name = format!("{operation} {BUCKET}"),
        otel.kind = "client",
        db.system.name = "nats",
        db.operation.name = operation,
        db.collection.name = BUCKET,
        waybill.order.id = order.order_id,
    )
}

/// Serves the queue, a batch at a time.
struct ReservationBatcher {
    store: Store,
    /// Stock as last seen. Another replica or an operator may have changed it since; then the commit fails.
    stock: HashMap<String, Entry<u64>>,
    commit_timeout: Duration,
}

#[derive(Debug, Error)]
enum Failure {
    /// The answer depends on records that have to be read first.
    #[error("records have to be read")]
    NeedsRead,
    #[error(transparent)]
    Commit(#[from] CommitError),
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl From<NeedsRead> for Failure {
    fn from(_: NeedsRead) -> Self {
        Self::NeedsRead
    }
}

impl ReservationBatcher {
    async fn serve(mut self, mut queue: mpsc::Receiver<Request>) {
        while let Some(first) = queue.recv().await {
            let mut requests = vec![first];
            while writes(&requests) + REQUEST_WRITES_MAX <= WRITES_MAX {
                let Ok(next) = queue.try_recv() else { break };
                requests.push(next);
            }
            self.store.look().await;
            self.settle(requests).await;
        }
    }

    /// Answers every request after the decisions are durable.
    async fn settle(&mut self, mut requests: Vec<Request>) {
        let deadline = Instant::now() + self.commit_timeout;
        let mut ledger = Some(self.cached_ledger(&requests));
        for attempts in 1.. {
            // A caller that no longer waits may have been overtaken, and would not compensate an effect made now.
            requests.retain(|request| !request.reply.is_closed());
            let failure = match self.attempt(ledger.take(), &requests).await {
                Ok(answers) => {
                    debug!(orders = requests.len(), attempts, "reservations committed");
                    return reply(requests, answers.into_iter().map(Ok));
                }
                Err(failure) => failure,
            };
            if let Failure::Commit(CommitError::Permanent(reason)) = &failure {
                // One request is at fault, and must not fail the others.
                return self.settle_each(requests, reason).await;
            }
            let is_full = matches!(failure, Failure::Commit(CommitError::Full(_)));
            if is_full || Instant::now() >= deadline {
                let unavailable = || Err(StepError::Unavailable(format!("inventory: {failure}")));
                return reply(requests, std::iter::repeat_with(unavailable));
            }
            match failure {
                // Another writer won; the next attempt reads the records.
                Failure::NeedsRead | Failure::Commit(CommitError::Conflict) => {}
                Failure::Commit(
                    CommitError::Unknown(_) | CommitError::Full(_) | CommitError::Permanent(_),
                )
                | Failure::Read(_) => sleep(RETRY.after(attempts)).await,
            }
        }
    }

    /// Answers requests of which one at least cannot be committed, each by itself.
    async fn settle_each(&mut self, requests: Vec<Request>, reason: &str) {
        if requests.len() == 1 {
            let refused = || Err(StepError::Unexpected(format!("inventory: {reason}")));
            return reply(requests, std::iter::repeat_with(refused));
        }
        for request in requests {
            // The recursion ends: the next call has a single request.
            Box::pin(self.settle(vec![request])).await;
        }
    }

    /// Decides and commits, based on the cached ledger or else on records read now.
    async fn attempt(
        &mut self,
        ledger: Option<Ledger>,
        requests: &[Request],
    ) -> Result<Vec<Answer>, Failure> {
        let (ledger, answers) = match ledger {
            Some(ledger) => decide(ledger, requests)?,
            None => self.decide_by_records(requests).await?,
        };
        self.commit(ledger).await?;
        Ok(answers)
    }

    /// A commit fails if a record was stale, but a rejection commits nothing. So a request that would be rejected is
    /// decided again by records that are proved to be the latest.
    async fn decide_by_records(&self, requests: &[Request]) -> Result<(Ledger, Vec<Answer>), Failure> {
        let mut records = self.read(requests).await?;
        let mut latest = HashSet::new();
        loop {
            let (ledger, answers) = decide(Ledger::read(&records), requests)?;
            let refused = requests.iter().zip(&answers).filter(|(_, answer)| answer.is_out_of_stock());
            let keys = refused.flat_map(|(request, _)| keys(request));
            let unproven: Vec<_> = keys.filter(|key| latest.insert(key.clone())).collect();
            if unproven.is_empty() {
                return Ok((ledger, answers));
            }
            records.retain(|key, _| !unproven.contains(key));
            records.extend(self.store.read_proven(&unproven).await?);
        }
    }

    /// The cached stock of the requested SKUs.
    fn cached_ledger(&self, requests: &[Request]) -> Ledger {
        let wanted = requests.iter().flat_map(|request| match &request.action {
            ReservationRequest::Reserve(units) => units.keys().collect(),
            ReservationRequest::Release | ReservationRequest::Keep => Vec::new(),
        });
        Ledger::from_cache(
            wanted.filter_map(|sku| Some((sku.clone(), self.stock.get(sku)?.clone()))).collect(),
        )
    }

    /// Reads every record that the requests could touch.
    async fn read(&self, requests: &[Request]) -> Result<Records, ReadError> {
        let keys: Vec<_> = requests.iter().flat_map(keys).collect();
        let mut records = self.store.read(&keys).await?;
        // The units of a release are known only from its reservation.
        let reservations = Ledger::read(&records).reservations;
        let reservations = reservations.into_values().filter_map(|entry| entry.value);
        let held = reservations.filter_map(|reservation| match reservation.state {
            ReservationState::Held => Some(reservation.units.into_keys()),
            ReservationState::Released => None,
        });
        let keys: Vec<_> =
            held.flatten().map(|sku| stock_key(&sku)).filter(|key| !records.contains_key(key)).collect();
        if !keys.is_empty() {
            records.extend(self.store.read(&keys).await?);
        }
        Ok(records)
    }

    /// Writes what the ledger changed in one batch, and remembers the stock.
    async fn commit(&mut self, ledger: Ledger) -> Result<(), CommitError> {
        let mut batch = Batch::default();
        let mut skus = Vec::new();
        for (sku, entry) in &ledger.stock {
            if entry.changed {
                batch.write(self.store.stock_write(sku, entry.value, entry.revision));
                skus.push(sku.clone());
            }
        }
        for (order_id, entry) in &ledger.reservations {
            if let (true, Some(reservation)) = (entry.changed, &entry.value) {
                batch.write(self.store.reservation_write(order_id, reservation, entry.revision));
            }
        }
        let revisions = if batch.is_empty() { Vec::new() } else { self.store.commit(batch).await? };
        self.stock.extend(ledger.stock);
        for (sku, revision) in skus.into_iter().zip(revisions) {
            if let Some(entry) = self.stock.get_mut(&sku) {
                entry.revision = revision;
                entry.changed = false;
            }
        }
        Ok(())
    }
}

/// Decides on all requests; returns the answers, and the ledger with their changes.
fn decide(mut ledger: Ledger, requests: &[Request]) -> Result<(Ledger, Vec<Answer>), NeedsRead> {
    let decisions = requests
        .iter()
        .map(|request| ledger.decide(&request.order_id, request.creation_time, &request.action));
    let answers = decisions.collect::<Result<Vec<_>, _>>()?;
    Ok((ledger, answers))
}

/// The records that a request is about.
fn keys(request: &Request) -> Vec<String> {
    let wanted = match &request.action {
        ReservationRequest::Reserve(units) => units.keys().map(|sku| stock_key(sku)).collect(),
        ReservationRequest::Release | ReservationRequest::Keep => Vec::new(),
    };
    [vec![reservation_key(&request.order_id)], wanted].concat()
}

/// How many writes the requests may lead to.
fn writes(requests: &[Request]) -> usize {
    let writes = |request: &Request| match &request.action {
        ReservationRequest::Reserve(units) => units.len() + 1,
        ReservationRequest::Release => REQUEST_WRITES_MAX,
        ReservationRequest::Keep => 1,
    };
    requests.iter().map(writes).sum()
}

fn reply(requests: Vec<Request>, answers: impl Iterator<Item = Result<Answer, StepError>>) {
    for (request, answer) in requests.into_iter().zip(answers) {
        // A worker that no longer waits finds the answer in the records at its next attempt.
        drop(request.reply.send(answer));
    }
}
