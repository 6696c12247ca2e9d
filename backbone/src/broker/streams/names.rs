//! The names of the streams.

/// Name of the stream that holds the order log.
pub const ORDERS: &str = "ORDERS";
/// How an operator creates what is missing, if this user has no permission to.
pub const PROVISION: &str = "permission denied; run `waybill provision` as a user with the right";
/// Name of the stream that holds the dead letters.
pub const DEAD_LETTERS: &str = "DEAD_LETTERS";
/// Name of the stream that holds the timers of deferred orders.
pub const DEFERRALS: &str = "DEFERRALS";
