//! The connection to the broker: made once, and then kept for ever. While the broker is away it is tried
//! again and again, at start too.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::{self, context::ContextBuilder};
use async_nats::{Client, Event, Server, ServerAddr, ServerError};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{debug, error, info, warn};

use crate::access::BrokerConfig;
use crate::backoff::Backoff;
use crate::metrics;
use crate::telemetry::Seldom;

const RECONNECT: Backoff = Backoff { initial: Duration::from_millis(50), max: Duration::from_secs(2) };
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(1);
/// A broker that answers no ping for two of these is taken for dead.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// How long, at the end, the broker may take to accept what is buffered.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// How long one publish waits for its acknowledgement, and one request for its answer.
const ACK_TIMEOUT: Duration = Duration::from_secs(2);
/// Acknowledgements awaited at once; further publishes wait for a place.
const ACKS_IN_FLIGHT_MAX: usize = 4096;
/// Requests remembered as refused; a program has far fewer.
const REFUSED_MAX: usize = 64;
/// How long one is not made again. Rights can be given while the connection stands.
const REFUSED_FOR: Duration = Duration::from_secs(60);
/// What those begin with that ask for a change, in lower case. Events, and reads of an order, have a subject for each order.
const REQUESTS: [&str; 2] = ["$js.api.stream.", "$js.api.consumer."];
/// How the broker says that this user may not publish there; the subject follows in quotes.
const MAY_NOT_PUBLISH: &str = "permissions violation for publish to \"";
/// Messages held for one subscription that is not read; further ones are dropped (and the gap is noticed).
const SUBSCRIPTION_MESSAGES_MAX: usize = 4096;

/// A connection, which may at any moment be up or down. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connection {
    pub(crate) client: Client,
    pub(crate) jetstream: jetstream::Context,
    connects: watch::Receiver<u64>,
    /// Requests that the broker has refused to take, by subject, and when.
    refused: Arc<Mutex<BTreeMap<String, Instant>>>,
}

/// The connection cannot be made, however often it is tried.
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
    /// Opens the connection under the name that the broker's operator will see. Returns at once; the broker
    /// may not be there yet.
    pub async fn open(config: &BrokerConfig, name: &str) -> Result<Self, ConnectError> {
        let (connected, connects) = watch::channel(0);
        let connects_before = connects.clone();
        // Rounds of attempts, each at every server, since the connection was last up.
        let rounds = Arc::new(AtomicU64::new(0));
        let rounds_begun = rounds.clone();
        let refused: Arc<Mutex<BTreeMap<String, Instant>>> = Arc::default();
        let refusals = refused.clone();
        let options = config
            .options()
            .map_err(ConnectError::Credentials)?
            .name(name)
            // Of its own, so that no user has to be let at the answers that others get.
            .custom_inbox_prefix(format!("_INBOX_{name}"))
            .retry_on_initial_connect()
            .max_reconnects(None)
            .reconnect_delay_callback(move |attempts| reconnect_delay(attempts, *connects_before.borrow()))
            // Chooses no server: of all callbacks this one alone is told why the last attempts failed.
            .reconnect_to_server_callback(move |servers, _| {
                let attempts = rounds_begun.fetch_add(1, Ordering::Relaxed);
                async move {
                    // Said at once, and then ever more rarely.
                    if attempts.is_power_of_two() {
                        let reason = reasons(servers).await;
                        warn!(attempts, reason, "broker not reachable, waiting for it");
                    }
                    None
                }
            })
            .ping_interval(PING_INTERVAL)
            .subscription_capacity(SUBSCRIPTION_MESSAGES_MAX)
            .event_callback(move |event| {
                if matches!(event, Event::Connected) {
                    rounds.store(0, Ordering::Relaxed);
                    connected.send_modify(|count| *count += 1);
                    refusals.lock().unwrap_or_else(PoisonError::into_inner).clear();
                }
                if let Event::ServerError(ServerError::Other(text)) = &event
                    && let Some(subject) = refused_subject(text).filter(|subject| is_request(subject))
                {
                    let mut refusals = refusals.lock().unwrap_or_else(PoisonError::into_inner);
                    refusals.retain(|_, at| at.elapsed() < REFUSED_FOR);
                    if refusals.len() < REFUSED_MAX {
                        refusals.insert(subject, Instant::now());
                    }
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
        let connection = Self { client, jetstream, connects, refused };
        connection.measure();
        Ok(connection)
    }

    fn measure(&self) {
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

    /// Whether the broker is there at this moment.
    pub fn is_up(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Waits until the broker is there.
    pub async fn up(&self) {
        let mut connects = self.connects.clone();
        while !self.is_up() {
            // A client that has died is noticed by whoever waits for that.
            if connects.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Counts the times that the connection came up. Whoever listens on a core subscription has missed what
    /// came before the latest.
    pub fn connects(&self) -> watch::Receiver<u64> {
        self.connects.clone()
    }

    /// Waits until the client has died, as it does of a message that it cannot read. Nothing but a new process
    /// brings it back.
    pub async fn died(&self) {
        let mut connects = self.connects.clone();
        // Its sender lives in the client's own task.
        while connects.changed().await.is_ok() {}
    }

    /// Whether the broker has said lately, on this connection, that this user may not publish on a subject. It says so beside
    /// the request, which then waits for an answer in vain.
    fn may_not_publish(&self, subject: &str) -> bool {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.get(&subject.to_lowercase()).is_some_and(|at| at.elapsed() < REFUSED_FOR)
    }

    /// What comes of a request on a subject, or `None` if this user may not make it; then it is not made again.
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

    /// The JetStream context, for records that are not orders.
    pub fn jetstream(&self) -> &jetstream::Context {
        &self.jetstream
    }

    /// Sends what is still buffered, if the broker takes it soon; called once, before leaving.
    pub async fn flush(&self) {
        if !self.is_up() {
            return;
        }
        // A broker that stands still takes nothing, and may be connected all the same.
        match timeout(FLUSH_TIMEOUT, self.client.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "last messages may not have been sent"),
            Err(_) => warn!("last messages may not have been sent: the broker does not take them"),
        }
    }
}

/// Waits while attempts fail. The very first has nothing to wait for; one after a loss does, so that clients do
/// not come back all at once.
fn reconnect_delay(attempts: usize, connects: u64) -> Duration {
    if attempts <= 1 && connects == 0 { Duration::ZERO } else { RECONNECT.after(attempts as u64) }
}

/// What each server lacks.
async fn reasons(servers: Vec<Server>) -> String {
    let mut reasons = Vec::with_capacity(servers.len());
    for Server { addr, last_error, .. } in &servers {
        // The client keeps no record of a name that it could not resolve.
        let resolved = timeout(RESOLVE_TIMEOUT, addr.socket_addrs()).await;
        let reason = match resolved {
            Ok(Ok(_)) => last_error.clone().unwrap_or_else(|| "no answer yet".to_owned()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "its name is not resolved in time".to_owned(),
        };
        // Not the whole URL, which may hold a password.
        reasons.push(format!("{}:{}: {reason}", addr.host(), addr.port()));
    }
    reasons.join("; ")
}

/// The subject that a complaint of the broker says nothing may be published on, in lower case.
fn refused_subject(complaint: &str) -> Option<String> {
    let complaint = complaint.to_lowercase();
    let (_, rest) = complaint.split_once(MAY_NOT_PUBLISH)?;
    rest.split_once('"').map(|(subject, _)| subject.to_owned())
}

/// Whether a subject, in lower case, is that of a request which is not made again when it was refused.
fn is_request(subject: &str) -> bool {
    REQUESTS.iter().any(|request| subject.starts_with(request))
}

static COMPLAINTS: Seldom = Seldom::new();

fn log(event: &Event) {
    match event {
        Event::Connected => info!("connected to the broker"),
        Event::Disconnected => warn!("connection to the broker lost"),
        Event::LameDuckMode => info!("broker is about to leave"),
        Event::Draining | Event::Closed => info!(%event, "connection to the broker"),
        Event::SlowConsumer(_) => warn!(%event, "messages dropped, to be read from the log"),
        // One for each message that a user may not publish, and callers bring such messages about.
        Event::ServerError(_) => {
            if let Some(left_out) = COMPLAINTS.may_tell() {
                error!(%event, left_out, "broker");
            }
        }
        // A failed attempt to connect, of which the next one speaks.
        Event::ClientError(_) => debug!(%event, "connection to the broker"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_subject_is_found_in_the_complaint() {
        let said = r#"Permissions Violation for Publish to "$JS.API.STREAM.CREATE.ORDERS""#;
        assert_eq!(refused_subject(said).as_deref(), Some("$js.api.stream.create.orders"));
        for other in [r#"Permissions Violation for Subscription to "live.>""#, "authorization violation"] {
            assert_eq!(refused_subject(other), None);
        }
    }

    #[test]
    fn what_is_refused_order_by_order_is_not_remembered() {
        assert!(is_request("$js.api.consumer.create.orders.payment"));
        for of_one_order in ["order.reserved.07.c.o", "$js.api.direct.get.orders.order.*.07.c.o"] {
            assert!(!is_request(of_one_order), "{of_one_order}");
        }
    }

    #[test]
    fn only_the_very_first_attempt_waits_for_nothing() {
        assert_eq!(reconnect_delay(1, 0), Duration::ZERO);
        for (attempts, connects) in [(2, 0), (1, 1), (2, 1)] {
            assert!(reconnect_delay(attempts, connects) > Duration::ZERO);
        }
    }
}
