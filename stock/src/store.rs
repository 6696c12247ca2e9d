//! Reading and writing the bucket's records.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use backbone::broker::barrier::Barrier;
use backbone::broker::connection::Connection;
use backbone::broker::direct_get::{self, ReadError, Stored};
use backbone::broker::streams::ORDERS;
use backbone::log::ids::Revision;
use prost_types::Timestamp;
use tokio::time::{Instant, timeout};

use crate::batch::{Batch, CommitError, Write};
use crate::records::{REMADE, Reservation, STREAM, SUBJECT_PREFIX, reservation_key, stock_key, subject};

/// How much longer a reservation is kept than the events of its order.
const RESERVATION_GRACE: Duration = Duration::from_secs(24 * 60 * 60);
/// How often the retention of the order log is read.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// Keys asked for in one read.
const KEYS_PER_READ_MAX: usize = 256;
/// Key of the barriers ([`backbone::broker::barrier`]).
const BARRIER_KEY: &str = "barrier";

/// A record and the revision that the next write to it has to expect.
#[derive(Clone, Debug)]
pub struct Versioned<T> {
    /// The value.
    pub value: T,
    /// The revision.
    pub revision: Revision,
}

/// Records as they were at one moment. A key that does not exist has revision [`Revision::NONE`].
pub type Records = HashMap<String, Versioned<Vec<u8>>>;

/// The bucket.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) connection: Connection,
    barrier: Barrier,
    reservation_ttl: Option<Duration>,
    /// When the retention of the order log is read again.
    check_at: Instant,
}

/// How long a reservation is kept after it was written, by the retention of the order log; zero is forever. It is
/// written again when its order is carried, at half of the retention or earlier.
pub fn reservation_ttl(retention: Duration) -> Option<Duration> {
    (!retention.is_zero()).then(|| retention + RESERVATION_GRACE)
}

/// How long events were kept when a reservation was written with this value of [`TTL`].
pub(crate) fn retention_of(ttl: &str) -> Option<Duration> {
    let ttl = Duration::from_secs(ttl.strip_suffix('s')?.parse().ok()?);
    ttl.checked_sub(RESERVATION_GRACE)
}

impl Store {
    /// The bucket behind `connection`, whose reservations are kept for so long. Does not touch the broker.
    pub fn new(connection: Connection, reservation_ttl: Option<Duration>) -> Self {
        let barrier = Barrier::new(connection.clone(), STREAM, &subject(BARRIER_KEY));
        Self { connection, barrier, reservation_ttl, check_at: Instant::now() + CHECK_INTERVAL }
    }

    /// Checks now and then whether the retention was changed while the program runs. If that fails, the value stays.
    pub async fn look(&mut self) {
        if Instant::now() < self.check_at {
            return;
        }
        self.check_at = Instant::now() + CHECK_INTERVAL;
        let jetstream = self.connection.jetstream();
        if let Ok(Ok(orders)) = timeout(CHECK_TIMEOUT, jetstream.get_stream(ORDERS)).await {
            self.reservation_ttl = reservation_ttl(orders.cached_info().config.max_age);
        }
    }

    /// Reads the records under `keys`. Any replica may answer, so they may be a moment old.
    pub async fn read(&self, keys: &[String]) -> Result<Records, ReadError> {
        let client = self.connection.jetstream().client();
        let mut records = Records::with_capacity(keys.len());
        for keys in keys.chunks(KEYS_PER_READ_MAX) {
            let subjects: Vec<_> = keys.iter().map(|key| subject(key)).collect();
            let stored = direct_get::last_of_each(&client, STREAM, &subjects).await?;
            records.extend(stored.into_iter().filter_map(record));
        }
        Ok(records)
    }

    /// Reads the records under `keys`: no later ones were written before this was called.
    pub async fn read_proven(&self, keys: &[String]) -> Result<Records, ReadError> {
        let mut records = Records::with_capacity(keys.len());
        for keys in keys.chunks(KEYS_PER_READ_MAX) {
            let subjects: Vec<_> = keys.iter().map(|key| subject(key)).collect();
            records.extend(self.barrier.last_of_each(&subjects).await?.into_iter().filter_map(record));
        }
        Ok(records)
    }

    /// Commits all writes of the batch or none; returns the revision of each.
    pub async fn commit(&self, batch: Batch) -> Result<Vec<Revision>, CommitError> {
        batch.commit(&self.connection).await
    }

    /// Sends one write alone; returns its revision.
    pub async fn put(&self, write: Write) -> Result<Revision, CommitError> {
        write.put(&self.connection).await
    }

    /// Sets a SKU's stock.
    pub fn stock_write(&self, sku: &str, units: u64, expected: Revision) -> Write {
        self.write(&stock_key(sku), units.to_string().into(), expected)
    }

    /// Sets what an order holds.
    pub fn reservation_write(&self, order_id: &str, reservation: &Reservation, expected: Revision) -> Write {
        // Cannot fail: only strings and numbers.
        let value = serde_json::to_vec(reservation).unwrap_or_default().into();
        Write { ttl: self.reservation_ttl, ..self.write(&reservation_key(order_id), value, expected) }
    }

    /// Marks the bucket as the replacement of a lost one, so that no later start applies STOCK.
    pub async fn mark_as_remade(&self) -> Result<(), CommitError> {
        let now = Timestamp::from(SystemTime::now()).to_string();
        let mut batch = Batch::default();
        batch.write(self.write(REMADE, now.into(), Revision::NONE));
        match self.commit(batch).await {
            Ok(_) | Err(CommitError::Conflict) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether the bucket is marked as the replacement of a lost one.
    pub async fn is_remade(&self) -> Result<bool, ReadError> {
        let mark = self.read_proven(&[REMADE.to_owned()]).await?;
        Ok(mark.values().any(|mark| !mark.value.is_empty()))
    }

    /// Sets the value of a key, without expiry.
    pub fn write(&self, key: &str, value: bytes::Bytes, expected: Revision) -> Write {
        Write { subject: subject(key), value, expected, ttl: None }
    }
}

/// A record by its key. A deleted or expired key is a message without a value.
fn record(stored: Stored) -> Option<(String, Versioned<Vec<u8>>)> {
    let key = stored.subject.strip_prefix(SUBJECT_PREFIX)?.to_owned();
    Some((key, Versioned { value: stored.payload.to_vec(), revision: stored.sequence }))
}
