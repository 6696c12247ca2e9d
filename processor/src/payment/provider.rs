//! The interface of the payment step to a payment provider.

use std::future::Future;

use proto::orders::v1::Money;
use thiserror::Error;

use crate::remote::CallError;

/// A capture to make.
#[derive(Clone, Copy, Debug)]
pub struct Capture<'a> {
    /// The same key always means the same capture.
    pub idempotency_key: &'a str,
    /// The order to pay for.
    pub order_id: &'a str,
    /// The customer.
    pub customer_id: &'a str,
    /// How much.
    pub amount: &'a Money,
    /// What the customer pays with: the client's token; may be empty.
    pub payment_method: &'a str,
}

/// Money that went back.
#[derive(Clone, Debug, PartialEq)]
pub struct Refund {
    /// The provider's reference for it.
    pub refund_id: String,
    /// How much it was.
    pub amount: Money,
}

/// Why no money was captured.
#[derive(Clone, Debug, Error)]
pub enum CaptureError {
    /// The provider permanently declined.
    #[error("declined: {0}")]
    Declined(String),
    /// The capture was refunded before it arrived.
    #[error("already refunded")]
    Refunded,
    /// The outcome is unknown; a retry finds it.
    #[error(transparent)]
    Provider(#[from] CallError),
}

/// Moves money. Both calls are safe to retry: the idempotency key identifies a retry.
pub trait PaymentProvider: Send + Sync + 'static {
    /// Takes the money and gives the provider's reference for it.
    fn capture(&self, capture: Capture<'_>) -> impl Future<Output = Result<String, CaptureError>> + Send;

    /// Refunds the capture under the key, and returns it: `None` if there was none. No capture under the key succeeds
    /// afterwards.
    fn refund(&self, idempotency_key: &str)
    -> impl Future<Output = Result<Option<Refund>, CallError>> + Send;

    /// Whether it still knows of every capture that it has ever answered for.
    fn remembers(&self) -> bool {
        true
    }
}
