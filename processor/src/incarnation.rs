//! Telling apart the orders that one id has named, one after the other.

pub use backbone::log::incarnation::Incarnation;
use backbone::log::incarnation::NoCreateTime;

use crate::step::StepError;

impl From<NoCreateTime> for StepError {
    fn from(error: NoCreateTime) -> Self {
        Self::Unexpected(error.to_string())
    }
}
