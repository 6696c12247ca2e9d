//! A payment provider in another process: `payments.v1.PaymentService`.

mod answers;

use std::time::Duration;

use proto::payments::v1::payment_service_client::PaymentServiceClient;
use proto::payments::v1::{CaptureRequest, RefundRequest, capture_response, refund_response};
use tonic::transport::{Channel, Endpoint};

use self::answers::{from_payments, reference, to_payments};
use super::provider::{Capture, CaptureError, PaymentProvider, Refund};
use crate::remote::{
    ANSWER_BYTES_MAX, CallError, CredentialFiles, Service, UnusableCredentials, shortened, unusable,
};

/// The payment service at some address.
#[derive(Clone, Debug)]
pub struct Remote {
    service: Service,
}

impl Remote {
    /// The service at `endpoint`. One call may take `call_timeout`, and a call with all its retries `answer_timeout`.
    pub fn new(
        endpoint: Endpoint,
        files: CredentialFiles,
        call_timeout: Duration,
        answer_timeout: Duration,
    ) -> Result<Self, UnusableCredentials> {
        Ok(Self { service: Service::new(endpoint, files, call_timeout, answer_timeout)? })
    }
}

fn client(channel: Channel) -> PaymentServiceClient<Channel> {
    PaymentServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

impl PaymentProvider for Remote {
    async fn capture(&self, capture: Capture<'_>) -> Result<String, CaptureError> {
        let request = CaptureRequest {
            idempotency_key: capture.idempotency_key.to_owned(),
            order_id: capture.order_id.to_owned(),
            customer_id: capture.customer_id.to_owned(),
            amount: Some(to_payments(capture.amount)),
            payment_method: capture.payment_method.to_owned(),
        };
        let about = (capture.order_id, capture.payment_method);
        let call = async |channel, request| client(channel).capture(request).await;
        let response = self.service.call("payments.v1.PaymentService/Capture", about, request, call).await?;
        match response.outcome {
            Some(capture_response::Outcome::Captured(captured)) => {
                Ok(reference("payment_id", captured.payment_id)?)
            }
            Some(capture_response::Outcome::Declined(declined)) => {
                Err(CaptureError::Declined(shortened(&declined.message, capture.payment_method)))
            }
            Some(capture_response::Outcome::AlreadyRefunded(_)) => Err(CaptureError::Refunded),
            None => Err(unusable("capture without an outcome").into()),
        }
    }

    async fn refund(&self, idempotency_key: &str) -> Result<Option<Refund>, CallError> {
        let request = RefundRequest { idempotency_key: idempotency_key.to_owned() };
        let call = async |channel, request| client(channel).refund(request).await;
        // The key begins with the order's id.
        let order_id = idempotency_key.rsplit_once('-').map_or(idempotency_key, |(order_id, _)| order_id);
        let response =
            self.service.call("payments.v1.PaymentService/Refund", (order_id, ""), request, call).await?;
        match response.outcome {
            Some(refund_response::Outcome::Refunded(refunded)) => {
                let amount = refunded.amount.ok_or_else(|| unusable("refund without an amount"))?;
                Ok(Some(Refund {
                    refund_id: reference("refund_id", refunded.refund_id)?,
                    amount: from_payments(amount)?,
                }))
            }
            Some(refund_response::Outcome::NothingCaptured(_)) => Ok(None),
            None => Err(unusable("refund without an outcome")),
        }
    }
}

#[cfg(test)]
mod tests;
