//! Whether the bucket exists. One that existed before and is missing blocks all orders, and no program recreates it:
//! only an operator knows the stock.

use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::GetStreamErrorKind;
use backbone::broker::connection::Connection;
use backbone::broker::direct_get::ReadError;
use backbone::log::ids::Revision;
use program::backoff::Backoff;
use program::metrics;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, error};

use crate::bucket::{has_reserved_since, is_known};
use crate::records::{BUCKET, STREAM};
use crate::store::Store;

const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Until the broker answers for the first time. An earlier loss looks like a bucket that never existed.
const FIRST_CHECK: Backoff = Backoff { initial: Duration::from_millis(100), max: CHECK_INTERVAL };
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);
const MISSING: &str = "bucket INVENTORY is missing, its stock is lost; recreate it (`waybill provision`), then set the stock \
                       (`waybill stock set`)";

/// How the bucket was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BucketState {
    /// It could not be read yet.
    #[default]
    Unknown,
    /// It never existed, as far as any evidence shows.
    NotYet,
    /// It exists since then.
    Present(SystemTime),
    /// It existed and is missing.
    Missing,
}

/// The last known state of the bucket. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Presence {
    store: Store,
    seen: watch::Sender<BucketState>,
    /// Whether a bucket replaces a lost one and is not marked as a replacement yet.
    to_be_marked: watch::Sender<bool>,
    /// The log up to here has no order that was given stock.
    examined: watch::Sender<Option<Revision>>,
}

impl Presence {
    /// Nothing is known yet. Made once in a process: it has a metric.
    pub fn new(connection: Connection) -> Self {
        let store = Store::new(connection, None);
        let presence = Self {
            store,
            seen: watch::Sender::default(),
            to_be_marked: watch::Sender::default(),
            examined: watch::Sender::default(),
        };
        let known = presence.clone();
        metrics::gauge(
            "waybill.stock.bucket.missing",
            "1 while the bucket with the stock is missing after it existed.",
            move |gauge| match known.now() {
                BucketState::Unknown => {}
                BucketState::NotYet | BucketState::Present(_) => gauge.observe(0, &[]),
                BucketState::Missing => gauge.observe(1, &[]),
            },
        );
        presence
    }

    /// How it was found last.
    pub fn now(&self) -> BucketState {
        *self.seen.borrow()
    }

    /// The problem and its fix, if the bucket existed and is missing.
    pub fn missing(&self) -> Option<&'static str> {
        match self.now() {
            BucketState::Missing => Some(MISSING),
            BucketState::Unknown | BucketState::NotYet | BucketState::Present(_) => None,
        }
    }

    /// Records other evidence that the bucket existed.
    pub fn was_there(&self) {
        error!("{MISSING}");
        self.seen.send_replace(BucketState::Missing);
    }

    /// Checks the bucket periodically.
    pub async fn keep(&self) -> Infallible {
        let mut unanswered = 0;
        loop {
            if self.look().await == BucketState::Unknown {
                unanswered += 1;
                sleep(FIRST_CHECK.after(unanswered)).await;
            } else {
                sleep(CHECK_INTERVAL).await;
            }
        }
    }

    /// Checks once. If that fails, the state stays.
    pub async fn look(&self) -> BucketState {
        let before = self.now();
        let found = timeout(CHECK_TIMEOUT, self.find(before)).await.unwrap_or(before);
        if found != before {
            match (before, found) {
                (_, BucketState::Missing) => error!("{MISSING}"),
                (BucketState::Missing | BucketState::Present(_), BucketState::Present(_)) => {
                    error!("bucket {BUCKET} was lost, recreated empty; set the stock (`waybill stock set`)");
                    self.to_be_marked.send_replace(true);
                }
                (_, BucketState::Unknown | BucketState::NotYet | BucketState::Present(_)) => {}
            }
            self.seen.send_replace(found);
        }
        if *self.to_be_marked.borrow() {
            match timeout(CHECK_TIMEOUT, self.store.mark_as_remade()).await {
                Ok(Ok(())) => drop(self.to_be_marked.send_replace(false)),
                Ok(Err(error)) => debug!(%error, "bucket {BUCKET} not marked as recreated yet"),
                Err(_) => {}
            }
        }
        found
    }

    async fn find(&self, before: BucketState) -> BucketState {
        let subject = format!("$JS.API.STREAM.INFO.{STREAM}");
        let asking = self.store.connection.jetstream().get_stream(STREAM);
        let error = match self.store.connection.if_allowed(&subject, asking).await {
            Some(Ok(stream)) => return BucketState::Present(stream.cached_info().created.into()),
            Some(Err(error)) => error,
            None => return before,
        };
        match error.kind() {
            GetStreamErrorKind::JetStream(refusal) if refusal.error_code() == ErrorCode::STREAM_NOT_FOUND => {
            }
            GetStreamErrorKind::JetStream(_)
            | GetStreamErrorKind::EmptyName
            | GetStreamErrorKind::Request
            | GetStreamErrorKind::InvalidStreamName => return before,
        }
        let was_there = match before {
            BucketState::Present(_) | BucketState::Missing => Ok(true),
            BucketState::Unknown => is_known(&self.store.connection).await,
            // A log that was lost meanwhile had no bucket yet.
            BucketState::NotYet => self.has_reserved().await,
        };
        match was_there {
            Ok(true) => BucketState::Missing,
            Ok(false) => BucketState::NotYet,
            // Without the log there is no evidence yet.
            Err(_) => before,
        }
    }

    async fn has_reserved(&self) -> Result<bool, ReadError> {
        let examined = *self.examined.borrow();
        let (has_reserved, end) = has_reserved_since(&self.store.connection, examined).await?;
        self.examined.send_replace(Some(end));
        Ok(has_reserved)
    }
}
