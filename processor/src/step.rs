//! The seam between the runtime and a step's business.

use std::borrow::Cow;
use std::future::Future;

use backbone::log::payment_method::removed_from_order;
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Order, OrderRejected};
use thiserror::Error;

/// What the runtime knows of a step before it is open.
#[derive(Clone, Copy, Debug)]
pub struct StepProfile {
    /// Name of the step in routes: 1-32 characters of a-z, 0-9 and '-'. Also the name of its durable consumer.
    pub name: &'static str,
    /// If its effects expire: name of a second consumer, `<name>-carried`, by which they are renewed with
    /// [`keep`](Step::keep).
    pub carried: Option<&'static str>,
    /// Orders that one process works on at the same time, unless it is configured otherwise.
    pub worker_pool_size: u16,
    /// Whether it may defer its work.
    pub defers: bool,
    /// Whether it gets the order's `payment_method`. The runtime removes it from the orders of all other steps.
    pub gets_payment_method: bool,
}

impl StepProfile {
    /// A step without a second consumer, which never defers and gets no `payment_method`. Its processes work on 10 orders each.
    pub const fn new(name: &'static str) -> Self {
        Self { name, carried: None, worker_pool_size: 10, defers: false, gets_payment_method: false }
    }
}

/// A step in the processing of an order. It knows its name and nothing of routes: the order's own route says when it is
/// the step's turn, and whether the step compensates.
///
/// Any call may be retried for the same order, in another process, much later or concurrently: effects are keyed by the
/// order's id, and a retry finds the existing one.
pub trait Step: Send + Sync + 'static {
    /// A missing dependency without which the step cannot work, and what to do about it: the process is not ready then.
    fn lacks(&self) -> Option<&'static str> {
        None
    }

    /// Does the step's work for an order whose turn it is, and returns the event that completes the step:
    /// [`Detail::Completed`], or an event of its own such as [`Detail::Paid`]. Or [`Detail::Deferred`], if the step's profile
    /// says that it defers: then it is called again at that time, not earlier.
    ///
    /// An unavailable dependency must be reported as [`StepError::Unavailable`] within half of ATTEMPT_TIMEOUT, as in
    /// [`compensate`](Self::compensate); an attempt that is cut off at its end counts against the order. `attempt` counts the deliveries of the order's event, from 1.
    fn act(&self, order: &Order, attempt: u64) -> impl Future<Output = Result<Detail, StepError>> + Send;

    /// Compensates [`act`](Self::act) for a rejected or cancelled order, and returns the event: [`Detail::Compensated`], or
    /// one of its own. There may be nothing to compensate; an `act` in progress elsewhere must then fail. Called only where
    /// the order's route says that the step compensates. Also called when it is not the step's turn, if the order was
    /// rejected or cancelled during `act`: the result is then ignored, and the call is retried in its turn.
    ///
    /// `done`: whether the log has the completion of `act`. Without it, `act` may have been done nevertheless.
    fn compensate(
        &self,
        _order: &Order,
        _done: bool,
        _attempt: u64,
    ) -> impl Future<Output = Result<Detail, StepError>> + Send {
        async {
            let reason =
                "the step cannot compensate, but the order's route says that it does; fix the route file";
            Err(StepError::Unexpected(reason.to_owned()))
        }
    }

    /// Renews the effects of an unfinished order, because the order is carried: their expiry counts from now. A retry
    /// changes nothing else.
    fn keep(&self, _order: &Order) -> impl Future<Output = Result<(), StepError>> + Send {
        async { Ok(()) }
    }
}

/// The order as the step gets it.
pub(crate) fn for_step(profile: StepProfile, order: &Order) -> Cow<'_, Order> {
    if profile.gets_payment_method || order.payment_method.is_empty() {
        Cow::Borrowed(order)
    } else {
        Cow::Owned(removed_from_order(order.clone()))
    }
}

/// Why a step failed.
#[derive(Debug, Error)]
pub enum StepError {
    /// A permanent rejection: the order becomes REJECTED.
    #[error("rejected: {reason}: {message}")]
    Rejected {
        /// A stable upper-case word.
        reason: Cow<'static, str>,
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
    /// The change of the order by a rejection; other errors are returned.
    pub(crate) fn into_rejection(self) -> Result<Detail, Self> {
        match self {
            Self::Rejected { reason, message } => {
                Ok(Detail::Rejected(OrderRejected { reason: reason.into_owned(), message }))
            }
            error @ (Self::Unavailable(_) | Self::Unexpected(_)) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fulfilment, inventory, payment};

    #[test]
    fn only_payment_gets_the_payment_method() {
        let order = Order {
            order_id: "order".to_owned(),
            payment_method: "tok_1".to_owned(),
            note: "ring twice".to_owned(),
            ..Order::default()
        };
        let without = Order { payment_method: String::new(), ..order.clone() };
        assert_eq!(*for_step(payment::PROFILE, &order), order);
        assert_eq!(*for_step(inventory::PROFILE, &order), without);
        assert_eq!(*for_step(fulfilment::PROFILE, &order), without);
    }
}
