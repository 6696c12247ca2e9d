//! Services of others that steps call over gRPC: connections, credentials, retries, and what an answer means.

mod address;
mod answers;
mod credentials;
mod service;

pub(crate) use address::endpoint;
pub use answers::CallError;
pub(crate) use answers::{TEXT_CHARS_MAX, shortened, text, unusable};
pub(crate) use credentials::readable;
pub use credentials::{CredentialFiles, UnusableCredentials};
#[cfg(test)]
pub(crate) use service::CALLS_MAX;
pub(crate) use service::{ANSWER_BYTES_MAX, Service};
