//! The runtime of a step: a pool that pulls no more messages than it can work on. So a spike waits in the stream and
//! not in memory, and the messages of a crashed process are redelivered. `admission` decides which message starts.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Message;
use backbone::consumer::{Consumer, ConsumerConfig, ConsumerError, ConsumerTerms};
use backbone::dead_letters::DeadLetters;
use backbone::log::OrderLog;
use backbone::log::ids::Revision;
use backbone::log::subjects;
use program::backoff::Backoff;
use program::telemetry::LogThrottle;
use tokio::select;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admission::{Admission, AttemptId, DependencySignal, Verdict};
use crate::breaker::Transition;
use crate::config::ProcessorConfig;
use crate::delivery::RETRY;
use crate::metrics;
use crate::status::Status;
use crate::step::{Step, StepProfile};
use crate::suspects::OrderRef;
use crate::worker::{Worker, postpone};

pub(crate) const REOPEN: Backoff =
    Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(2) };
/// How long returning unfinished messages may take after the drain timeout.
const RETURN_TIMEOUT: Duration = Duration::from_secs(1);

static PAUSED: LogThrottle = LogThrottle::every(Duration::from_secs(30));

/// Works for `step` until `drain` is cancelled, and running work is finished or nak'ed.
pub(crate) async fn process<S: Step>(
    profile: StepProfile,
    step: Arc<S>,
    log: OrderLog,
    dead_letters: DeadLetters,
    config: &ProcessorConfig,
    status: &Status,
    drain: &CancellationToken,
) {
    let StepProfile { name, worker_pool_size, .. } = profile;
    let consumer = ConsumerConfig::of_step(name, config.ack_wait);
    let pool_size = usize::from(config.worker_pool_size.unwrap_or(worker_pool_size));
    let leave = CancellationToken::new();
    let mut pool = Pool {
        name,
        worker: Arc::new(Worker::new(profile, step, log.clone(), dead_letters, config, leave.clone())),
        running: JoinSet::new(),
        attempts: HashMap::new(),
        admission: Admission::new(pool_size),
        leave: leave.clone(),
        status: status.clone(),
        drain_timeout: config.drain_timeout,
        deadline: None,
    };
    metrics::start(name);
    let watched = pool.worker.clone();
    metrics::alone(name, move || watched.suspects().alone(Instant::now()));
    status.set_workers(pool_size);
    info!(step = name, workers = pool_size, "processing");
    let (mut failures, mut floor) = (0, None);
    while !drain.is_cancelled() {
        let opened = select! {
            () = drain.cancelled() => break,
            opened = Consumer::open(log.connection(), &consumer, floor.as_ref()) => opened,
        };
        match opened {
            Ok(mut consumer) => {
                let opened_at = Instant::now();
                status.opened(consumer.wrong());
                let ended = pool.consume(&mut consumer, drain).await;
                let reason = ended.as_ref().err().map(ToString::to_string);
                status.closed(reason.unwrap_or_else(|| "draining".to_owned()));
                floor = Some(consumer.floor().clone());
                // A consumer that is lost at once counts as a failed opening.
                failures = if opened_at.elapsed() > REOPEN.max { 0 } else { failures + 1 };
                if let Err(reason) = ended {
                    metrics::reopened(name, &reason);
                    warn!(step = name, %reason, "consumer lost, reopened");
                }
            }
            Err(error) => {
                failures += 1;
                status.closed(error.to_string());
                warn!(step = name, %error, "consumer not opened, retrying");
            }
        }
        select! {
            () = drain.cancelled() => {}
            () = sleep(REOPEN.after(failures)) => {}
        }
    }

    let deadline = pool.deadline();
    if !pool.finish(deadline).await {
        let unfinished = pool.running.len();
        warn!(step = name, unfinished, drain_timeout = ?config.drain_timeout, "drain timeout reached, unfinished messages returned");
        leave.cancel();
        pool.finish(Instant::now() + RETURN_TIMEOUT).await;
    }
}

/// The messages in progress, and how many more may start.
struct Pool<S> {
    name: &'static str,
    worker: Arc<Worker<S>>,
    running: JoinSet<DependencySignal>,
    /// The running work, by its task, and the means to stop it.
    attempts: HashMap<Id, (AttemptId, CancellationToken)>,
    admission: Admission,
    leave: CancellationToken,
    status: Status,
    drain_timeout: Duration,
    /// The end of the drain timeout, if the drain has begun.
    deadline: Option<Instant>,
}

impl<S: Step> Pool<S> {
    /// Processes messages of the consumer until the drain begins or the consumer is lost.
    async fn consume(
        &mut self,
        consumer: &mut Consumer,
        drain: &CancellationToken,
    ) -> Result<(), ConsumerError> {
        loop {
            let now = Instant::now();
            self.stop_overtaken(now);
            self.status.set_in_flight(self.running.len(), self.admission.state(now));
            let (wanted, wakes_at) = (self.admission.wanted(now), self.admission.wakes_at(now));
            select! {
                biased;
                () = drain.cancelled() => break,
                Some(ended) = self.running.join_next_with_id() => self.end_attempt(ended),
                message = consumer.next(wanted), if wanted > 0 || consumer.standing() > 0 => {
                    self.receive(message?, consumer.terms()).await
                }
                () = sleep_until(wakes_at.unwrap_or(now)), if wakes_at.is_some() => {}
            }
        }
        let deadline = self.deadline();
        while let Some(message) = consumer.last(deadline).await {
            self.receive(message, consumer.terms()).await;
        }
        Ok(())
    }

    fn deadline(&mut self) -> Instant {
        *self.deadline.get_or_insert_with(|| Instant::now() + self.drain_timeout)
    }

    async fn receive(&mut self, message: Message, terms: ConsumerTerms) {
        self.status.record_delivery();
        let now = Instant::now();
        let (order_ref, deliveries) = order_ref_of(&message);
        let verdict = self.admission.admit(order_ref, &self.worker.suspects(), now);
        let slot = match verdict {
            Verdict::Begin(slot) => slot,
            Verdict::Postpone(delay) => return postpone(self.name, &message, delay, "no_place").await,
            Verdict::PostponeSuspect(delay) => {
                let delay = delay.max(RETRY.after(deliveries));
                return postpone(self.name, &message, delay, "suspect").await;
            }
        };
        let attempt_id = self.admission.begin(order_ref, slot, now);
        let (worker, stop) = (self.worker.clone(), self.leave.child_token());
        let stopped = stop.clone();
        let task =
            self.running.spawn(async move { worker.handle(message, order_ref, terms, &stopped).await });
        self.attempts.insert(task.id(), (attempt_id, stop));
    }

    /// Stops attempts that block other orders.
    fn stop_overtaken(&mut self, now: Instant) {
        let overtaken = self.admission.overtaken(&mut self.worker.suspects(), now);
        let to_stop = self.attempts.values().filter(|(attempt_id, _)| overtaken.contains(attempt_id));
        to_stop.for_each(|(_, stop)| stop.cancel());
    }

    fn end_attempt(&mut self, ended: Result<(Id, DependencySignal), JoinError>) {
        let (task, signal) = match ended {
            Ok(ended) => ended,
            // The broker redelivers its message after ACK_WAIT.
            Err(error) => {
                error!(step = self.name, %error, "worker panicked");
                (error.id(), DependencySignal::Unknown)
            }
        };
        let Some((attempt_id, _)) = self.attempts.remove(&task) else { return };
        let transition = self.admission.end(attempt_id, signal, Instant::now());
        match transition {
            Transition::None => {}
            Transition::Opened(pause) => {
                if let Some(left_out) = PAUSED.allow() {
                    warn!(
                        step = self.name,
                        ?pause,
                        left_out,
                        "dependency unavailable, circuit breaker opened"
                    );
                }
            }
            Transition::Closed => info!(step = self.name, "dependency available, circuit breaker closed"),
        }
    }

    /// Waits for running attempts. Returns whether all of them ended in time.
    async fn finish(&mut self, deadline: Instant) -> bool {
        loop {
            self.status.set_in_flight(self.running.len(), self.admission.state(Instant::now()));
            match timeout_at(deadline, self.running.join_next_with_id()).await {
                Ok(Some(ended)) => self.end_attempt(ended),
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    }
}

/// The order and customer of a message, by its subject alone, and how often it was delivered.
fn order_ref_of(message: &Message) -> (OrderRef, u64) {
    let (message_revision, deliveries) = message
        .info()
        .map_or((0, 1), |info| (info.stream_sequence, u64::try_from(info.delivered).unwrap_or(1)));
    let customer = subjects::parse(&message.subject).map(|subject| subject.id.customer);
    (OrderRef { message: Revision(message_revision), customer }, deliveries)
}
