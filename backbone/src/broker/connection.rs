//! The connection to the broker: connected once and then reconnected forever, at start too.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::{self, context::ContextBuilder};
use async_nats::{Client, Event, ReconnectToServer, ServerAddr, ServerError};
use program::backoff::Backoff;
use program::metrics;
use program::telemetry::LogThrottle;
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, error, info, warn};

use crate::broker::credentials::BrokerConfig;
use crate::broker::permissions::DeniedPermissions;
use crate::broker::servers::{ServerSwitch, reasons, reconnect_delay};
use crate::broker::storage::Storage;

/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A broker that answers no ping for two of these is considered dead.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// How long, at the end, the broker may take to accept what is buffered.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// How long one publish waits for its acknowledgement, and one request for its answer.
pub(crate) const ACK_TIMEOUT: Duration = Duration::from_secs(2);
/// Pending acknowledgements at once; further publishes wait for a slot.
const ACKS_IN_FLIGHT_MAX: usize = 4096;
/// How long a connection without answers is kept. The broker ends a forbidden subscription without disconnecting and
/// does not restore it with the right: only another connection does.
const RECONNECT_DENIED: Backoff = Backoff { initial: Duration::from_secs(10), max: Duration::from_secs(30) };
/// Rounds of attempts after which the cause of the failures is determined again.
const REASON_ROUNDS: u64 = 8;
/// Messages held for one subscription that is not read; further ones are dropped (and the subscriber detects the gap).
const SUBSCRIPTION_MESSAGES_MAX: usize = 4096;

/// A connection, which may at any moment be up or down. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connection {
    pub(crate) client: Client,
    pub(crate) jetstream: jetstream::Context,
    connects: watch::Receiver<u64>,
    refusals: Arc<Mutex<DeniedPermissions>>,
    /// Why the last attempts to connect failed; empty if none did.
    unreachable: Arc<Mutex<String>>,
    storage: Storage,
    /// Set while the program connects to a server other than the one named.
    leaving: Arc<Mutex<Option<ServerSwitch>>>,
    _listening: Arc<AbortOnDropHandle<()>>,
}

/// The connection cannot be established, and no retry helps.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The credentials cannot be used.
    #[error("NATS_CREDS: {0}")]
    Credentials(std::io::Error),
    /// The client refused its options.
    #[error("cannot connect to NATS: {0}")]
    Options(#[from] async_nats::ConnectError),
}

impl Connection {
    /// Opens the connection under the name that the broker's operator will see. Returns at once; the broker may not be
    /// available yet.
    pub async fn open(config: &BrokerConfig, name: &str) -> Result<Self, ConnectError> {
        let (connected, connects) = watch::channel(0);
        let connects_before = connects.clone();
        // Rounds of attempts, each at every server, since the connection was last up.
        let rounds = Arc::new(AtomicU64::new(0));
        let rounds_begun = rounds.clone();
        let refusals: Arc<Mutex<DeniedPermissions>> = Arc::default();
        let unreachable: Arc<Mutex<String>> = Arc::default();
        let inbox_denied: Arc<Notify> = Arc::default();
        let (refused, reason_now, reason_then) = (refusals.clone(), unreachable.clone(), unreachable.clone());
        let notify_denied = inbox_denied.clone();
        let storage = Storage::default();
        let storage_now = storage.clone();
        let leaving: Arc<Mutex<Option<ServerSwitch>>> = Arc::default();
        let to_leave = leaving.clone();
        let options = config
            .options()
            .map_err(ConnectError::Credentials)?
            .name(name)
            // One inbox prefix per program, so that no user needs the right to read the replies of others.
            .custom_inbox_prefix(format!("_INBOX_{name}"))
            .retry_on_initial_connect()
            .max_reconnects(None)
            .reconnect_delay_callback(move |attempts| reconnect_delay(attempts, *connects_before.borrow()))
            .connection_timeout(CONNECT_TIMEOUT)
            // Chooses a server only while Waybill is leaving one. It is also the only callback that gets the reasons of failed
            // attempts.
            .reconnect_to_server_callback(move |servers, _| {
                let attempts = rounds_begun.fetch_add(1, Ordering::Relaxed);
                let unreachable = reason_now.clone();
                let chosen = lock(&to_leave).as_mut().and_then(|leaving| leaving.next(&servers));
                async move {
                    // Logged at once, then with exponentially growing gaps.
                    let is_said = attempts.is_power_of_two();
                    if is_said || (attempts > 0 && attempts.is_multiple_of(REASON_ROUNDS)) {
                        let reason = reasons(servers).await;
                        if is_said {
                            warn!(attempts, reason, "broker unreachable, retrying");
                        }
                        *lock(&unreachable) = reason;
                    }
                    chosen.map(|addr| ReconnectToServer { addr, delay: None })
                }
            })
            .ping_interval(PING_INTERVAL)
            .subscription_capacity(SUBSCRIPTION_MESSAGES_MAX)
            .event_callback(move |event| {
                if matches!(event, Event::Connected) {
                    rounds.store(0, Ordering::Relaxed);
                    connected.send_modify(|count| *count += 1);
                    lock(&refused).forget();
                    lock(&reason_then).clear();
                    storage_now.forget_pauses();
                }
                if let Event::ServerError(ServerError::Other(text)) = &event
                    && lock(&refused).record(text)
                {
                    notify_denied.notify_one();
                }
                log(&event);
                std::future::ready(())
            });
        let servers: Vec<ServerAddr> = config.nats_url.iter().map(|server| server.addr.clone()).collect();
        let client = options.connect(servers).await?;
        let jetstream = ContextBuilder::new()
            .timeout(ACK_TIMEOUT)
            .ack_timeout(ACK_TIMEOUT)
            .max_ack_inflight(ACKS_IN_FLIGHT_MAX)
            .backpressure_on_inflight(true)
            .build(client.clone());
        let listening = tokio::spawn(reconnect_denied(client.clone(), refusals.clone(), inbox_denied));
        let _listening = Arc::new(AbortOnDropHandle::new(listening));
        let connection =
            Self { client, jetstream, connects, refusals, unreachable, storage, leaving, _listening };
        connection.measure();
        Ok(connection)
    }

    fn measure(&self) {
        self.storage.measure();
        let (of_now, of_all) = (self.clone(), self.clone());
        metrics::gauge(
            "waybill.broker.connected",
            "Whether the connection to the broker is up.",
            move |gauge| gauge.observe(of_now.is_up().into(), &[]),
        );
        metrics::total(
            "waybill.broker.reconnects",
            "Connections to the broker that were made after the first one.",
            move || of_all.connects.borrow().saturating_sub(1),
        );
    }

    /// Whether the broker is connected at this moment.
    pub fn is_up(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Waits until the broker is connected.
    pub async fn up(&self) {
        let mut connects = self.connects.clone();
        while !self.is_up() {
            // The task that waits for the client's end reports it.
            if connects.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Counts the connections made. A core subscription has missed all messages before the latest one.
    pub fn connects(&self) -> watch::Receiver<u64> {
        self.connects.clone()
    }

    /// Waits until the client has died, as it does after a message that it cannot read. Only a new process recovers
    /// from that.
    pub async fn died(&self) {
        let mut connects = self.connects.clone();
        // The sender lives in the client's task, so it is dropped when that task ends.
        while connects.changed().await.is_ok() {}
    }

    /// Why the broker is unavailable, as far as that is known.
    pub fn away(&self) -> String {
        let reason = lock(&self.unreachable);
        if reason.is_empty() {
            return "not connected to NATS".to_owned();
        }
        format!("not connected to NATS (NATS_URL, NATS_CREDS, NATS_TLS_CA): {reason}")
    }

    /// Required permissions that the broker has recently denied this user, on this connection.
    pub fn refused(&self) -> Option<String> {
        if self.is_up() { lock(&self.refusals).summary(false) } else { None }
    }

    /// The denied permissions for all requests.
    pub fn refused_at_all(&self) -> Option<String> {
        if self.is_up() { lock(&self.refusals).summary(true) } else { None }
    }

    /// Why a request to JetStream had no answer: the error, or its known cause.
    pub fn unanswered(&self, error: &impl ToString) -> String {
        if self.is_up() && !self.client.server_info().jetstream {
            return "JetStream is disabled at the broker; start it with --jetstream, or add jetstream {} to its configuration"
                .to_owned();
        }
        error.to_string()
    }

    /// Whether the broker has recently denied a publish to this subject.
    pub(crate) fn may_not_publish(&self, subject: &str) -> bool {
        lock(&self.refusals).is_refused(subject)
    }

    /// The result of a request on a subject, or `None` if this user may not make it; then it is not retried.
    pub async fn if_allowed<T, E>(
        &self,
        subject: &str,
        request: impl Future<Output = Result<T, E>>,
    ) -> Option<Result<T, E>> {
        if self.may_not_publish(subject) {
            return None;
        }
        let answer = request.await;
        (answer.is_ok() || !self.may_not_publish(subject)).then_some(answer)
    }

    /// Whether the broker has space for what is written.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// The JetStream context, for records that are not orders.
    pub fn jetstream(&self) -> &jetstream::Context {
        &self.jetstream
    }

    /// Connects to another server of NATS_URL, because the present one answers but is not usable.
    pub(crate) async fn leave_server(&self, reason: &impl std::fmt::Display) {
        let info = self.client.server_info();
        if info.cluster.is_none() {
            return;
        }
        warn!(server = info.server_name, %reason, "leaving the server, connecting to another of NATS_URL");
        let (id, connects) = (info.server_id, *self.connects.borrow());
        lock(&self.leaving).get_or_insert_with(ServerSwitch::begin).left = Some((id, connects));
        if let Err(error) = self.client.force_reconnect().await {
            debug!(%error, "connection to the broker");
        }
    }

    /// Whether the client reconnected to the server that it left, though it has not tried all others.
    pub(crate) fn has_come_back(&self) -> bool {
        let leaving = lock(&self.leaving);
        let Some(ServerSwitch { left: Some((id, connects)), attempts, servers, .. }) = &*leaving else {
            return false;
        };
        let is_another_connection = *self.connects.borrow() > *connects;
        is_another_connection && attempts < servers && *id == self.client.server_info().server_id
    }

    /// Whether the broker is a cluster. In a cluster the other servers may answer when one is silent.
    pub fn is_clustered(&self) -> bool {
        self.client.server_info().cluster.is_some()
    }

    /// Accepts the present server and forgets the one that was left.
    pub(crate) fn stay(&self) {
        if lock(&self.leaving).take().is_some() {
            info!(
                server = self.client.server_info().server_name,
                "connected to a server that commits writes"
            );
        }
    }

    /// Sends the messages still buffered, if the broker accepts them soon; called once, at shutdown.
    pub async fn flush(&self) {
        if !self.is_up() {
            return;
        }
        // A stalled broker accepts nothing although the connection is up.
        match timeout(FLUSH_TIMEOUT, self.client.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "last messages may not have been sent"),
            Err(_) => warn!("last messages may not have been sent: flush timed out"),
        }
    }
}

/// Reconnects, with backoff, when the broker forbids this user's inbox: the right may have been restored meanwhile.
async fn reconnect_denied(
    client: Client,
    refusals: Arc<Mutex<DeniedPermissions>>,
    inbox_denied: Arc<Notify>,
) {
    // Counts only reconnects made by this task.
    let (mut in_a_row, mut last) = (0, Instant::now());
    loop {
        inbox_denied.notified().await;
        in_a_row = if last.elapsed() > 2 * RECONNECT_DENIED.max { 1 } else { in_a_row + 1 };
        sleep(RECONNECT_DENIED.after(in_a_row)).await;
        // The client may have reconnected by itself, or be reconnecting.
        let is_up = client.connection_state() == State::Connected;
        if is_up && lock(&refusals).inbox_is_denied() {
            warn!("inbox subscription denied, reconnecting");
            last = Instant::now();
            if let Err(error) = client.force_reconnect().await {
                debug!(%error, "connection to the broker");
            }
        }
    }
}

/// No holder panics, so a poisoned lock is used as it is.
fn lock<T>(known: &Mutex<T>) -> MutexGuard<'_, T> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

static COMPLAINTS: LogThrottle = LogThrottle::new();

fn log(event: &Event) {
    match event {
        Event::Connected => info!("connected to the broker"),
        Event::Disconnected => warn!("connection to the broker lost"),
        Event::LameDuckMode => info!("server entered lame duck mode"),
        Event::Draining | Event::Closed => info!(%event, "connection to the broker"),
        Event::SlowConsumer(_) => warn!(%event, "slow consumer, messages dropped; reading them from the log"),
        // Throttled: the server sends one for each denied publish, and callers can cause them.
        Event::ServerError(_) => {
            if let Some(left_out) = COMPLAINTS.allow() {
                error!(%event, left_out, "broker");
            }
        }
        // A failed attempt to connect: the next attempt logs its reason.
        Event::ClientError(_) => debug!(%event, "connection to the broker"),
    }
}
