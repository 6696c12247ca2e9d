//! The backbone: the order log on NATS JetStream, and what every program needs to reach it.
//!
//! Knows NATS; knows no gRPC server and no business step.

pub mod access;
pub mod barrier;
pub mod carrying;
pub mod connection;
pub mod consumer;
pub mod dead_letters;
pub mod direct_get;
pub mod event;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod ids;
pub mod incarnation;
pub mod lag;
pub mod leader_get;
pub mod lifecycle;
pub mod log;
pub mod meaning;
pub mod storage;
pub mod stream;
pub mod subjects;
pub mod trace_headers;

mod durable;
mod floor;
mod publish;
mod refusals;
mod unknown_fields;
