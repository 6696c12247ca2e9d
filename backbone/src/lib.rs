//! The backbone: the order log on NATS JetStream, and what every program needs to reach it.
//!
//! Knows NATS; knows no gRPC server and no business step.

pub mod broker;
pub mod consumer;
pub mod dead_letters;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod log;
