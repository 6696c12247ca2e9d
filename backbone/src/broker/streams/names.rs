//! The names of the streams.

/// Name of the stream that holds the order log.
pub const ORDERS: &str = "ORDERS";
/// How what is missing comes to be, where this user may not make it.
pub const PROVISION: &str = "this user may not do that; run `waybill provision` as one who may";
/// Name of the stream that holds the dead letters.
pub const DEAD_LETTERS: &str = "DEAD_LETTERS";
