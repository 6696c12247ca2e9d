//! Whether the server that leads a step's consumer lags behind the log, and requests for its step-down.

use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::response::Response;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use super::OrderLog;
use super::backlog::filters;
use crate::broker::direct_get::{self, ReadError};
use crate::broker::leader_get;
use crate::broker::streams::ORDERS;
use crate::consumer::lag::{Lag, LaggingLeader, UnseenRange};

/// The result of a request that a consumer's leader step down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepDown {
    /// It does.
    Done,
    /// This user may not ask for it, on this subject.
    NotAllowed(String),
}

#[derive(Deserialize)]
struct Success {}

impl OrderLog {
    /// How far the leader of a consumer lags behind the log now; `None` if it keeps up. `lag` is what was seen before.
    pub async fn lag_of(&self, consumer: &str, lag: &mut Lag) -> Result<Option<LaggingLeader>, ReadError> {
        direct_get::reachable(&self.connection.client)?;
        let no_answer = |error: &dyn std::fmt::Display| ReadError::NoAnswer(error.to_string());
        let stream = self.stream.get_info().await.map_err(|error| no_answer(&error))?;
        let info = self.stream.consumer_info(consumer).await.map_err(|error| no_answer(&error))?;
        let Some(unseen) = lag.observe(&info, &stream, Instant::now()) else { return Ok(None) };
        if self.is_any_for(&info, unseen).await? {
            return Ok(LaggingLeader::of(&info, &stream));
        }
        lag.clear(&info, unseen);
        Ok(None)
    }

    /// Whether one of the messages is for the consumer, as the leader of the log has it.
    async fn is_any_for(&self, consumer: &Info, unseen: UnseenRange) -> Result<bool, ReadError> {
        for filter in filters(consumer) {
            let next = self.stream.get_first_raw_message_by_subject(filter, unseen.from).await;
            if leader_get::found(next)?.is_some_and(|message| message.sequence <= unseen.to) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Has the leader of a consumer step down, for the server that is to lead instead.
    pub async fn step_down(&self, consumer: &str, successor: &str) -> Result<StepDown, ReadError> {
        let request = format!("CONSUMER.LEADER.STEPDOWN.{ORDERS}.{consumer}");
        let subject = format!("$JS.API.{request}");
        let placement = json!({ "placement": { "preferred": successor } });
        let asking = self.connection.jetstream.request(request, &placement);
        match self.connection.if_allowed(&subject, asking).await {
            None => Ok(StepDown::NotAllowed(subject)),
            Some(Ok(Response::Ok(Success {}))) => Ok(StepDown::Done),
            Some(Ok(Response::Err { error })) => Err(ReadError::Broker(error.to_string())),
            Some(Err(error)) => Err(ReadError::NoAnswer(error.to_string())),
        }
    }
}
