//! The way to a gateway: connecting, deadlines, and which failures are worth another try.

use std::error::Error;
use std::time::Duration;

use anyhow::anyhow;
use program::backoff::Backoff;
use proto::inventory::v1::stock_service_client::StockServiceClient;
use proto::operations::v1::dead_letter_service_client::DeadLetterServiceClient;
use proto::orders::v1::order_service_client::OrderServiceClient;
use tokio::time::timeout;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{self, Channel, Endpoint, Uri};
use tonic::{Code, Response, Status};
use tonic_types::StatusExt;

use crate::credential::Credential;
use crate::operators::Operators;
use crate::program_path::program_path;
use crate::tls::Tls;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A stream may be silent for days; pings tell a quiet gateway from a dead one.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY: Backoff = Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(5) };

/// A client of the order service. Cheap to clone; clones share one connection.
pub(crate) type Orders = OrderServiceClient<InterceptedService<Channel, Credential>>;

/// A client of the operators' service.
pub(crate) type DeadLetters = DeadLetterServiceClient<InterceptedService<Channel, Credential>>;

/// A client of the operators' service of the stock.
pub(crate) type Stock = StockServiceClient<InterceptedService<Channel, Credential>>;

/// Largest answer: a dead letter holds a message of any size that the broker takes.
const LETTER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How to reach a gateway; nothing is connected yet.
pub(crate) fn endpoint(gateway: Uri) -> Endpoint {
    Channel::builder(gateway)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
}

/// Connects to a gateway that is expected to be running.
pub(crate) async fn connect(gateway: Uri, tls: &Tls, credential: Credential) -> anyhow::Result<Orders> {
    let channel = tls.apply(endpoint(gateway.clone()))?.connect().await.map_err(|error| {
        let advice = advice(&error, "--gateway");
        anyhow!(error).context(format!("cannot reach a gateway at {gateway}: {advice}"))
    })?;
    Ok(orders(channel, credential))
}

/// Connects to the address that a gateway is expected to serve operators at.
pub(crate) async fn connect_operations(gateway: Operators) -> anyhow::Result<DeadLetters> {
    let channel = operators(gateway.operations, &gateway.tls).await?;
    let letters = DeadLetterServiceClient::with_interceptor(channel, gateway.credential);
    Ok(letters.max_decoding_message_size(LETTER_BYTES_MAX))
}

/// The same for the stock.
pub(crate) async fn connect_stock(gateway: Operators) -> anyhow::Result<Stock> {
    let channel = operators(gateway.operations, &gateway.tls).await?;
    Ok(StockServiceClient::with_interceptor(channel, gateway.credential))
}

async fn operators(operations: Uri, tls: &Tls) -> anyhow::Result<Channel> {
    tls.apply(endpoint(operations.clone()))?.connect().await.map_err(|error| {
        let advice = advice(&error, "--operations");
        anyhow!(error).context(format!(
            "cannot reach a gateway's address for operators (OPERATIONS_ADDR) at {operations}: {advice}"
        ))
    })
}

/// What to do about a connection that could not be made.
fn advice(error: &transport::Error, flag: &str) -> String {
    let reasons = std::iter::successors(Some::<&dyn Error>(error), |&error| error.source());
    let reasons: Vec<_> = reasons.map(ToString::to_string).collect();
    // Matched by rustls's text: the error is wrapped too often to be recognised by its type.
    for (reason, advice) in [
        (
            "UnknownIssuer",
            "its certificate is from an authority that this machine does not trust; pass that with --ca",
        ),
        ("not valid for name", "its certificate is for other names: use one of those in the address"),
        ("InvalidContentType", "it does not use TLS: write http:// instead of https://"),
    ] {
        if reasons.iter().any(|said| said.contains(reason)) {
            return advice.to_owned();
        }
    }
    format!("start one with `{} dev`, or name another with {flag}", program_path())
}

/// The order service at the end of a channel.
pub(crate) fn orders(channel: Channel, credential: Credential) -> Orders {
    OrderServiceClient::with_interceptor(channel, credential)
}

/// The answer of a call, or DEADLINE_EXCEEDED. For a stream the answer is its beginning.
pub(crate) async fn answer<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    match timeout(CALL_TIMEOUT, call).await {
        Ok(answered) => answered.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!("no answer within {CALL_TIMEOUT:?}"))),
    }
}

/// How long to wait before the same call is made again after so many fruitless tries; `None` when the answer
/// would be the same.
pub(crate) fn pause_before_retry(status: &Status, tries: u32) -> Option<Duration> {
    let wanted_by_server = status.get_details_retry_info().and_then(|retry| retry.retry_delay);
    match wanted_by_server {
        Some(delay) => Some(delay.min(RETRY.max)),
        None => may_pass(status).then(|| RETRY.after(u64::from(tries) + 1)),
    }
}

/// Whether the failure occurred in transit and is not the gateway's answer. A status has a source only when the
/// connection broke; one that the gateway sent has none.
fn may_pass(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded) || status.source().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    #[test]
    fn the_server_sets_the_retry_delay() {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(700)));
        let status = Status::with_error_details(Code::ResourceExhausted, "over quota", details);
        assert_eq!(pause_before_retry(&status, 3), Some(Duration::from_millis(700)));
    }

    #[test]
    fn pauses_grow_up_to_a_bound() {
        let status = Status::unavailable("away");
        assert!(pause_before_retry(&status, 0).unwrap() <= RETRY.initial);
        assert!(pause_before_retry(&status, 2).unwrap() >= RETRY.initial * 2);
        assert!(pause_before_retry(&status, u32::MAX).unwrap() <= RETRY.max);
    }

    #[test]
    fn a_rejection_is_final() {
        assert_eq!(pause_before_retry(&Status::invalid_argument("no"), 0), None);
        assert_eq!(pause_before_retry(&Status::resource_exhausted("no"), 0), None);
    }
}
