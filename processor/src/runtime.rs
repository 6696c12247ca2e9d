//! The runtime of a step: a pool that takes no more messages than it can work on, so that a spike waits in the
//! stream and not in memory, and what a dying process held is delivered again.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Message;
use backbone::backoff::Backoff;
use backbone::consumer::{Consumer, Lost, Terms};
use backbone::dead_letters::DeadLetters;
use backbone::log::OrderLog;
use backbone::telemetry::Seldom;
use tokio::select;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::breaker::{Breaker, Change};
use crate::config::ProcessorConfig;
use crate::metrics;
use crate::status::Status;
use crate::step::{self, Step};
use crate::worker::{Found, Worker, give_back};

const REOPEN: Backoff = Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(2) };
/// How long giving back may take what is not finished when the time to drain is over.
const GIVE_BACK_TIMEOUT: Duration = Duration::from_secs(1);

static PAUSED: Seldom = Seldom::every(Duration::from_secs(30));

/// Works for `step` until `drain` is cancelled, and what runs then is finished or given back.
pub(crate) async fn process<S: Step>(
    step: Arc<S>,
    log: OrderLog,
    dead_letters: DeadLetters,
    config: &ProcessorConfig,
    status: &Status,
    drain: &CancellationToken,
) {
    let consumer = step::consumer::<S>(config.ack_wait);
    let pool_size = usize::from(config.worker_pool_size.unwrap_or(S::WORKER_POOL_SIZE));
    let leave = CancellationToken::new();
    let mut pool = Pool {
        worker: Arc::new(Worker::new(step, log.clone(), dead_letters, config, leave.clone())),
        running: JoinSet::new(),
        size: pool_size,
        breaker: Breaker::new(pool_size),
        status: status.clone(),
        drain_timeout: config.drain_timeout,
        deadline: None,
    };
    metrics::start(S::NAME);
    status.workers(pool_size);
    info!(step = S::NAME, workers = pool_size, "processing");
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
                // One that is lost as soon as it is open is not open.
                failures = if opened_at.elapsed() > REOPEN.max { 0 } else { failures + 1 };
                if let Err(reason) = ended {
                    metrics::reopened(S::NAME, &reason);
                    warn!(step = S::NAME, %reason, "consumer lost, opened anew");
                }
            }
            Err(error) => {
                failures += 1;
                status.closed(error.to_string());
                warn!(step = S::NAME, %error, "consumer not open, tried again");
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
        warn!(step = S::NAME, unfinished, drain_timeout = ?config.drain_timeout, "given back what was not finished in time");
        leave.cancel();
        pool.finish(Instant::now() + GIVE_BACK_TIMEOUT).await;
    }
}

/// The messages that are worked on, and how many more may be.
struct Pool<S> {
    worker: Arc<Worker<S>>,
    running: JoinSet<Found>,
    size: usize,
    breaker: Breaker,
    status: Status,
    drain_timeout: Duration,
    /// When the time to drain is over, if it has begun.
    deadline: Option<Instant>,
}

impl<S: Step> Pool<S> {
    /// Works on what the consumer brings, until the drain begins or the consumer is lost.
    async fn consume(&mut self, consumer: &mut Consumer, drain: &CancellationToken) -> Result<(), Lost> {
        loop {
            let now = Instant::now();
            self.status.at_work(self.running.len(), self.breaker.phase(now));
            let room = self.breaker.width(now).saturating_sub(self.running.len());
            let probe_at = self.breaker.probe_at().filter(|probe_at| *probe_at > now);
            select! {
                biased;
                () = drain.cancelled() => break,
                Some(found) = self.running.join_next() => self.learn(found),
                message = consumer.next(room), if room > 0 || consumer.standing() > 0 => {
                    self.take(message?, consumer.terms()).await
                }
                () = sleep_until(probe_at.unwrap_or(now)), if probe_at.is_some() => {}
            }
        }
        let deadline = self.deadline();
        while let Some(message) = consumer.last(deadline).await {
            self.take(message, consumer.terms()).await;
        }
        Ok(())
    }

    fn deadline(&mut self) -> Instant {
        *self.deadline.get_or_insert_with(|| Instant::now() + self.drain_timeout)
    }

    async fn take(&mut self, message: Message, terms: Terms) {
        self.status.delivered();
        // Asked for when there was more room, or before the breaker opened.
        if self.running.len() >= self.breaker.width(Instant::now()).min(self.size) {
            return give_back::<S>(&message).await;
        }
        let worker = self.worker.clone();
        self.running.spawn(async move { worker.handle(message, terms).await });
    }

    fn learn(&mut self, found: Result<Found, tokio::task::JoinError>) {
        let change = match found {
            Ok(Found::Served) => self.breaker.succeeded(Instant::now()),
            Ok(Found::Away) => self.breaker.failed(Instant::now()),
            Ok(Found::Nothing) => Change::None,
            // Its message is delivered again.
            Err(error) => {
                error!(step = S::NAME, %error, "worker died");
                Change::None
            }
        };
        match change {
            Change::None => {}
            Change::Opened(pause) => {
                if let Some(left_out) = PAUSED.may_tell() {
                    warn!(step = S::NAME, ?pause, left_out, "a dependency is away, paused");
                }
            }
            Change::Closed => info!(step = S::NAME, "the dependency is back"),
        }
    }

    /// Waits for what runs. Tells whether all of it ended in time.
    async fn finish(&mut self, deadline: Instant) -> bool {
        loop {
            self.status.at_work(self.running.len(), self.breaker.phase(Instant::now()));
            match timeout_at(deadline, self.running.join_next()).await {
                Ok(Some(found)) => self.learn(found),
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    }
}
