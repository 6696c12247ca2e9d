//! A step whose work a service does: `steps.v1.StepService`, in any language.

mod answers;
mod config;

use std::time::{Duration, SystemTime};

use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Order, StepCompensated, StepCompleted};
use proto::steps::v1::step_service_client::StepServiceClient;
use proto::steps::v1::{ActRequest, CompensateRequest, act_response, compensate_response};
use tonic::transport::Channel;
use tracing::info;

pub use config::RemoteStepConfig;

use self::answers::{attributes, deferral, rejection};
use crate::creation_time::CreationTime;
use crate::remote::{ANSWER_BYTES_MAX, Service, UnusableCredentials, unusable};
use crate::step::{Step, StepError};

/// The step.
#[derive(Debug)]
pub struct RemoteStep {
    name: &'static str,
    service: Service,
}

impl RemoteStep {
    /// The step that `config` names. Needs no connection yet. `attempt_timeout` is how long one attempt at an order may take,
    /// of which the calls get one half.
    pub fn new(config: &RemoteStepConfig, attempt_timeout: Duration) -> Result<Self, UnusableCredentials> {
        let service = Service::new(config.url.clone(), config.files(), config.timeout, attempt_timeout / 2)?;
        info!(step = config.name, url = %config.url.uri(), "step service configured");
        Ok(Self { name: config.name, service })
    }

    /// One effect per order and step: a later order with the same id is another one.
    fn idempotency_key(&self, order: &Order) -> Result<String, StepError> {
        Ok(format!("{}-{}-{}", order.order_id, self.name, CreationTime::of(order)?))
    }
}

fn client(channel: Channel) -> StepServiceClient<Channel> {
    StepServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

fn counted(attempt: u64) -> i64 {
    i64::try_from(attempt).unwrap_or(i64::MAX)
}

impl Step for RemoteStep {
    async fn act(&self, order: &Order, attempt: u64) -> Result<Detail, StepError> {
        let request = ActRequest {
            step: self.name.to_owned(),
            idempotency_key: self.idempotency_key(order)?,
            order: Some(order.clone()),
            attempt: counted(attempt),
        };
        let call = async |channel, request| client(channel).act(request).await;
        let response =
            self.service.call("steps.v1.StepService/Act", (&order.order_id, ""), request, call).await?;
        match response.outcome {
            Some(act_response::Outcome::Completed(completed)) => {
                let attributes = attributes(order, self.name, completed.attributes)?;
                Ok(Detail::Completed(StepCompleted { attributes }))
            }
            Some(act_response::Outcome::Rejected(rejected)) => {
                let (reason, message) = rejection(rejected)?;
                Err(StepError::Rejected { reason: reason.into(), message })
            }
            Some(act_response::Outcome::Deferred(deferred)) => {
                Ok(Detail::Deferred(deferral(deferred, SystemTime::now())?))
            }
            // The order has moved on from the status in this event.
            Some(act_response::Outcome::AlreadyCompensated(_)) => {
                let reason = "the step service has compensated this order before";
                Err(StepError::Unexpected(reason.to_owned()))
            }
            None => Err(unusable("Act without an outcome").into()),
        }
    }

    async fn compensate(&self, order: &Order, done: bool, attempt: u64) -> Result<Detail, StepError> {
        let request = CompensateRequest {
            step: self.name.to_owned(),
            idempotency_key: self.idempotency_key(order)?,
            order: Some(order.clone()),
            attempt: counted(attempt),
            completed: done,
        };
        let call = async |channel, request| client(channel).compensate(request).await;
        let called =
            self.service.call("steps.v1.StepService/Compensate", (&order.order_id, ""), request, call);
        match called.await?.outcome {
            Some(compensate_response::Outcome::NothingDone(_)) if done => {
                let reason = "the step service reports no effect, but the log has the step's completion";
                Err(StepError::Unexpected(reason.to_owned()))
            }
            Some(
                compensate_response::Outcome::Compensated(_) | compensate_response::Outcome::NothingDone(_),
            ) => Ok(Detail::Compensated(StepCompensated {})),
            None => Err(unusable("Compensate without an outcome").into()),
        }
    }
}

#[cfg(test)]
mod tests;
