//! The parts of every process: settings, logging, traces, metrics and their export, the HTTP port with probes,
//! signals, backoff.
//!
//! Knows no broker, no gRPC server and no order.

pub mod backoff;
pub mod config;
pub mod metrics;
pub mod ops;
pub mod otlp;
pub mod plain_text;
mod run;
pub mod shutdown;
pub mod telemetry;
pub mod trace;
mod trace_ids;

pub use run::{Prepared, run};
