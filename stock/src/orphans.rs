//! Reservations of orders that are not in the log: they hold stock until an operator releases them.
//!
//! A reservation is made after its order was stored, so one without any event of its order remains from a loss of the
//! log. If the order's events may have expired, because the reservation is that old, the loss cannot be proved, and it
//! is left alone.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use backbone::broker::direct_get::ReadError;
use backbone::log::OrderLog;
use backbone::log::ids::{OrderId, Revision};
use backbone::log::subjects::EventKind;
use thiserror::Error;

use crate::batch::{Batch, CommitError};
use crate::records::{
    Reservation, ReservationState, Units, parse_count, parse_reservation, reservation_key, stock_key,
};
use crate::scan::{HeldReservation, Scan};
use crate::store::Store;

/// Tries against writers that are first.
const ATTEMPTS_MAX: usize = 10;

/// A reservation without an order.
#[derive(Clone, Debug)]
pub struct Orphan {
    /// The order that it names.
    pub order_id: OrderId,
    /// The units that it holds.
    pub units: Units,
    /// When the order was created.
    pub created: SystemTime,
    /// When the stock was reserved.
    pub reserved: SystemTime,
    reservation: Reservation,
}

/// A reservation that was not released.
#[derive(Debug, Error)]
pub enum ReleaseError {
    /// Another writer was always first, or the outcome is not known.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// It could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The count that the units belong to cannot be read.
    #[error("the value of {0} is unreadable; set it with `waybill stock set`")]
    Unreadable(String),
}

/// The reservations to examine.
#[derive(Clone, Debug)]
pub struct OrphanQuery {
    /// Retention of events; zero is forever.
    pub retention: Duration,
    /// Only reservations that are at least so old.
    pub older_than: Duration,
}

/// The orphans, one after the other.
pub struct Orphans<'a> {
    store: &'a Store,
    log: &'a OrderLog,
    query: OrphanQuery,
    scan: Scan<'a>,
    found: VecDeque<Orphan>,
    /// Reservations examined so far.
    pub examined: u64,
}

impl std::fmt::Debug for Orphans<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Orphans").field("examined", &self.examined).finish_non_exhaustive()
    }
}

impl Store {
    /// Examines all reservations.
    pub async fn orphans<'a>(
        &'a self,
        log: &'a OrderLog,
        query: OrphanQuery,
    ) -> Result<Orphans<'a>, ReadError> {
        let scan = Scan::begin(self, None).await?;
        Ok(Orphans { store: self, log, query, scan, found: VecDeque::new(), examined: 0 })
    }

    /// Releases an orphan's units, in one commit with the counts. Returns whether the orphan still existed.
    pub async fn release_orphan(&self, log: &OrderLog, orphan: &Orphan) -> Result<bool, ReleaseError> {
        let id = orphan.order_id.to_string();
        let key = reservation_key(&id);
        let stock_keys: Vec<_> = orphan.units.keys().map(|sku| stock_key(sku)).collect();
        let keys = [stock_keys, vec![key.clone()]].concat();
        for attempt in 1..=ATTEMPTS_MAX {
            // The order may have been placed again with the same request_id.
            if log.load_latest(&orphan.order_id).await?.is_some() {
                return Ok(false);
            }
            let records = self.read_proven(&keys).await?;
            let Some(record) = records.get(&key) else { return Ok(false) };
            if parse_reservation(&record.value) != Some(Some(orphan.reservation.clone())) {
                return Ok(false);
            }
            let mut batch = Batch::default();
            for (sku, units) in &orphan.units {
                let key = stock_key(sku);
                let (count, revision) = match records.get(&key) {
                    Some(record) => (parse_count(&record.value), record.revision),
                    None => (Some(0), Revision::NONE),
                };
                let Some(count) = count else { return Err(ReleaseError::Unreadable(key)) };
                batch.write(self.stock_write(sku, count.saturating_add(*units), revision));
            }
            let released = Reservation { state: ReservationState::Released, ..orphan.reservation.clone() };
            batch.write(self.reservation_write(&id, &released, record.revision));
            match self.commit(batch).await {
                Ok(_) => return Ok(true),
                Err(CommitError::Conflict) if attempt < ATTEMPTS_MAX => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(CommitError::Conflict.into())
    }
}

impl Orphans<'_> {
    /// The next one, or `None` after the last.
    pub async fn next(&mut self) -> Result<Option<Orphan>, ReadError> {
        loop {
            if let Some(orphan) = self.found.pop_front() {
                return Ok(Some(orphan));
            }
            let Some(held) = self.scan.next().await? else { return Ok(None) };
            self.examined += held.len() as u64;
            let held: Vec<_> = held.into_iter().filter(|held| self.allow(held)).collect();
            let created = self.store.having(&held, EventKind::Created).await?;
            let held: Vec<_> =
                held.into_iter().filter(|held| !created.contains(&held.order_id.to_string())).collect();
            // `created` may have expired while the order is unfinished.
            let alive = self.store.alive(&held).await?;
            for held in held {
                let id = held.order_id.to_string();
                // A lagging replica may lack events that the leader has.
                if !alive.contains(&id) && self.log.load_latest(&held.order_id).await?.is_none() {
                    self.found.push_back(Orphan {
                        order_id: held.order_id,
                        units: held.reservation.units.clone(),
                        created: held.reservation.creation_time.time(),
                        reserved: held.stored,
                        reservation: held.reservation,
                    });
                }
            }
        }
    }

    fn allow(&self, held: &HeldReservation) -> bool {
        held.is_kept(self.query.retention)
            && held.stored.elapsed().is_ok_and(|age| age >= self.query.older_than)
    }
}
