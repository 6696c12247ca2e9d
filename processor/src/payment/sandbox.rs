//! A payment provider that moves no money: for first steps and benchmarks.

use super::provider::{Capture, PaymentError, PaymentProvider};

/// Customers whose id begins so are declined.
const DECLINED_PREFIX: &str = "declined";

/// Answers by rule and therefore remembers nothing: the same capture always has the same outcome and
/// reference, in every process and after every restart.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sandbox;

impl PaymentProvider for Sandbox {
    async fn capture(&self, capture: Capture<'_>) -> Result<String, PaymentError> {
        if capture.customer_id.starts_with(DECLINED_PREFIX) {
            return Err(PaymentError::Declined(format!(
                "the sandbox declines customers whose id begins with \"{DECLINED_PREFIX}\""
            )));
        }
        Ok(format!("sandbox-{}", capture.idempotency_key))
    }

    async fn refund(&self, _: &str) -> Result<(), PaymentError> {
        Ok(())
    }
}
