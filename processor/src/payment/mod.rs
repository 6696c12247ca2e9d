//! Payment: captures the total of a reserved order, and refunds what was captured for a cancelled one.

mod config;
mod provider;
mod remote;
mod sandbox;

use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Money, Order, PaymentCaptured, PaymentRefunded};

pub use config::{ConfiguredProvider, PaymentConfig};
pub use provider::{Capture, CaptureError, PaymentProvider, Refund};
pub use remote::Remote;
pub use sandbox::Sandbox;

use crate::creation_time::CreationTime;
use crate::step::{Step, StepError, StepProfile};

/// The payment step.
pub const PROFILE: StepProfile = StepProfile { gets_payment_method: true, ..StepProfile::new("payment") };

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
    async fn act(&self, order: &Order, _: u64) -> Result<Detail, StepError> {
        let amount =
            order.total.clone().ok_or_else(|| StepError::Unexpected("order without a total".to_owned()))?;
        // Payment services reject a capture of 0, each in its own way.
        if amount.minor_units == 0 {
            return Ok(Detail::Paid(PaymentCaptured { payment_id: String::new(), amount: Some(amount) }));
        }
        let capture = Capture {
            idempotency_key: &idempotency_key(order)?,
            order_id: &order.order_id,
            customer_id: &order.customer_id,
            amount: &amount,
            payment_method: &order.payment_method,
        };
        let payment_id = self.provider.capture(capture).await?;
        Ok(Detail::Paid(PaymentCaptured { payment_id, amount: Some(amount) }))
    }

    async fn compensate(&self, order: &Order, done: bool, _: u64) -> Result<Detail, StepError> {
        if order.total.as_ref().is_some_and(|total| total.minor_units == 0) {
            return Ok(Detail::Refunded(PaymentRefunded::default()));
        }
        let refund = self.provider.refund(&idempotency_key(order)?).await?;
        if refund.is_none() && done && self.provider.remembers() {
            let reason = "the payment service reports no capture, but the log has a payment";
            return Err(StepError::Unexpected(reason.to_owned()));
        }
        if let Some(refund) = refund.as_ref().filter(|refund| order.total.as_ref() != Some(&refund.amount)) {
            let Money { currency_code, minor_units } = &refund.amount;
            let reason = format!("refund of {minor_units} {currency_code} differs from the order's total");
            return Err(StepError::Unexpected(reason));
        }
        let refunded = refund.map_or_else(PaymentRefunded::default, |refund| PaymentRefunded {
            refund_id: refund.refund_id,
            amount: Some(refund.amount),
        });
        Ok(Detail::Refunded(refunded))
    }
}

/// One payment per order: a later order with the same id is another payment.
fn idempotency_key(order: &Order) -> Result<String, StepError> {
    Ok(format!("{}-{}", order.order_id, CreationTime::of(order)?))
}

impl From<CaptureError> for StepError {
    fn from(error: CaptureError) -> Self {
        match error {
            CaptureError::Declined(message) => Self::Rejected { reason: CARD_DECLINED.into(), message },
            // The order has moved on from the status in this event.
            CaptureError::Refunded => Self::Unexpected("the payment was already refunded".to_owned()),
            CaptureError::Provider(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::CallError;
    use proto::orders::v1::Money;
    use std::time::{Duration, UNIX_EPOCH};

    /// An order of always the same id, created at some second.
    fn order(created_s: u64) -> Order {
        Order {
            order_id: "customer-order".to_owned(),
            total: Some(Money { currency_code: "EUR".to_owned(), minor_units: 350 }),
            create_time: Some((UNIX_EPOCH + Duration::from_secs(created_s)).into()),
            ..Order::default()
        }
    }

    #[tokio::test]
    async fn a_capture_of_a_cancelled_order_is_refunded_once() {
        let payment = Payment::new(Sandbox::default());
        payment.act(&order(1), 1).await.unwrap();
        let refunded = payment.compensate(&order(1), true, 1).await.unwrap();
        let Detail::Refunded(detail) = &refunded else { panic!("{refunded:?}") };
        assert_eq!(detail.amount, order(1).total);
        assert_eq!(
            payment.compensate(&order(1), true, 1).await.unwrap(),
            refunded,
            "a repeat is the same refund"
        );
    }

    #[tokio::test]
    async fn a_capture_overtaken_by_its_refund_is_retried_and_not_declined() {
        let payment = Payment::new(Sandbox::default());
        let refunded = payment.compensate(&order(1), false, 1).await.unwrap();
        assert_eq!(refunded, Detail::Refunded(PaymentRefunded::default()));
        let late = payment.act(&order(1), 1).await;
        assert!(matches!(late, Err(StepError::Unexpected(_))), "{late:?}");
    }

    /// Fails every call.
    struct FailingProvider;

    impl PaymentProvider for FailingProvider {
        async fn capture(&self, _: Capture<'_>) -> Result<String, CaptureError> {
            Err(CallError::Unusable("asked for a capture".to_owned()).into())
        }

        async fn refund(&self, _: &str) -> Result<Option<Refund>, CallError> {
            Err(CallError::Unusable("asked for a refund".to_owned()))
        }
    }

    #[tokio::test]
    async fn a_zero_total_is_paid_and_refunded_without_a_call() {
        let total = Some(Money { currency_code: "EUR".to_owned(), minor_units: 0 });
        let free = Order { total: total.clone(), ..order(1) };
        let payment = Payment::new(FailingProvider);
        let paid = PaymentCaptured { payment_id: String::new(), amount: total };
        assert_eq!(payment.act(&free, 1).await.unwrap(), Detail::Paid(paid));
        for done in [true, false] {
            let nothing = Detail::Refunded(PaymentRefunded::default());
            assert_eq!(payment.compensate(&free, done, 1).await.unwrap(), nothing);
        }
        payment.act(&order(1), 1).await.unwrap_err();
    }

    /// Refunds another amount than was captured.
    struct WrongRefundProvider;

    impl PaymentProvider for WrongRefundProvider {
        async fn capture(&self, _: Capture<'_>) -> Result<String, CaptureError> {
            Ok("payment".to_owned())
        }

        async fn refund(&self, _: &str) -> Result<Option<Refund>, CallError> {
            let amount = Money { currency_code: "EUR".to_owned(), minor_units: 1 };
            Ok(Some(Refund { refund_id: "refund".to_owned(), amount }))
        }
    }

    #[tokio::test]
    async fn a_refund_of_another_amount_is_an_error() {
        let refused = Payment::new(WrongRefundProvider).compensate(&order(1), true, 1).await;
        assert!(matches!(refused, Err(StepError::Unexpected(_))), "{refused:?}");
    }

    /// Answers that no payment exists.
    struct ForgetfulProvider;

    impl PaymentProvider for ForgetfulProvider {
        async fn capture(&self, _: Capture<'_>) -> Result<String, CaptureError> {
            Ok("payment".to_owned())
        }

        async fn refund(&self, _: &str) -> Result<Option<Refund>, CallError> {
            Ok(None)
        }
    }

    #[tokio::test]
    async fn nothing_captured_is_an_error_for_a_paid_order() {
        let refused = Payment::new(ForgetfulProvider).compensate(&order(1), true, 1).await;
        assert!(matches!(refused, Err(StepError::Unexpected(_))), "{refused:?}");
        let nothing = Detail::Refunded(PaymentRefunded::default());
        assert_eq!(Payment::new(ForgetfulProvider).compensate(&order(1), false, 1).await.unwrap(), nothing);
        // The in-process sandbox does not know the captures before its start.
        assert_eq!(Payment::new(Sandbox::default()).compensate(&order(1), true, 1).await.unwrap(), nothing);
    }

    #[tokio::test]
    async fn a_later_order_of_the_same_id_is_another_payment() {
        let payment = Payment::new(Sandbox::default());
        let first = payment.act(&order(1), 1).await.unwrap();
        payment.compensate(&order(1), true, 1).await.unwrap();
        let second = payment.act(&order(2), 1).await.unwrap();
        assert!(matches!(second, Detail::Paid(_)) && second != first, "{second:?}");
    }
}
