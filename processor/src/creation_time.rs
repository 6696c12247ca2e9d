//! The creation time of an order, which distinguishes orders that reuse an id.

pub use backbone::log::creation_time::CreationTime;
use backbone::log::creation_time::NoCreateTime;

use crate::step::StepError;

impl From<NoCreateTime> for StepError {
    fn from(error: NoCreateTime) -> Self {
        Self::Unexpected(error.to_string())
    }
}
