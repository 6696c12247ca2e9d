//! Why a consumer has to be opened anew.

use thiserror::Error;

/// The consumer brings no more messages and has to be opened anew.
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
    /// Somebody has edited it, so that it may pass messages over, hold them back, or bring them too often.
    #[error("it was edited: {settings}")]
    Edited {
        /// What is other than it has to be.
        settings: String,
    },
    /// Another server leads its replicas, and may have passed messages over.
    #[error("it has got another leader")]
    Led,
    /// Whatever is asked, nothing comes, although the connection is up: so the broker knows no longer whom to answer.
    #[error("no sign of life from the broker, although it was asked again")]
    Silent,
    /// The connection is closed for good.
    #[error("the connection is closed")]
    Closed,
}
