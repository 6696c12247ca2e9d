//! The stream that holds the order log: made if it is missing, completed where that does no harm, and
//! otherwise left alone.

use std::time::Duration;

use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{
    Config, DiscardPolicy, PersistenceMode, Republish, RetentionPolicy, StorageType,
};
use async_nats::jetstream::{self, ErrorCode};
use thiserror::Error;
use tracing::{info, warn};

use crate::backoff::Backoff;
use crate::config::{DAY, duration};
use crate::connection::Connection;
use crate::subjects::{ALL_ORDERS, LIVE_PREFIX};

/// Name of the stream.
pub const ORDERS: &str = "ORDERS";

const RETENTION_DEFAULT: Duration = DAY.saturating_mul(30);
const RETENTION_MIN: Duration = Duration::from_secs(1);
/// In nanoseconds, as the broker counts, a third of what fits in 63 bits.
const RETENTION_MAX: Duration = Duration::from_secs(100 * 31_557_600);
const CLUSTER_REPLICAS: usize = 3;
const RETRY: Backoff = Backoff { initial: Duration::from_millis(50), max: Duration::from_secs(2) };

/// How the order log is kept.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct StreamConfig {
    /// How long events are kept, such as `30d`; a longer time than the stream's is applied, a shorter one
    /// refused. 1s-100y. Unset: what the stream has, or 30 days if it is new.
    #[arg(long, env = "ORDERS_RETENTION", value_parser = duration(RETENTION_MIN..=RETENTION_MAX))]
    pub orders_retention: Option<Duration>,
    /// Copies of the stream, 1-5. Unset: what the stream has, or if it is new 1 on a single server and 3 on a
    /// cluster.
    #[arg(long, env = "ORDERS_REPLICAS", value_parser = clap::value_parser!(u8).range(1..=5))]
    pub orders_replicas: Option<u8>,
}

/// The stream is not as the order log needs it, and cannot be made so.
#[derive(Debug, Error)]
pub enum ProvisionError {
    /// The stream exists, and changing it to what we need could lose orders.
    #[error("stream {ORDERS} exists and will not be changed, because that could lose orders: {}", .0.join("; "))]
    Differs(Vec<String>),
    /// The broker refused.
    #[error("the broker refused to set up stream {ORDERS}: {0}")]
    Broker(String),
}

/// How the stream came to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provisioned {
    /// It was there.
    Found,
    /// It was missing and has been made.
    Created,
}

enum Attempt {
    Done(Provisioned),
    /// The broker is away or busy: nothing is known.
    Again(String),
}

/// Makes sure that the stream is there, waiting for the broker as long as it takes. `waiting` is told what for.
pub async fn provision(
    connection: &Connection,
    config: &StreamConfig,
    waiting: impl Fn(String),
) -> Result<Provisioned, ProvisionError> {
    let mut attempts = 0;
    loop {
        if !connection.is_up() {
            waiting("not connected to NATS".to_owned());
            connection.up().await;
        }
        match attempt(connection, config).await? {
            Attempt::Done(provisioned) => return Ok(provisioned),
            Attempt::Again(error) => {
                attempts += 1;
                warn!(error, attempts, "stream not ready, waiting for it");
                waiting(format!("stream {ORDERS} cannot be set up yet: {error}"));
                tokio::time::sleep(RETRY.after(attempts)).await;
            }
        }
    }
}

async fn attempt(connection: &Connection, config: &StreamConfig) -> Result<Attempt, ProvisionError> {
    let jetstream = connection.jetstream();
    let present = match jetstream.get_stream(ORDERS).await {
        Ok(stream) => Some(stream.cached_info().config.clone()),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => None,
            GetStreamErrorKind::JetStream(refusal) => return refused_or_again(&refusal),
            GetStreamErrorKind::EmptyName
            | GetStreamErrorKind::Request
            | GetStreamErrorKind::InvalidStreamName => return Ok(Attempt::Again(error.to_string())),
        },
    };
    let Some(present) = present else {
        return create(connection, config).await;
    };

    let (completed, changes) = complete(&present, config).map_err(ProvisionError::Differs)?;
    if changes.is_empty() {
        return Ok(Attempt::Done(Provisioned::Found));
    }
    match jetstream.update_stream(&completed).await {
        Ok(_) => {
            info!(changes = changes.join("; "), "stream {ORDERS} completed");
            Ok(Attempt::Done(Provisioned::Found))
        }
        Err(error) => not_done(&error, error.kind()),
    }
}

async fn create(connection: &Connection, config: &StreamConfig) -> Result<Attempt, ProvisionError> {
    let replicas = config.orders_replicas.map_or_else(
        || {
            if connection.client.server_info().cluster.is_some() { CLUSTER_REPLICAS } else { 1 }
        },
        usize::from,
    );
    match connection.jetstream().create_stream(wanted(config, replicas)).await {
        Ok(_) => {
            info!(replicas, "stream {ORDERS} created");
            Ok(Attempt::Done(Provisioned::Created))
        }
        Err(error) => not_done(&error, error.kind()),
    }
}

fn not_done(error: &impl ToString, kind: CreateStreamErrorKind) -> Result<Attempt, ProvisionError> {
    match kind {
        CreateStreamErrorKind::JetStream(refusal) => refused_or_again(&refusal),
        // Deleted since it was looked at.
        CreateStreamErrorKind::NotFound
        | CreateStreamErrorKind::JetStreamUnavailable
        | CreateStreamErrorKind::TimedOut
        | CreateStreamErrorKind::Response
        | CreateStreamErrorKind::ResponseParse => Ok(Attempt::Again(error.to_string())),
        CreateStreamErrorKind::EmptyStreamName
        | CreateStreamErrorKind::InvalidStreamName
        | CreateStreamErrorKind::DomainAndExternalSet => Err(ProvisionError::Broker(error.to_string())),
    }
}

/// Tells a refusal that stays from one that passes by itself. The broker's class of codes does not: it gives 500
/// for a configuration that it does not support, and 400 while servers are still missing.
fn refused_or_again(refusal: &jetstream::Error) -> Result<Attempt, ProvisionError> {
    match refusal.error_code() {
        // Somebody else was creating it at the same moment: look again.
        ErrorCode::STREAM_NAME_EXIST => Ok(Attempt::Again(refusal.to_string())),
        ErrorCode::CLUSTER_NO_PEERS => Ok(Attempt::Again(format!("{refusal} (ORDERS_REPLICAS)"))),
        ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED => {
            Err(ProvisionError::Broker(format!("{refusal} (ORDERS_REPLICAS)")))
        }
        ErrorCode::STREAM_INVALID_CONFIG => {
            Err(ProvisionError::Broker(format!("{refusal} (ORDERS_RETENTION, ORDERS_REPLICAS)")))
        }
        _ if refusal.code() < 500 => Err(ProvisionError::Broker(refusal.to_string())),
        _ => Ok(Attempt::Again(refusal.to_string())),
    }
}

/// The stream as a new one is made.
fn wanted(config: &StreamConfig, replicas: usize) -> Config {
    Config {
        name: ORDERS.to_owned(),
        description: Some("Waybill: every event of every order".to_owned()),
        subjects: vec![ALL_ORDERS.to_owned()],
        storage: StorageType::File,
        retention: RetentionPolicy::Limits,
        // When the stream is full, new orders are refused; none is dropped to make room.
        discard: DiscardPolicy::New,
        max_age: config.orders_retention.unwrap_or(RETENTION_DEFAULT),
        num_replicas: replicas,
        republish: Some(republish()),
        allow_direct: true,
        allow_atomic_publish: true,
        ..Config::default()
    }
}

fn republish() -> Republish {
    Republish {
        source: ALL_ORDERS.to_owned(),
        destination: format!("{LIVE_PREFIX}{ALL_ORDERS}"),
        headers_only: false,
    }
}

/// What `present` has to become and what that changes, or everything about it that forbids to touch it.
fn complete(present: &Config, config: &StreamConfig) -> Result<(Config, Vec<String>), Vec<String>> {
    let mut completed = present.clone();
    let mut changes = Vec::new();
    let mut harm = harm(present, &wanted(config, present.num_replicas));
    let mut require = |holds: bool, field: &str, is: String, needs: &str| {
        if !holds {
            harm.push(format!("{field} is {is}, needed is {needs}"));
        }
    };

    if let Some(needs) = config.orders_retention {
        let is = present.max_age;
        let shorter = is.is_zero() || needs < is;
        require(!shorter, "max_age", age(is), &format!("{} (ORDERS_RETENTION)", age(needs)));
        if !shorter && needs != is {
            completed.max_age = needs;
            changes.push(format!("max_age from {} to {}", age(is), age(needs)));
        }
    }
    if let Some(needs) = config.orders_replicas.map(usize::from) {
        let is = present.num_replicas;
        require(needs >= is, "num_replicas", is.to_string(), &format!("{needs} (ORDERS_REPLICAS)"));
        if needs > is {
            completed.num_replicas = needs;
            changes.push(format!("num_replicas from {is} to {needs}"));
        }
    }
    match &present.republish {
        None => {
            completed.republish = Some(republish());
            changes.push("republish added".to_owned());
        }
        Some(is) => {
            require(
                *is == republish(),
                "republish",
                format!("{} to {}", is.source, is.destination),
                "ORDER.> to live.ORDER.>",
            );
        }
    }
    if !present.allow_direct {
        completed.allow_direct = true;
        changes.push("allow_direct added".to_owned());
    }
    if !present.allow_atomic_publish {
        completed.allow_atomic_publish = true;
        changes.push("allow_atomic_publish added".to_owned());
    }
    if harm.is_empty() { Ok((completed, changes)) } else { Err(harm) }
}

/// How a stream that is `present` could lose or refuse messages that one made as `needed` keeps. Says nothing of
/// ages and replicas, which may be more than is needed.
pub fn harm(present: &Config, needed: &Config) -> Vec<String> {
    let fields = guarantees(present).into_iter().zip(guarantees(needed));
    let differing = fields.filter(|(is, needs)| is != needs);
    differing.map(|((field, is), (_, needs))| format!("{field} is {is}, needed is {needs}")).collect()
}

/// What decides whether a stream keeps all that it is given.
fn guarantees(config: &Config) -> [(&'static str, String); 12] {
    let set = |set: bool| if set { "set" } else { "none" }.to_owned();
    let per_subject = match config.max_messages_per_subject {
        ..=0 => "unlimited".to_owned(),
        messages => messages.to_string(),
    };
    // Async answers before a message is written.
    let persist_mode = config.persist_mode.unwrap_or(PersistenceMode::Default);
    [
        ("storage", format!("{:?}", config.storage)),
        ("retention", format!("{:?}", config.retention)),
        ("discard", format!("{:?}", config.discard)),
        ("discard_new_per_subject", config.discard_new_per_subject.to_string()),
        ("subjects", config.subjects.join(",")),
        ("max_msgs_per_subject", per_subject),
        ("persist_mode", format!("{persist_mode:?}")),
        ("no_ack", config.no_ack.to_string()),
        ("sealed", config.sealed.to_string()),
        ("mirror", set(config.mirror.is_some())),
        ("sources", set(config.sources.as_ref().is_some_and(|sources| !sources.is_empty()))),
        ("subject_transform", set(config.subject_transform.is_some())),
    ]
}

/// How long messages are kept, in words.
pub fn age(age: Duration) -> String {
    if age.is_zero() { "unlimited".to_owned() } else { humantime::format_duration(age).to_string() }
}

/// Whether an error of the broker says that the stream has no more room.
pub(crate) fn is_full(error: &jetstream::Error) -> bool {
    // 10077 stands for several limits, told apart by text; all of them mean that the message does not fit.
    error.error_code() == ErrorCode::STREAM_STORE_FAILED && error.to_string().contains("maximum")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(retention: &str) -> StreamConfig {
        let parse = duration(RETENTION_MIN..=RETENTION_MAX);
        StreamConfig { orders_retention: Some(parse(retention).unwrap()), orders_replicas: None }
    }

    #[test]
    fn a_stream_as_we_make_it_needs_no_change() {
        let present = wanted(&config("30d"), 1);
        for again in [StreamConfig::default(), config("30d")] {
            assert_eq!(complete(&present, &again).unwrap().1, Vec::<String>::new());
        }
    }

    #[test]
    fn what_harms_nothing_is_added() {
        let present = Config { republish: None, allow_direct: false, ..wanted(&config("30d"), 1) };
        let (completed, changes) = complete(&present, &config("60d")).unwrap();
        assert_eq!(completed, wanted(&config("60d"), 1));
        assert_eq!(changes.len(), 3, "{changes:?}");
    }

    #[test]
    fn only_what_passes_by_itself_is_tried_again() {
        let refusal = |code: u16, err_code: u16| -> jetstream::Error {
            let answer = format!(r#"{{"code": {code}, "err_code": {err_code}, "description": "no"}}"#);
            serde_json::from_str(&answer).unwrap()
        };
        // As nats-server 2.15 gives them: no leader, cluster incomplete, no peers, no storage, not enabled.
        for (code, err_code) in [(503, 10008), (503, 10004), (400, 10005), (500, 10047), (503, 10039)] {
            assert!(refused_or_again(&refusal(code, err_code)).is_ok(), "{err_code}");
        }
        for (code, err_code, named) in
            [(500, 10074, "ORDERS_REPLICAS"), (500, 10052, "ORDERS_RETENTION"), (400, 10065, "no")]
        {
            let refused = refused_or_again(&refusal(code, err_code)).err().unwrap().to_string();
            assert!(refused.contains(named), "{err_code}: {refused}");
        }
    }

    #[test]
    fn everything_that_could_lose_orders_is_named_and_refused() {
        let present = Config {
            storage: StorageType::Memory,
            discard: DiscardPolicy::Old,
            max_messages_per_subject: 1,
            ..wanted(&config("30d"), 3)
        };
        let wish = StreamConfig { orders_replicas: Some(1), ..config("1d") };
        let harm = complete(&present, &wish).unwrap_err().join("\n");
        for field in ["storage", "discard", "max_msgs_per_subject", "max_age", "num_replicas"] {
            assert!(harm.contains(field), "{field} not in {harm}");
        }
    }
}
