//! The cost of calls in tokens.

use std::num::NonZeroU32;

/// Tokens of the costliest call; every burst must hold as many.
pub(crate) const COST_MAX: u32 = 10;

/// Tokens of a call: about the number of log messages that it may read, in tens.
pub(super) fn cost(path: &str) -> NonZeroU32 {
    let cost = match path.rsplit('/').next() {
        Some("ListOrders") => COST_MAX,
        Some("WatchOrders") => 5,
        Some("WatchOrder" | "ListOrderEvents") => 2,
        Some(_) | None => 1,
    };
    NonZeroU32::new(cost).unwrap_or(NonZeroU32::MIN)
}
