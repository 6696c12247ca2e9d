//! Where the stock is kept: a JetStream key-value bucket, so that any NATS client can look at it.
//!
//! | key                       | value                                                                     |
//! |---------------------------|---------------------------------------------------------------------------|
//! | `stock.<sku>`             | units available, as a decimal number                                      |
//! | `reservation.<order_id>`  | JSON: what the order holds, or that it holds nothing any more             |
//!
//! A reservation is written anew when its order is carried, so it expires after its order's last event. Until then the
//! same id may come to name another order; so it says which incarnation of the order it belongs to.

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{CreateStreamError, CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config, DiscardPolicy};
use backbone::backoff::Backoff;
use backbone::connection::Connection;
use backbone::direct_get::{self, ReadError, Stored};
use backbone::ids::Revision;
use backbone::leader_get;
use backbone::meaning::{Meaning, meaning};
use backbone::stream::{self, ORDERS, PROVISION};
use backbone::telemetry::Seldom;
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::batch::{Batch, CommitError, Write};
use super::{ORDER_SKUS_MAX, Units};
use crate::incarnation::Incarnation;

/// Name of the bucket.
pub const BUCKET: &str = "INVENTORY";
/// The stream behind it.
pub(super) const STREAM: &str = "KV_INVENTORY";
const RETRY: Backoff = Backoff { initial: Duration::from_millis(50), max: Duration::from_secs(2) };
/// Pause between two lines that say what is waited for.
const SAID_INTERVAL: Duration = Duration::from_secs(15);
/// How much longer a reservation is kept than the events of its order.
const RESERVATION_GRACE: Duration = Duration::from_secs(24 * 60 * 60);
/// How often it is looked how long the order log keeps events.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);
/// Keys asked for in one read.
const KEYS_PER_READ_MAX: usize = 256;
/// Questions to the leader under way at once; each is about one key, and all orders wait for the answers.
const LATEST_READS_MAX: usize = 64;

/// Settings of the inventory.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct InventoryConfig {
    /// SKUs to begin with, as in `widget=100,gadget=5`. Those that exist keep the count they have.
    #[arg(long, env = "STOCK")]
    pub stock: Option<Stock>,
}

/// Units by SKU, each SKU once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stock(BTreeMap<String, u64>);

/// The inventory cannot be opened.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The broker refused.
    #[error("the broker refused to set up bucket {BUCKET}: {0}")]
    Broker(#[from] CreateStreamError),
    /// The bucket exists, but is not as it has to be.
    #[error(
        "bucket {BUCKET} exists, but could lose stock, and will not be changed: {}; mend it, or remove it when it \
         holds nothing of worth", .0.join("; ")
    )]
    Differs(Vec<String>),
}

/// What an order holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Which order of its id it belongs to.
    pub incarnation: Incarnation,
    /// Whether the order still holds them.
    pub state: ReservationState,
    /// Units by SKU.
    pub units: Units,
}

/// Whether a reservation is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReservationState {
    /// The units are taken from the stock for the order.
    Held,
    /// The order holds nothing, and never will again; the units are what it had held.
    Released,
}

/// A record and the revision that the next write to it has to expect.
#[derive(Clone, Debug)]
pub(super) struct Versioned<T> {
    pub(super) value: T,
    pub(super) revision: Revision,
}

/// The bucket.
#[derive(Clone, Debug)]
pub(super) struct Store {
    connection: Connection,
    reservation_ttl: Option<Duration>,
    /// When it is looked again how long the order log keeps events.
    look_at: Instant,
}

/// Records as they were at one moment. A key that is not there has revision [`Revision::NONE`].
pub(super) type Records = HashMap<String, Versioned<Vec<u8>>>;

/// Key of a SKU's stock.
pub fn stock_key(sku: &str) -> String {
    format!("stock.{sku}")
}

/// Key of an order's reservation.
pub fn reservation_key(order_id: &str) -> String {
    format!("reservation.{order_id}")
}

impl Store {
    /// Opens the bucket, made if it is missing, and creates the SKUs that are.
    pub(super) async fn open(connection: Connection, config: &InventoryConfig) -> Result<Self, StoreError> {
        let (mut attempts, said) = (0, Seldom::every(SAID_INTERVAL));
        loop {
            connection.up().await;
            match Self::set_up(&connection, config).await {
                Ok(Ok(store)) => return Ok(store),
                Ok(Err(error)) => return Err(error),
                Err(error) => {
                    attempts += 1;
                    if let Some(left_out) = said.may_tell() {
                        warn!(error, attempts, left_out, "bucket {BUCKET} not ready, waiting for it");
                    }
                    tokio::time::sleep(RETRY.after(attempts)).await;
                }
            }
        }
    }

    /// The outer error is one that passes by itself.
    async fn set_up(
        connection: &Connection,
        config: &InventoryConfig,
    ) -> Result<Result<Self, StoreError>, String> {
        let jetstream = connection.jetstream();
        let orders = jetstream.get_stream(ORDERS).await.map_err(|error| error.to_string())?;
        let reservation_ttl = ttl(orders.cached_info().config.max_age);

        if let Err(error) = provide(connection, orders.cached_info().config.num_replicas).await? {
            return Ok(Err(error));
        }
        let look_at = Instant::now() + LOOK_INTERVAL;
        let store = Self { connection: connection.clone(), reservation_ttl, look_at };
        if let Some(Stock(stock)) = &config.stock {
            store.seed(stock).await?;
        }
        Ok(Ok(store))
    }

    /// Looks now and then whether the retention was changed while the program runs. What cannot be asked is as it was.
    pub(super) async fn look(&mut self) {
        if Instant::now() < self.look_at {
            return;
        }
        self.look_at = Instant::now() + LOOK_INTERVAL;
        let jetstream = self.connection.jetstream();
        if let Ok(Ok(orders)) = timeout(LOOK_TIMEOUT, jetstream.get_stream(ORDERS)).await {
            self.reservation_ttl = ttl(orders.cached_info().config.max_age);
        }
    }

    async fn seed(&self, stock: &BTreeMap<String, u64>) -> Result<(), String> {
        // What is there needs no write, for which there may be no space.
        let keys: Vec<_> = stock.keys().map(|sku| stock_key(sku)).collect();
        let present = self.read_latest(&keys).await.map_err(|error| error.to_string())?;
        for (sku, units) in stock.iter().filter(|(sku, _)| !present.contains_key(&stock_key(sku))) {
            let mut batch = Batch::default();
            batch.write(self.stock_write(sku, *units, Revision::NONE));
            match self.commit(batch).await {
                Ok(_) => info!(sku, units, "stock created"),
                Err(CommitError::Conflict) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }

    /// Reads the records under `keys`. Any replica may answer, so they may be a moment old.
    pub(super) async fn read(&self, keys: &[String]) -> Result<Records, ReadError> {
        let client = self.connection.jetstream().client();
        let mut records = Records::with_capacity(keys.len());
        for keys in keys.chunks(KEYS_PER_READ_MAX) {
            let subjects: Vec<_> = keys.iter().map(|key| subject(key)).collect();
            for stored in direct_get::last_of_each(&client, STREAM, &subjects).await? {
                let Some(key) = stored.subject.strip_prefix(SUBJECT_PREFIX) else { continue };
                // A deleted or expired key is a message without a value.
                let value = stored.payload.to_vec();
                records.insert(key.to_owned(), Versioned { value, revision: stored.sequence });
            }
        }
        Ok(records)
    }

    /// Reads the records under `keys` as the bucket's leader has them.
    pub(super) async fn read_latest(&self, keys: &[String]) -> Result<Records, ReadError> {
        let reads: Vec<_> = keys.iter().map(|key| self.latest(key)).collect();
        let reads = futures::stream::iter(reads).buffer_unordered(LATEST_READS_MAX);
        let records: Vec<_> = reads.try_collect().await?;
        Ok(records.into_iter().flatten().collect())
    }

    async fn latest(&self, key: &str) -> Result<Option<(String, Versioned<Vec<u8>>)>, ReadError> {
        let last = leader_get::last(&self.connection, STREAM, &subject(key)).await?;
        let versioned = |last: Stored| Versioned { value: last.payload.to_vec(), revision: last.sequence };
        Ok(last.map(|last| (key.to_owned(), versioned(last))))
    }

    /// Commits all writes of the batch or none; tells the revision of each.
    pub(super) async fn commit(&self, batch: Batch) -> Result<Vec<Revision>, CommitError> {
        batch.commit(&self.connection).await
    }

    pub(super) fn stock_write(&self, sku: &str, units: u64, expected: Revision) -> Write {
        Write { subject: subject(&stock_key(sku)), value: units.to_string().into(), expected, ttl: None }
    }

    pub(super) fn reservation_write(
        &self,
        order_id: &str,
        reservation: &Reservation,
        expected: Revision,
    ) -> Write {
        // A map of strings and numbers always serializes.
        let value = serde_json::to_vec(reservation).unwrap_or_default().into();
        Write { subject: subject(&reservation_key(order_id)), value, expected, ttl: self.reservation_ttl }
    }
}

/// How long a reservation is kept after it was written, by how long the order log keeps events. It is written anew when
/// its order is carried, at half of the retention or earlier.
fn ttl(retention: Duration) -> Option<Duration> {
    (!retention.is_zero()).then(|| retention + RESERVATION_GRACE)
}

/// Makes sure that the bucket is there, waiting for the broker and for the order log as long as it takes. `waiting` is told
/// what for.
pub async fn provision(connection: &Connection, waiting: impl Fn(String)) -> Result<(), StoreError> {
    let mut attempts = 0;
    loop {
        connection.up().await;
        let provided = match connection.jetstream().get_stream(ORDERS).await {
            Ok(orders) => provide(connection, orders.cached_info().config.num_replicas).await,
            Err(error) => Err(error.to_string()),
        };
        let provided = match provided {
            Ok(Ok(())) => forbid_rollup(connection).await.map(Ok),
            other => other,
        };
        match provided {
            Ok(provided) => return provided,
            Err(error) => {
                attempts += 1;
                waiting(format!("bucket {BUCKET} cannot be set up yet: {error}"));
                tokio::time::sleep(RETRY.after(attempts)).await;
            }
        }
    }
}

/// Takes from a bucket that an earlier version made what we do not use: that one message of whoever may write to it can
/// remove all others.
async fn forbid_rollup(connection: &Connection) -> Result<(), String> {
    let jetstream = connection.jetstream();
    let bucket = jetstream.get_stream(STREAM).await.map_err(|error| error.to_string())?;
    let present = &bucket.cached_info().config;
    if present.allow_rollup {
        let completed = Config { allow_rollup: false, ..present.clone() };
        jetstream.update_stream(completed).await.map_err(|error| error.to_string())?;
        info!("bucket {BUCKET} cannot be emptied by one message any more");
    }
    Ok(())
}

/// Makes the bucket if it is missing. The outer error is one that passes by itself.
async fn provide(connection: &Connection, replicas: usize) -> Result<Result<(), StoreError>, String> {
    let jetstream = connection.jetstream();
    match jetstream.get_stream(STREAM).await {
        Ok(present) => {
            let harm = harm(&present.cached_info().config);
            return Ok(if harm.is_empty() { Ok(()) } else { Err(StoreError::Differs(harm)) });
        }
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(refusal) if refusal.error_code() == ErrorCode::STREAM_NOT_FOUND => {
            }
            GetStreamErrorKind::JetStream(_)
            | GetStreamErrorKind::EmptyName
            | GetStreamErrorKind::Request
            | GetStreamErrorKind::InvalidStreamName => return Err(error.to_string()),
        },
    }
    let subject = format!("$JS.API.STREAM.CREATE.{STREAM}");
    let error = match connection.if_allowed(&subject, jetstream.create_stream(bucket(replicas))).await {
        None => return Err(format!("it is missing: {PROVISION}")),
        Some(Ok(_)) => return Ok(Ok(())),
        Some(Err(error)) => error,
    };
    match error.kind() {
        // Somebody else has made it meanwhile: it is looked at again.
        CreateStreamErrorKind::JetStream(refusal) => match meaning(&refusal) {
            Meaning::Passing | Meaning::Full => Err(error.to_string()),
            Meaning::TooLarge | Meaning::Permanent | Meaning::Conflict => Ok(Err(StoreError::Broker(error))),
        },
        CreateStreamErrorKind::JetStreamUnavailable
        | CreateStreamErrorKind::TimedOut
        | CreateStreamErrorKind::Response
        | CreateStreamErrorKind::ResponseParse
        | CreateStreamErrorKind::EmptyStreamName
        | CreateStreamErrorKind::InvalidStreamName
        | CreateStreamErrorKind::DomainAndExternalSet
        | CreateStreamErrorKind::NotFound => Err(error.to_string()),
    }
}

/// Reads a stock count.
pub(super) fn parse_count(value: &[u8]) -> Option<u64> {
    if value.is_empty() { Some(0) } else { std::str::from_utf8(value).ok()?.trim().parse().ok() }
}

/// Reads a reservation; a key without a value is none. What no order can hold, somebody else has written.
pub(super) fn parse_reservation(value: &[u8]) -> Option<Option<Reservation>> {
    if value.is_empty() {
        return Some(None);
    }
    let reservation: Reservation = serde_json::from_slice(value).ok()?;
    let units = &reservation.units;
    let is_ours = units.len() <= ORDER_SKUS_MAX && units.keys().all(|sku| is_sku(sku));
    is_ours.then_some(Some(reservation))
}

const SUBJECT_PREFIX: &str = "$KV.INVENTORY.";

fn subject(key: &str) -> String {
    format!("{SUBJECT_PREFIX}{key}")
}

fn bucket(replicas: usize) -> Config {
    Config {
        name: STREAM.to_owned(),
        description: Some("Waybill: stock by SKU and reservations by order".to_owned()),
        subjects: vec![format!("{SUBJECT_PREFIX}>")],
        max_messages_per_subject: 1,
        discard: DiscardPolicy::New,
        num_replicas: replicas,
        first_sequence: Some(first_revision()),
        deny_delete: true,
        allow_direct: true,
        allow_atomic_publish: true,
        allow_message_ttl: true,
        ..Config::default()
    }
}

/// Revisions of a new bucket begin beyond those of one that was deleted before it: a replica that remembers a count of
/// the old one must not find its revision in the new one, where it may stand for another count. So they begin at the
/// time, in microseconds since 1970, which no bucket has kept up with.
fn first_revision() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(time.as_micros()).unwrap_or(1)
}

/// What [`is_sku`] demands.
pub(super) const SKU_RULE: &str = "1-64 characters of A-Z, a-z, 0-9, '-' and '_'";

/// Whether the text is a SKU, and so a single token of a key.
pub(super) fn is_sku(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=64).contains(&text.len()) && text.bytes().all(allowed)
}

/// How a bucket that is `present` could lose stock, or not do what the inventory asks of it.
fn harm(present: &Config) -> Vec<String> {
    let mut harm = stream::harm(present, &bucket(present.num_replicas));
    if !present.max_age.is_zero() {
        let age = stream::age(present.max_age);
        harm.push(format!("max_age is {age}, needed is unlimited"));
    }
    let features = [
        ("allow_direct", present.allow_direct),
        ("allow_atomic", present.allow_atomic_publish),
        ("allow_msg_ttl", present.allow_message_ttl),
    ];
    let missing = features.into_iter().filter(|(_, present)| !present);
    harm.extend(missing.map(|(feature, _)| format!("{feature} is false, needed is true")));
    harm
}

impl FromStr for Stock {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut stock = BTreeMap::new();
        for line in text.split(',') {
            let (sku, units) = parse_stock_line(line)?;
            if stock.insert(sku.clone(), units).is_some() {
                return Err(format!("\"{sku}\" is there twice"));
            }
        }
        Ok(Self(stock))
    }
}

fn parse_stock_line(text: &str) -> Result<(String, u64), String> {
    let (sku, units) = text.split_once('=').ok_or("is not of the form sku=units")?;
    if !is_sku(sku) {
        return Err(format!("\"{sku}\" is no SKU: {SKU_RULE}"));
    }
    let units = units.parse().map_err(|_| format!("\"{units}\" is no number of units"))?;
    Ok((sku.to_owned(), units))
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_nats::jetstream::stream::{PersistenceMode, StorageType};

    #[test]
    fn stock_is_given_as_sku_and_units() {
        let stock = BTreeMap::from([("widget".to_owned(), 100), ("gadget".to_owned(), 5)]);
        assert_eq!("widget=100,gadget=5".parse(), Ok(Stock(stock)));
        for bad in [
            "",
            "widget=1,",
            "widget=1,gadget=2,widget=1",
            "widget",
            "=1",
            "wid get=1",
            "widget=-1",
            "widget=many",
            "a.b=1",
        ] {
            assert!(bad.parse::<Stock>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bucket_as_we_make_it_is_fine() {
        assert_eq!(harm(&bucket(3)), Vec::<String>::new());
    }

    #[test]
    fn everything_that_could_lose_stock_is_named() {
        let present = Config {
            storage: StorageType::Memory,
            max_age: Duration::from_secs(60),
            max_messages_per_subject: 5,
            discard: DiscardPolicy::Old,
            discard_new_per_subject: true,
            persist_mode: Some(PersistenceMode::Async),
            allow_message_ttl: false,
            ..bucket(1)
        };
        let harm = harm(&present);
        let fields: Vec<_> = harm.iter().filter_map(|harm| harm.split(' ').next()).collect();
        assert_eq!(
            fields,
            [
                "storage",
                "discard",
                "discard_new_per_subject",
                "max_msgs_per_subject",
                "persist_mode",
                "max_age",
                "allow_msg_ttl"
            ]
        );
    }

    #[test]
    fn a_reservation_reads_back_as_itself() {
        let text = r#"{"incarnation":1700000000123456789,"state":"held","units":{"widget":3}}"#;
        let held = Reservation {
            incarnation: serde_json::from_str("1700000000123456789").unwrap(),
            state: ReservationState::Held,
            units: Units::from([("widget".to_owned(), 3)]),
        };
        let json = serde_json::to_vec(&held).unwrap();
        assert_eq!(String::from_utf8_lossy(&json), text);
        assert_eq!(parse_reservation(&json).unwrap(), Some(held));
        assert_eq!(parse_reservation(b"").unwrap(), None);
        for foreign in ["?".to_owned(), text.replace("widget", "a b"), text.replace("widget", ">")] {
            assert!(parse_reservation(foreign.as_bytes()).is_none(), "{foreign}");
        }
    }
}
