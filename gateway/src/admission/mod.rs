//! Admission: the layers before a handler, each of which can reject a call.

mod caller;
mod calls;
mod concurrency_limit;
mod cost;
mod metadata;
mod probes;
mod rate_limit;
mod turns;

pub(crate) use caller::Caller;
pub(crate) use calls::Calls;
pub(crate) use concurrency_limit::{ConcurrencyLimit, Permit};
pub(crate) use cost::COST_MAX;
pub(crate) use metadata::Metadata;
pub(crate) use probes::Probes;
pub(crate) use rate_limit::{RateLimit, RateLimits};
