//! The broker: connecting to NATS, and publishing to and reading from JetStream.

pub mod barrier;
pub mod connection;
pub mod credentials;
pub mod direct_get;
pub mod error_class;
pub mod leader_get;
pub mod storage;
pub mod streams;
pub mod trace_headers;
pub mod unanswered;

mod permissions;
pub(crate) mod publish;
mod servers;
