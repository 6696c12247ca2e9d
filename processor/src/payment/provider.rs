//! What the payment step needs of whoever moves the money.

use std::future::Future;

use proto::orders::v1::Money;
use thiserror::Error;

/// A capture to make.
#[derive(Clone, Copy, Debug)]
pub struct Capture<'a> {
    /// The same key always means the same capture.
    pub idempotency_key: &'a str,
    /// Who pays.
    pub customer_id: &'a str,
    /// How much.
    pub amount: &'a Money,
}

/// Why no money moved.
#[derive(Debug, Error)]
pub enum PaymentError {
    /// The provider's answer for good.
    #[error("declined: {0}")]
    Declined(String),
    /// The provider gave no answer.
    #[error("no answer: {0}")]
    Unavailable(String),
}

/// Moves money. Both calls may be repeated: the idempotency key makes a repeat the same call.
pub trait PaymentProvider: Send + Sync + 'static {
    /// Takes the money and gives the provider's reference for it.
    fn capture(&self, capture: Capture<'_>) -> impl Future<Output = Result<String, PaymentError>> + Send;

    /// Gives back what was captured under the key, if anything was; no capture under it succeeds afterwards.
    fn refund(&self, idempotency_key: &str) -> impl Future<Output = Result<(), PaymentError>> + Send;
}
