//! Processors: the steps that move an order from one status to the next.
//!
//! A [`step`] defines the events that it consumes and its work for an order; the runtime does the rest: consuming,
//! retrying, appending, acknowledging, dead-lettering, draining.

pub mod config;
pub mod creation_time;
pub mod fulfilment;
pub mod inventory;
pub mod payment;
pub mod provision;
pub mod remote;
pub mod remote_step;
pub mod step;

mod admission;
mod attempt;
mod breaker;
mod dead_lettering;
mod delivery;
mod keeping;
mod leadership;
mod metrics;
mod run;
mod runtime;
mod spans;
mod status;
mod suspects;
mod worker;

pub use run::run;
