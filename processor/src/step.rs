//! The seam between the runtime and a step's business.

use std::future::Future;

use backbone::subjects::EventKind;
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Order, OrderRejected};
use thiserror::Error;

/// One step of an order's way.
///
/// Any call may be repeated for the same order, in another process, long after or at the same time: effects
/// are keyed by the order's id, and a repeat finds what is there already.
pub trait Step: Send + Sync + 'static {
    /// Name of the step: its durable consumer, its log lines, the `step` of its rejections.
    const NAME: &'static str;
    /// Events after which an order may have work for this step. That an order was redriven is one for every step,
    /// and need not be named.
    const EVENTS: &'static [EventKind];
    /// Orders that one process works on at the same time, unless it is configured otherwise.
    const WORKER_POOL_SIZE: u16 = 10;

    /// Does what the order, as it stands, needs of this step, and says what happened. `None` if it needs
    /// nothing.
    fn handle(&self, order: &Order) -> impl Future<Output = Result<Option<Detail>, StepError>> + Send;

    /// Takes back what [`handle`](Self::handle) did, if the order, as it stands, has gone another way
    /// meanwhile. What the order itself owes in the log is for `handle` to undo.
    fn compensate(&self, order: &Order) -> impl Future<Output = Result<(), StepError>> + Send;
}

/// Why a step did not do its work.
#[derive(Debug, Error)]
pub enum StepError {
    /// A business no, the answer for good: the order becomes REJECTED.
    #[error("rejected: {reason}: {message}")]
    Rejected {
        /// A stable upper-case word.
        reason: &'static str,
        /// The same for people.
        message: String,
    },
    /// Something that the step depends on is away: no fault of the order.
    #[error("dependency not available: {0}")]
    Unavailable(String),
    /// Anything else.
    #[error("{0}")]
    Unexpected(String),
}

impl StepError {
    /// What a business no of `step` makes happen to the order; other errors are given back.
    pub(crate) fn into_rejection(self, step: &str) -> Result<Detail, Self> {
        match self {
            Self::Rejected { reason, message } => Ok(Detail::Rejected(OrderRejected {
                reason: reason.to_owned(),
                message,
                step: step.to_owned(),
            })),
            error @ (Self::Unavailable(_) | Self::Unexpected(_)) => Err(error),
        }
    }
}
