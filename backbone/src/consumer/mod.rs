//! A durable pull consumer of the order log, shared by all replicas of a step.

pub mod lag;

mod ack_floor;
mod config;
mod durable;
mod error;
mod reader;
mod requests;

pub use ack_floor::AckFloor;
pub use config::{ConsumerConfig, ConsumerTerms};
pub use error::ConsumerError;
pub use reader::Consumer;
