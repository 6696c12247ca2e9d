//! The bucket's keys and values.

use std::collections::BTreeMap;

use backbone::log::creation_time::CreationTime;
use serde::{Deserialize, Serialize};

/// Name of the bucket.
pub const BUCKET: &str = "INVENTORY";
/// The stream that it is.
pub const STREAM: &str = "KV_INVENTORY";
/// Most SKUs of one order: as many as the gateway allows items.
pub const ORDER_SKUS_MAX: usize = 100;
/// Key that marks the bucket as the replacement of a lost one. Then STOCK is not applied: sold units would be on sale
/// again.
pub const REMADE: &str = "remade";

/// Header of a record that expires, in whole seconds.
pub(crate) const TTL: &str = "Nats-TTL";
pub(crate) const SUBJECT_PREFIX: &str = "$KV.INVENTORY.";

/// Units by SKU.
pub type Units = BTreeMap<String, u64>;

/// The units that an order holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// The creation time of its order, which distinguishes orders that reuse an id.
    #[serde(rename = "incarnation")]
    pub creation_time: CreationTime,
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

/// Key of a SKU's stock.
pub fn stock_key(sku: &str) -> String {
    format!("stock.{sku}")
}

/// Key of an order's reservation.
pub fn reservation_key(order_id: &str) -> String {
    format!("reservation.{order_id}")
}

/// The subject of a key's messages.
pub(crate) fn subject(key: &str) -> String {
    format!("{SUBJECT_PREFIX}{key}")
}

/// Reads a stock count; a key without a value is none.
pub fn parse_count(value: &[u8]) -> Option<u64> {
    if value.is_empty() { Some(0) } else { std::str::from_utf8(value).ok()?.trim().parse().ok() }
}

/// Reads a reservation; a key without a value is `None`. An impossible one was written by another program.
pub fn parse_reservation(value: &[u8]) -> Option<Option<Reservation>> {
    if value.is_empty() {
        return Some(None);
    }
    let reservation: Reservation = serde_json::from_slice(value).ok()?;
    let units = &reservation.units;
    let is_ours = units.len() <= ORDER_SKUS_MAX && units.keys().all(|sku| is_sku(sku));
    is_ours.then_some(Some(reservation))
}

/// The rule that [`is_sku`] checks.
pub const SKU_RULE: &str = "1-64 characters of A-Z, a-z, 0-9, '-' and '_'";

/// Whether the text is a SKU, and so a single token of a key.
pub fn is_sku(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=64).contains(&text.len()) && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_reservation_reads_back_as_itself() {
        let text = r#"{"incarnation":1700000000123456789,"state":"held","units":{"widget":3}}"#;
        let held = Reservation {
            creation_time: serde_json::from_str("1700000000123456789").unwrap(),
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
