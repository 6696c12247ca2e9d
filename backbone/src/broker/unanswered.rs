//! Why a write was not answered.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use tokio::time::timeout;

use crate::broker::connection::Connection;
use crate::broker::error_class::refusal;

/// Why writes are not answered by a broker that answers all else.
pub const DISCARDS_MESSAGES: &str =
    "the broker accepts messages but stores none; usually its disk is full: free space, then restart it";
const EXPECTED_STREAM: &str = "Nats-Expected-Stream";
const INQUIRY_TIMEOUT: Duration = Duration::from_secs(1);

/// Whether a write to the subject that was not answered, on the connection that was the `connects`th, came to a stream that
/// cannot write. A server that cannot write to its disk leaves writes unanswered (nats-server 2.15), and answers those that it
/// has to refuse before. One of these comes behind the others, in one queue, so that the answer to it shows that those
/// before it are done with. In a cluster that would show nothing: a replica may have the message.
pub async fn discards_messages(connection: &Connection, subject: String, connects: u64) -> bool {
    if connection.client.server_info().cluster.is_some() {
        return false;
    }
    let mut headers = HeaderMap::new();
    headers.insert(EXPECTED_STREAM, "-");
    let refused =
        async { connection.jetstream.publish_with_headers(subject, headers, Bytes::new()).await?.await };
    let answer = timeout(INQUIRY_TIMEOUT, refused).await;
    let is_refused = answer.is_ok_and(|answer| answer.is_err_and(|error| refusal(&error).is_some()));
    // After a reconnect the inquiry may have overtaken the publish.
    is_refused && *connection.connects().borrow() == connects
}
