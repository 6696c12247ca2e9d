//! Reading and writing the bucket's records.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use backbone::connection::Connection;
use backbone::direct_get::{self, ReadError, Stored};
use backbone::ids::Revision;
use backbone::leader_get;
use futures::{StreamExt, TryStreamExt};
use prost_types::Timestamp;

use crate::batch::{Batch, CommitError, Write};
use crate::records::{REMADE, Reservation, STREAM, SUBJECT_PREFIX, reservation_key, stock_key, subject};

/// How much longer a reservation is kept than the events of its order.
const RESERVATION_GRACE: Duration = Duration::from_secs(24 * 60 * 60);
/// Keys asked for in one read.
const KEYS_PER_READ_MAX: usize = 256;
/// Questions to the leader under way at once; each is about one key, and all orders wait for the answers.
const LATEST_READS_MAX: usize = 64;

/// A record and the revision that the next write to it has to expect.
#[derive(Clone, Debug)]
pub struct Versioned<T> {
    /// What it says.
    pub value: T,
    /// Where it lies.
    pub revision: Revision,
}

/// Records as they were at one moment. A key that is not there has revision [`Revision::NONE`].
pub type Records = HashMap<String, Versioned<Vec<u8>>>;

/// Header of a record that is not kept for ever, in whole seconds.
pub(crate) const TTL: &str = "Nats-TTL";

/// The bucket.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) connection: Connection,
    reservation_ttl: Option<Duration>,
}

/// How long a reservation is kept where events are kept for so long; zero is for ever.
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
        Self { connection, reservation_ttl }
    }

    /// Reads the records under `keys`. Any replica may answer, so they may be a moment old.
    pub async fn read(&self, keys: &[String]) -> Result<Records, ReadError> {
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
    pub async fn read_latest(&self, keys: &[String]) -> Result<Records, ReadError> {
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
    pub async fn commit(&self, batch: Batch) -> Result<Vec<Revision>, CommitError> {
        batch.commit(&self.connection).await
    }

    /// Makes one write alone; tells its revision.
    pub async fn put(&self, write: Write) -> Result<Revision, CommitError> {
        write.put(&self.connection).await
    }

    /// Sets a SKU's stock.
    pub fn stock_write(&self, sku: &str, units: u64, expected: Revision) -> Write {
        self.write(&stock_key(sku), units.to_string().into(), expected)
    }

    /// Sets what an order holds.
    pub fn reservation_write(&self, order_id: &str, reservation: &Reservation, expected: Revision) -> Write {
        // A map of strings and numbers always serializes.
        let value = serde_json::to_vec(reservation).unwrap_or_default().into();
        Write { ttl: self.reservation_ttl, ..self.write(&reservation_key(order_id), value, expected) }
    }

    /// Has the bucket say that it stands in for one that was lost, so that nobody who starts later applies STOCK.
    pub async fn mark_as_remade(&self) -> Result<(), CommitError> {
        let now = Timestamp::from(SystemTime::now()).to_string();
        let mut batch = Batch::default();
        batch.write(self.write(REMADE, now.into(), Revision::NONE));
        match self.commit(batch).await {
            Ok(_) | Err(CommitError::Conflict) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether it says so.
    pub async fn is_remade(&self) -> Result<bool, ReadError> {
        let mark = self.read_latest(&[REMADE.to_owned()]).await?;
        Ok(mark.values().any(|mark| !mark.value.is_empty()))
    }

    /// Sets what is under a key, for good.
    pub fn write(&self, key: &str, value: bytes::Bytes, expected: Revision) -> Write {
        Write { subject: subject(key), value, expected, ttl: None }
    }
}
