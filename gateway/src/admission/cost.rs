//! What calls take out of a token bucket.

use std::num::NonZeroU32;

/// What the costliest call takes out of a bucket; every burst must hold as much.
pub(crate) const COST_MAX: u32 = 10;

/// What a call takes out of a bucket: about how many messages of the log it may move, in tens.
pub(super) fn cost(path: &str) -> NonZeroU32 {
    let cost = match path.rsplit('/').next() {
        Some("ListOrders") => COST_MAX,
        Some("WatchOrders") => 5,
        Some("WatchOrder" | "ListOrderEvents") => 2,
        Some(_) | None => 1,
    };
    NonZeroU32::new(cost).unwrap_or(NonZeroU32::MIN)
}
