//! A payment provider that moves no money and needs no other process: for first steps and benchmarks.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto::orders::v1::Money;
use proto::payments::DECLINED_PREFIX;

use super::provider::{Capture, CaptureError, PaymentProvider, Refund};
use crate::remote::CallError;

/// Payments remembered, some 200 bytes each; then the oldest are forgotten.
const PAYMENTS_MAX: usize = 100_000;

/// Answers by rule: the same call has the same outcome and reference in every process.
///
/// The sandbox keeps captures and refunds in memory, and only the latest 100,000 payments. A payment that another
/// process captured, or that was captured before a restart, counts as never captured when it is to be refunded. A real
/// payment service has to remember longer.
#[derive(Debug, Default)]
pub struct Sandbox {
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    payments: HashMap<Arc<str>, Payment>,
    /// The keys of `payments`, oldest first.
    by_age: VecDeque<Arc<str>>,
}

#[derive(Clone, Debug)]
enum Payment {
    Captured(Money),
    /// With nothing, if the refund came before the capture.
    Refunded(Option<Money>),
}

impl Sandbox {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        // No holder of the lock panics half-way.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn remember(&mut self, key: &str, payment: Payment) {
        if let Some(present) = self.payments.get_mut(key) {
            *present = payment;
            return;
        }
        if self.by_age.len() == PAYMENTS_MAX
            && let Some(oldest) = self.by_age.pop_front()
        {
            self.payments.remove(&oldest);
        }
        let key: Arc<str> = key.into();
        self.by_age.push_back(key.clone());
        self.payments.insert(key, payment);
    }
}

impl PaymentProvider for Sandbox {
    fn remembers(&self) -> bool {
        false
    }

    async fn capture(&self, capture: Capture<'_>) -> Result<String, CaptureError> {
        let Capture { idempotency_key, customer_id, amount, .. } = capture;
        if customer_id.starts_with(DECLINED_PREFIX) {
            return Err(CaptureError::Declined(format!(
                "the sandbox declines customers whose id begins with \"{DECLINED_PREFIX}\""
            )));
        }
        let mut memory = self.memory();
        match memory.payments.get(idempotency_key) {
            Some(Payment::Refunded(_)) => return Err(CaptureError::Refunded),
            Some(Payment::Captured(_)) => {}
            None => memory.remember(idempotency_key, Payment::Captured(amount.clone())),
        }
        Ok(format!("sandbox-{idempotency_key}"))
    }

    async fn refund(&self, idempotency_key: &str) -> Result<Option<Refund>, CallError> {
        let mut memory = self.memory();
        let amount = match memory.payments.get(idempotency_key).cloned() {
            Some(Payment::Refunded(amount)) => amount,
            Some(Payment::Captured(amount)) => Some(amount),
            None => None,
        };
        memory.remember(idempotency_key, Payment::Refunded(amount.clone()));
        Ok(amount.map(|amount| Refund { refund_id: format!("sandbox-refund-{idempotency_key}"), amount }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn euros(minor_units: i64) -> Money {
        Money { currency_code: "EUR".to_owned(), minor_units }
    }

    async fn capture(sandbox: &Sandbox, key: &str, amount: i64) -> Result<String, CaptureError> {
        let amount = &euros(amount);
        sandbox
            .capture(Capture {
                idempotency_key: key,
                order_id: "order",
                customer_id: "customer",
                amount,
                payment_method: "",
            })
            .await
    }

    #[tokio::test]
    async fn a_refund_returns_the_captured_amount_however_often_it_is_called() {
        let sandbox = Sandbox::default();
        let payment_id = capture(&sandbox, "k", 350).await.unwrap();
        assert_eq!(capture(&sandbox, "k", 350).await.unwrap(), payment_id, "a repeat is the same capture");
        let refund = sandbox.refund("k").await.unwrap().unwrap();
        assert_eq!(refund.amount, euros(350));
        assert_eq!(sandbox.refund("k").await.unwrap(), Some(refund));
        assert!(matches!(capture(&sandbox, "k", 350).await, Err(CaptureError::Refunded)));
    }

    #[tokio::test]
    async fn a_capture_after_its_refund_is_rejected() {
        let sandbox = Sandbox::default();
        assert_eq!(sandbox.refund("k").await.unwrap(), None);
        assert!(matches!(capture(&sandbox, "k", 350).await, Err(CaptureError::Refunded)));
        assert_eq!(sandbox.refund("k").await.unwrap(), None, "nothing was captured meanwhile");
        assert!(capture(&sandbox, "other", 350).await.is_ok());
    }

    #[tokio::test]
    async fn the_memory_is_bounded_and_evicts_the_oldest_first() {
        let sandbox = Sandbox::default();
        for n in 0..=PAYMENTS_MAX {
            capture(&sandbox, &n.to_string(), 1).await.unwrap();
        }
        assert_eq!(sandbox.memory().payments.len(), PAYMENTS_MAX);
        assert_eq!(sandbox.refund("0").await.unwrap(), None);
        assert!(sandbox.refund("2").await.unwrap().is_some());
    }
}
