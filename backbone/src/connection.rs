//! The connection to the broker: made once, and then kept for ever. While the broker is away it is tried
//! again and again, at start too.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::{self, context::ContextBuilder};
use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use thiserror::Error;
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use crate::backoff::Backoff;

const RECONNECT: Backoff = Backoff { initial: Duration::from_millis(50), max: Duration::from_secs(2) };
/// A broker that answers no ping for two of these is taken for dead.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// How long one publish waits for its acknowledgement, and one request for its answer.
const ACK_TIMEOUT: Duration = Duration::from_secs(2);
/// Acknowledgements awaited at once; further publishes wait for a place.
const ACKS_IN_FLIGHT_MAX: usize = 4096;
/// Messages held for one subscription that is not read; further ones are dropped (and the gap is noticed).
const SUBSCRIPTION_MESSAGES_MAX: usize = 4096;

/// Where the broker is and how to get in.
#[derive(Clone, Debug, clap::Args)]
pub struct BrokerConfig {
    /// NATS servers, separated by commas.
    #[arg(long, env = "NATS_URL", default_value = "nats://localhost:4222", value_delimiter = ',')]
    pub nats_url: Vec<ServerAddr>,
    /// NATS credentials file (JWT and seed).
    #[arg(long, env = "NATS_CREDS")]
    pub nats_creds: Option<PathBuf>,
    /// Certificate authorities to trust (PEM), beside the system's own.
    #[arg(long, env = "NATS_TLS_CA")]
    pub nats_tls_ca: Option<PathBuf>,
    /// Client certificate (PEM).
    #[arg(long, env = "NATS_TLS_CERT", requires = "nats_tls_key")]
    pub nats_tls_cert: Option<PathBuf>,
    /// Key of the client certificate (PEM).
    #[arg(long, env = "NATS_TLS_KEY", requires = "nats_tls_cert")]
    pub nats_tls_key: Option<PathBuf>,
}

/// A connection, which may at any moment be up or down. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connection {
    pub(crate) client: Client,
    pub(crate) jetstream: jetstream::Context,
    connects: watch::Receiver<u64>,
}

/// The connection cannot be made, however often it is tried.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The credentials file cannot be used.
    #[error("NATS_CREDS: {path}: {source}")]
    Credentials {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The client refused its options.
    #[error("cannot connect to NATS: {0}")]
    Options(#[from] async_nats::ConnectError),
}

impl Connection {
    /// Opens the connection under the name that the broker's operator will see. Returns at once; the broker
    /// may not be there yet.
    pub async fn open(config: &BrokerConfig, name: &str) -> Result<Self, ConnectError> {
        let (connected, connects) = watch::channel(0);
        let options = authentication(config)
            .await?
            .name(name)
            .retry_on_initial_connect()
            .max_reconnects(None)
            .reconnect_delay_callback(reconnect_delay)
            .ping_interval(PING_INTERVAL)
            .subscription_capacity(SUBSCRIPTION_MESSAGES_MAX)
            .event_callback(move |event| {
                if matches!(event, Event::Connected) {
                    connected.send_modify(|count| *count += 1);
                }
                log(&event);
                std::future::ready(())
            });
        let client = options.connect(&config.nats_url[..]).await?;
        let jetstream = ContextBuilder::new()
            .timeout(ACK_TIMEOUT)
            .ack_timeout(ACK_TIMEOUT)
            .max_ack_inflight(ACKS_IN_FLIGHT_MAX)
            .backpressure_on_inflight(true)
            .build(client.clone());
        Ok(Self { client, jetstream, connects })
    }

    /// Whether the broker is there at this moment.
    pub fn is_up(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Waits until the broker is there.
    pub async fn up(&self) {
        let mut connects = self.connects.clone();
        while !self.is_up() {
            // The sender lives as long as the client, which we hold.
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

    /// The JetStream context, for records that are not orders.
    pub fn jetstream(&self) -> &jetstream::Context {
        &self.jetstream
    }

    /// Sends what is still buffered; called once, before leaving.
    pub async fn flush(&self) {
        if self.is_up()
            && let Err(error) = self.client.flush().await
        {
            warn!(%error, "last messages may not have been sent");
        }
    }
}

async fn authentication(config: &BrokerConfig) -> Result<ConnectOptions, ConnectError> {
    let mut options = ConnectOptions::new();
    if let Some(url) = config.nats_url.first()
        && let (Some(user), Some(password)) = (url.username(), url.password())
    {
        options = options.user_and_password(user.to_owned(), password.to_owned());
    }
    if let Some(path) = &config.nats_creds {
        options = options
            .credentials_file(path)
            .await
            .map_err(|source| ConnectError::Credentials { path: path.clone(), source })?;
    }
    if let Some(path) = &config.nats_tls_ca {
        options = options.add_root_certificates(path.clone());
    }
    if let (Some(cert), Some(key)) = (&config.nats_tls_cert, &config.nats_tls_key) {
        options = options.add_client_certificate(cert.clone(), key.clone());
    }
    Ok(options)
}

fn reconnect_delay(attempts: usize) -> Duration {
    let delay = RECONNECT.after(attempts as u64);
    // Said at once, and then ever more rarely.
    if attempts.is_power_of_two() {
        warn!(attempts, "broker not reachable, waiting for it");
    }
    delay
}

fn log(event: &Event) {
    match event {
        Event::Connected => info!("connected to the broker"),
        Event::Disconnected => warn!("connection to the broker lost"),
        Event::LameDuckMode => info!("broker is about to leave"),
        Event::Draining | Event::Closed => info!(%event, "connection to the broker"),
        Event::SlowConsumer(_) => warn!(%event, "messages dropped, to be read from the log"),
        Event::ServerError(_) => error!(%event, "broker"),
        // A failed attempt to connect, which the delay before the next one speaks of.
        Event::ClientError(_) => debug!(%event, "connection to the broker"),
    }
}
