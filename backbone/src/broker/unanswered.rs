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

/// Whether a stream that cannot write discards messages. `subject` is that of an unanswered write, and `connects` the
/// number of its connection. A server that cannot write to its disk leaves writes unanswered (nats-server 2.15), but
/// still answers writes that it rejects before storing. Such a write queues behind the unanswered ones, so its answer
/// shows that the server has processed them. In a cluster it would not show that: a replica may have the message.
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
