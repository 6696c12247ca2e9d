//! Allocates stock to orders: pure, over the known stock and reservations.

use std::collections::{BTreeSet, HashMap};

use backbone::log::ids::Revision;

use stock::{
    BUCKET, Records, Reservation, ReservationState, Units, parse_count, parse_reservation, reservation_key,
    stock_key,
};

use crate::creation_time::CreationTime;

/// A request for an order.
#[derive(Clone, Debug)]
pub(super) enum ReservationRequest {
    /// Reserve these units, all or none.
    Reserve(Units),
    /// Release the reservation, and reject a later one.
    Release,
    /// Renew the record's time to live.
    Keep,
}

/// The outcome of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The units are reserved.
    Held,
    /// The record, if any, is renewed.
    Kept,
    /// Too few units are available; says which.
    OutOfStock(String),
    /// The reservation is released; these units were held.
    Released(Units),
    /// The request failed for this reason, which a retry does not change.
    Refused(String),
}

impl Answer {
    pub(super) fn is_out_of_stock(&self) -> bool {
        matches!(self, Self::OutOfStock(_))
    }
}

/// The decision depends on a record that has to be read first.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NeedsRead;

/// A record's value and the revision that the next write to it has to expect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry<T> {
    pub(super) value: T,
    pub(super) revision: Revision,
    pub(super) changed: bool,
}

/// Stock by SKU and reservations by order, with the decided changes.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) stock: HashMap<String, Entry<u64>>,
    pub(super) reservations: HashMap<String, Entry<Option<Reservation>>>,
    /// Keys whose value cannot be read.
    damaged: BTreeSet<String>,
    /// Whether all records were read for these requests. If not, stock comes from the cache, and a new order is
    /// assumed to have no reservation; the commit's expectations fail if that is wrong.
    is_complete: bool,
}

impl Ledger {
    /// A ledger of cached stock.
    pub(super) fn from_cache(stock: HashMap<String, Entry<u64>>) -> Self {
        Self { stock, ..Self::default() }
    }

    /// A ledger of records just read. A record that is missing does not exist.
    pub(super) fn read(records: &Records) -> Self {
        let mut ledger = Self { is_complete: true, ..Self::default() };
        for (key, record) in records {
            let revision = record.revision;
            if let Some(sku) = key.strip_prefix("stock.") {
                match parse_count(&record.value) {
                    Some(value) => {
                        ledger.stock.insert(sku.to_owned(), Entry { value, revision, changed: false });
                    }
                    None => {
                        ledger.damaged.insert(key.clone());
                    }
                }
            } else if let Some(order_id) = key.strip_prefix("reservation.") {
                match parse_reservation(&record.value) {
                    Some(value) => {
                        ledger
                            .reservations
                            .insert(order_id.to_owned(), Entry { value, revision, changed: false });
                    }
                    None => {
                        ledger.damaged.insert(key.clone());
                    }
                }
            }
        }
        ledger
    }

    /// Decides on a request and notes its changes.
    pub(super) fn decide(
        &mut self,
        order_id: &str,
        creation_time: CreationTime,
        action: &ReservationRequest,
    ) -> Result<Answer, NeedsRead> {
        if self.damaged.contains(&reservation_key(order_id)) {
            return Ok(damaged(&reservation_key(order_id)));
        }
        let present = self.reservations.get(order_id).and_then(|entry| entry.value.as_ref());
        if present.is_some_and(|present| present.creation_time > creation_time) {
            return Ok(Answer::Refused(format!("{} belongs to a later order", reservation_key(order_id))));
        }
        // A reservation of an earlier order with this id does not count.
        let own = present.filter(|present| present.creation_time == creation_time).cloned();
        let own = own.map(|own| (own.state, own.units));
        match (action, own) {
            (ReservationRequest::Keep, _) if !self.is_complete => Err(NeedsRead),
            (ReservationRequest::Keep, Some((state, units))) => {
                self.record(order_id, Reservation { creation_time, state, units });
                Ok(Answer::Kept)
            }
            (ReservationRequest::Keep, None) => Ok(Answer::Kept),
            (ReservationRequest::Reserve(_), Some((ReservationState::Held, _))) => Ok(Answer::Held),
            (
                ReservationRequest::Reserve(_) | ReservationRequest::Release,
                Some((ReservationState::Released, units)),
            ) => Ok(Answer::Released(units)),
            (ReservationRequest::Reserve(units), None) => self.reserve(order_id, creation_time, units),
            (ReservationRequest::Release, _) if !self.is_complete => Err(NeedsRead),
            (ReservationRequest::Release, Some((ReservationState::Held, units))) => {
                Ok(self.release(order_id, creation_time, units))
            }
            // Recorded, so that a reservation that arrives later is rejected.
            (ReservationRequest::Release, None) => Ok(self.release(order_id, creation_time, Units::new())),
        }
    }

    fn reserve(
        &mut self,
        order_id: &str,
        creation_time: CreationTime,
        units: &Units,
    ) -> Result<Answer, NeedsRead> {
        let mut missing = Vec::new();
        for (sku, wanted) in units {
            if self.damaged.contains(&stock_key(sku)) {
                return Ok(damaged(&stock_key(sku)));
            }
            let available = self.stock.get(sku).map_or(0, |entry| entry.value);
            if available < *wanted {
                missing.push(format!("{sku}: {wanted} wanted, {available} available"));
            }
        }
        if !missing.is_empty() {
            // A cached count is no reason to reject an order.
            return if self.is_complete {
                Ok(Answer::OutOfStock(missing.join("; ")))
            } else {
                Err(NeedsRead)
            };
        }
        for (sku, wanted) in units {
            if let Some(entry) = self.stock.get_mut(sku) {
                entry.value -= wanted;
                entry.changed = true;
            }
        }
        let state = ReservationState::Held;
        self.record(order_id, Reservation { creation_time, state, units: units.clone() });
        Ok(Answer::Held)
    }

    fn release(&mut self, order_id: &str, creation_time: CreationTime, units: Units) -> Answer {
        if let Some(sku) = units.keys().find(|sku| self.damaged.contains(&stock_key(sku))) {
            return damaged(&stock_key(sku));
        }
        for (sku, held) in &units {
            let none = Entry { value: 0, revision: Revision::NONE, changed: false };
            let entry = self.stock.entry(sku.clone()).or_insert(none);
            entry.value = entry.value.saturating_add(*held);
            entry.changed = true;
        }
        let state = ReservationState::Released;
        self.record(order_id, Reservation { creation_time, state, units: units.clone() });
        Answer::Released(units)
    }

    fn record(&mut self, order_id: &str, reservation: Reservation) {
        let revision = self.reservations.get(order_id).map_or(Revision::NONE, |entry| entry.revision);
        let entry = Entry { value: Some(reservation), revision, changed: true };
        self.reservations.insert(order_id.to_owned(), entry);
    }
}

fn damaged(key: &str) -> Answer {
    Answer::Refused(format!("the value of {key} in bucket {} cannot be read; put a right one", BUCKET))
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
