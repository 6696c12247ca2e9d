//! Payment: captures the total of a reserved order.

mod provider;
mod sandbox;

use backbone::subjects::EventKind;
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Order, OrderStatus, PaymentCaptured};

pub use provider::{Capture, PaymentError, PaymentProvider};
pub use sandbox::Sandbox;

use crate::step::{Step, StepError};

/// Reason of an order whose payment was declined.
pub const CARD_DECLINED: &str = "CARD_DECLINED";

/// The payment step, over some provider.
#[derive(Debug)]
pub struct Payment<P> {
    provider: P,
}

impl<P> Payment<P> {
    /// The step that captures at `provider`.
    pub fn new(provider: P) -> Self {
        Self { provider }
    }
}

impl<P: PaymentProvider> Step for Payment<P> {
    const NAME: &'static str = "payment";
    const EVENTS: &'static [EventKind] = &[EventKind::Reserved];

    async fn handle(&self, order: &Order) -> Result<Option<Detail>, StepError> {
        match order.status() {
            OrderStatus::Reserved => {
                let amount = order
                    .total
                    .clone()
                    .ok_or_else(|| StepError::Unexpected("order without a total".to_owned()))?;
                let capture = Capture {
                    idempotency_key: &order.order_id,
                    customer_id: &order.customer_id,
                    amount: &amount,
                };
                let payment_id = self.provider.capture(capture).await?;
                Ok(Some(Detail::Paid(PaymentCaptured { payment_id, amount: Some(amount) })))
            }
            OrderStatus::Unspecified
            | OrderStatus::Accepted
            | OrderStatus::Paid
            | OrderStatus::Fulfilled
            | OrderStatus::Rejected
            | OrderStatus::Cancelled
            | OrderStatus::Failed => Ok(None),
        }
    }

    async fn compensate(&self, order: &Order) -> Result<(), StepError> {
        match order.status() {
            OrderStatus::Rejected | OrderStatus::Cancelled => {
                Ok(self.provider.refund(&order.order_id).await?)
            }
            // Another worker's append of the same capture was first, or the order may yet need it.
            OrderStatus::Unspecified
            | OrderStatus::Accepted
            | OrderStatus::Reserved
            | OrderStatus::Paid
            | OrderStatus::Fulfilled
            | OrderStatus::Failed => Ok(()),
        }
    }
}

impl From<PaymentError> for StepError {
    fn from(error: PaymentError) -> Self {
        match error {
            PaymentError::Declined(message) => Self::Rejected { reason: CARD_DECLINED, message },
            PaymentError::Unavailable(message) => Self::Unavailable(message),
        }
    }
}
