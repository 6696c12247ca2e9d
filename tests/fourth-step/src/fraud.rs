//! Fraud check: lets no order of a suspect be paid. Suspects are entries of the bucket `SUSPECTS`: the customer's
//! key, which is the first half of their order ids, and why they are suspected.

use async_nats::jetstream::kv;
use backbone::broker::connection::Connection;
use processor::step::{Step, StepError};
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Order, StepCompleted};

/// The fraud check.
#[derive(Debug)]
pub(crate) struct Fraud {
    suspects: kv::Store,
}

impl Fraud {
    /// Opens the bucket of suspects, making it if it is missing.
    pub(crate) async fn open(connection: &Connection) -> anyhow::Result<Self> {
        let config = kv::Config { bucket: "SUSPECTS".to_owned(), ..kv::Config::default() };
        let suspects = connection.jetstream().create_key_value(config).await?;
        Ok(Self { suspects })
    }
}

impl Step for Fraud {
    async fn act(&self, order: &Order, _attempt: u64) -> Result<Detail, StepError> {
        let (customer, _) = order
            .order_id
            .split_once('-')
            .ok_or_else(|| StepError::Unexpected("malformed order_id".to_owned()))?;
        let suspect =
            self.suspects.get(customer).await.map_err(|error| StepError::Unavailable(error.to_string()))?;
        let Some(reason) = suspect else { return Ok(Detail::Completed(StepCompleted::default())) };
        let message = String::from_utf8(reason.into()).map_err(|_| {
            StepError::Unexpected(format!("the entry of {customer} in bucket SUSPECTS is not text"))
        })?;
        Err(StepError::Rejected { reason: "SUSPECTED_FRAUD".into(), message })
    }
}
