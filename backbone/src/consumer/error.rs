//! The reasons to reopen a consumer.

use thiserror::Error;

/// The consumer delivers no more messages and has to be reopened.
#[derive(Debug, Error)]
pub enum ConsumerError {
    /// The broker refuses its requests.
    #[error("the broker answered {0}")]
    Refused(String),
    /// There are messages and room for them, and none came.
    #[error("{pending} messages are pending and none was delivered")]
    Stuck {
        /// Messages that it should have delivered.
        pending: u64,
    },
    /// It was edited, so that it may skip, delay or redeliver messages.
    #[error("consumer edited: {settings}")]
    Edited {
        /// The wrong settings.
        settings: String,
    },
    /// Another server leads its replicas, and may have passed messages over.
    #[error("consumer leader changed")]
    LeaderChanged,
    /// No request is answered although the connection is up: the broker has lost the subscription.
    #[error("no reply from the broker to two pull requests")]
    NoReply,
    /// The connection is closed permanently.
    #[error("the connection is closed")]
    Closed,
}
