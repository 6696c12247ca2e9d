//! The seam between the runtime and a step's business.

use std::future::Future;
use std::time::Duration;

use backbone::consumer::ConsumerConfig;
use backbone::log::lifecycle;
use backbone::log::subjects::EventKind;
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Order, OrderRejected, Undo};
use thiserror::Error;

/// A step in the processing of an order.
///
/// Any call may be retried for the same order, in another process, much later or concurrently: effects are keyed by the
/// order's id, and a retry finds the existing one.
pub trait Step: Send + Sync + 'static {
    /// Name of the step: its durable consumer, its log lines, the `step` of its rejections.
    const NAME: &'static str;
    /// The event that completes the step. The lifecycle's row of this event decides which orders wait for the step, and
    /// so which events it consumes.
    const COMPLETES_WITH: EventKind;
    /// The compensation that a rejected or cancelled order may owe because of this step.
    const COMPENSATES: Option<Undo> = None;
    /// Orders that one process works on at the same time, unless it is configured otherwise.
    const WORKER_POOL_SIZE: u16 = 10;

    /// A missing dependency without which the step cannot work, and what to do about it: the process is not ready then.
    fn lacks(&self) -> Option<&'static str> {
        None
    }

    /// Does the step's work for an order that waits for it, and returns the detail of [`COMPLETES_WITH`](Self::COMPLETES_WITH).
    ///
    /// An unavailable dependency must be reported as [`StepError::Unavailable`] within half of ATTEMPT_TIMEOUT, as in
    /// [`compensate`](Self::compensate); an attempt that is cut off at its end counts against the order.
    fn act(&self, order: &Order) -> impl Future<Output = Result<Detail, StepError>> + Send;

    /// Compensates [`act`](Self::act) for a rejected or cancelled order, and returns the event. There may be nothing to
    /// compensate; an `act` in progress elsewhere must then fail. Also called for an order that owes nothing, when it
    /// was rejected or cancelled during `act`: the result is then ignored.
    ///
    /// `done`: whether the log has the event of `act`. Without the event, `act` may have been done nevertheless.
    fn compensate(
        &self,
        _order: &Order,
        _done: bool,
    ) -> impl Future<Output = Result<Option<Detail>, StepError>> + Send {
        async { Ok(None) }
    }

    /// Renews the effects of an unfinished order, because the order is carried: their expiry counts from now. A retry
    /// changes nothing else.
    fn keep(&self, _order: &Order) -> impl Future<Output = Result<(), StepError>> + Send {
        async { Ok(()) }
    }
}

/// The durable consumer that a step reads.
pub(crate) fn consumer<S: Step>(ack_wait: Duration) -> ConsumerConfig {
    ConsumerConfig { name: S::NAME, events: lifecycle::wakes(S::COMPLETES_WITH, S::COMPENSATES), ack_wait }
}

/// Why a step failed.
#[derive(Debug, Error)]
pub enum StepError {
    /// A permanent rejection: the order becomes REJECTED.
    #[error("rejected: {reason}: {message}")]
    Rejected {
        /// A stable upper-case word.
        reason: &'static str,
        /// Details for people.
        message: String,
    },
    /// A dependency of the step is unavailable: not the order's fault.
    #[error("dependency not available: {0}")]
    Unavailable(String),
    /// Anything else.
    #[error("{0}")]
    Unexpected(String),
}

impl StepError {
    /// The change of the order by a rejection of `step`; other errors are returned.
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
