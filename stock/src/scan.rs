//! Reading the whole stock.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, SystemTime};

use backbone::broker::direct_get::{self, ReadError, Stored};
use backbone::broker::streams::ORDERS;
use backbone::log::event::stored;
use backbone::log::ids::{OrderId, Revision};
use backbone::log::subjects::{self, EventKind, EventSubject};

use crate::records::{
    Reservation, ReservationState, STREAM, SUBJECT_PREFIX, TTL, Units, parse_count, parse_reservation,
    stock_key, subject,
};
use crate::store::{Store, Versioned, retention_of};

/// Records read at once.
const READ_RECORDS_MAX: u32 = 256;
/// Orders whose latest events are read at once: one for each kind of event, and the broker returns at most 1,024.
const READ_ORDERS_MAX: usize = 64;
/// How far back a scan of reservations goes, in writes to the bucket. An order in progress is a young one, as a rule.
const SCAN_WRITES_MAX: u64 = 200_000;

/// A SKU's stock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StockEntry {
    /// The SKU.
    pub sku: String,
    /// Units that can be ordered; `None` if the record cannot be read.
    pub available: Option<u64>,
    /// The revision that a write to it has to expect.
    pub revision: Revision,
    /// When it last changed, if that is known.
    pub changed: Option<SystemTime>,
}

/// Units held by orders that are not fulfilled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReservedStock {
    /// By SKU.
    pub units: Units,
    /// Whether some reservations were not examined.
    pub is_incomplete: bool,
}

/// A reservation that is in force.
#[derive(Clone, Debug)]
pub(crate) struct HeldReservation {
    pub(crate) order_id: OrderId,
    pub(crate) reservation: Reservation,
    pub(crate) stored: SystemTime,
    /// The retention of events when it was written, if the record contains it.
    retention: Option<Duration>,
}

impl Store {
    /// One SKU, as the bucket's leader has it.
    pub async fn get(&self, sku: &str) -> Result<Option<StockEntry>, ReadError> {
        let key = stock_key(sku);
        let record = self.read_proven(std::slice::from_ref(&key)).await?.remove(&key);
        Ok(record.filter(|record| !record.value.is_empty()).map(|Versioned { value, revision }| StockEntry {
            sku: sku.to_owned(),
            available: parse_count(&value),
            revision,
            changed: None,
        }))
    }

    /// All SKUs, by name. Any replica may answer, so counts may be a moment old.
    pub async fn list(&self) -> Result<Vec<StockEntry>, ReadError> {
        let client = self.connection.jetstream().client();
        let filter = subject("stock.*");
        let records = direct_get::all_from(&client, STREAM, &filter, Revision::NONE).await?;
        let prefix = subject("stock.");
        let listed = records.into_iter().filter_map(|record| {
            let sku = record.subject.strip_prefix(&prefix)?.to_owned();
            let listed = StockEntry {
                sku: sku.clone(),
                available: parse_count(&record.payload),
                revision: record.sequence,
                changed: stored(&record.headers),
            };
            Some((sku, (!record.payload.is_empty()).then_some(listed)))
        });
        // A SKU that changes during the read appears twice; the last entry is current.
        let listed: BTreeMap<_, _> = listed.collect();
        Ok(listed.into_values().flatten().collect())
    }

    /// Units that orders hold which are not fulfilled. Events are kept for `retention`.
    pub async fn reserved(&self, retention: Duration) -> Result<ReservedStock, ReadError> {
        let mut reserved = ReservedStock::default();
        let mut scan = Scan::begin(self, Some(SCAN_WRITES_MAX)).await?;
        reserved.is_incomplete = scan.skips;
        while let Some(held) = scan.next().await? {
            let fulfilled = self.fulfilled(&held).await?;
            let held = held.into_iter().filter(|held| !fulfilled.contains(&held.order_id.to_string()));
            // An order whose events have all expired was finished.
            let (kept, old): (Vec<_>, Vec<_>) = held.partition(|held| held.is_kept(retention));
            let alive = self.alive(&old).await?;
            let old = old.into_iter().filter(|held| alive.contains(&held.order_id.to_string()));
            for held in kept.into_iter().chain(old) {
                for (sku, units) in held.reservation.units {
                    let of_sku = reserved.units.entry(sku).or_default();
                    *of_sku = of_sku.saturating_add(units);
                }
            }
        }
        Ok(reserved)
    }

    /// Which of these orders have an event of this kind in the log, by id.
    pub(crate) async fn having(
        &self,
        held: &[HeldReservation],
        kind: EventKind,
    ) -> Result<HashSet<String>, ReadError> {
        if held.is_empty() {
            return Ok(HashSet::new());
        }
        let filters: Vec<_> = held.iter().map(|held| subjects::order_kind(kind, &held.order_id)).collect();
        self.orders_at(&filters, |_| true).await
    }

    /// Which of these orders are fulfilled, by id: a step has completed, and no step acts next.
    async fn fulfilled(&self, held: &[HeldReservation]) -> Result<HashSet<String>, ReadError> {
        let mut fulfilled = HashSet::new();
        for held in held.chunks(READ_ORDERS_MAX) {
            let filters: Vec<_> = held.iter().map(|held| subjects::order_ends(&held.order_id)).collect();
            fulfilled.extend(self.orders_at(&filters, |event| event.kind.completes_a_step()).await?);
        }
        Ok(fulfilled)
    }

    /// Which of these orders have any event in the log, by id.
    pub(crate) async fn alive(&self, held: &[HeldReservation]) -> Result<HashSet<String>, ReadError> {
        let mut alive = HashSet::new();
        for held in held.chunks(READ_ORDERS_MAX) {
            let filters: Vec<_> = held.iter().map(|held| subjects::order(&held.order_id)).collect();
            alive.extend(self.orders_at(&filters, |_| true).await?);
        }
        Ok(alive)
    }

    /// The orders of the events on these subjects, of those events that `counts` accepts.
    async fn orders_at(
        &self,
        filters: &[String],
        counts: impl Fn(EventSubject<'_>) -> bool,
    ) -> Result<HashSet<String>, ReadError> {
        let client = self.connection.jetstream().client();
        let found = direct_get::last_of_each(&client, ORDERS, filters).await?;
        let events = found.iter().filter_map(|event| subjects::parse(&event.subject));
        Ok(events.filter(|event| counts(*event)).map(|event| event.id.to_string()).collect())
    }
}

impl HeldReservation {
    /// Whether the order's latest event cannot have expired under the present `retention`; zero is forever. It is no
    /// older than the reservation.
    pub(crate) fn is_kept(&self, retention: Duration) -> bool {
        let shortest =
            [Some(retention).filter(|now| !now.is_zero()), self.retention].into_iter().flatten().min();
        shortest.is_none_or(|shortest| {
            let margin = EXPIRY_MARGIN.min(shortest / 2);
            self.stored.elapsed().is_ok_and(|age| age + margin < shortest)
        })
    }
}

/// Events this close to their expiry count as expired, to allow for clock differences.
const EXPIRY_MARGIN: Duration = Duration::from_secs(60);

/// Reservations that are in force, the oldest first, some at a time.
pub(crate) struct Scan<'a> {
    store: &'a Store,
    next: Option<Revision>,
    /// Whether it begins behind the first of them.
    skips: bool,
}

impl<'a> Scan<'a> {
    /// Begins with the last `writes_max` writes to the bucket, or with the first.
    pub(crate) async fn begin(store: &'a Store, writes_max: Option<u64>) -> Result<Self, ReadError> {
        let (mut from, mut skips) = (0, false);
        if let Some(writes_max) = writes_max {
            let stream = store.connection.jetstream().get_stream(STREAM).await;
            let stream = stream.map_err(|error| ReadError::NoAnswer(error.to_string()))?;
            let state = &stream.cached_info().state;
            from = state.last_sequence.saturating_sub(writes_max).max(state.first_sequence);
            skips = from > state.first_sequence;
        }
        Ok(Self { store, next: Some(Revision(from)), skips })
    }

    pub(crate) async fn next(&mut self) -> Result<Option<Vec<HeldReservation>>, ReadError> {
        let Some(from) = self.next else { return Ok(None) };
        let client = self.store.connection.jetstream().client();
        let filter = subject("reservation.*");
        let batch = direct_get::batch_from(&client, STREAM, &filter, from, READ_RECORDS_MAX).await?;
        let last = batch.messages.last().map(|last| Revision(last.sequence.0 + 1));
        self.next = last.filter(|_| batch.remaining > 0);
        Ok(Some(batch.messages.iter().filter_map(held).collect()))
    }
}

fn held(record: &Stored) -> Option<HeldReservation> {
    let key = record.subject.strip_prefix(SUBJECT_PREFIX)?;
    let order_id = key.strip_prefix("reservation.")?.parse().ok()?;
    let reservation = parse_reservation(&record.payload)??;
    (reservation.state == ReservationState::Held).then_some(HeldReservation {
        order_id,
        reservation,
        stored: stored(&record.headers)?,
        retention: record.headers.get(TTL).and_then(|ttl| retention_of(ttl.as_str())),
    })
}
