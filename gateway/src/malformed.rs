//! Bytes that are not the message that a method takes. tonic says INTERNAL of them (0.14.9), which is what a fault of ours
//! is called.

use http::Response;
use tonic::body::Body;
use tonic::{Code, Status};

use crate::errors::{self, Refusal};

/// Puts INVALID_ARGUMENT in the place of what tonic says of a request that it cannot read.
pub(crate) fn answer(answer: Response<Body>) -> Response<Body> {
    // Ours has a mark, and that of a stream, or of an answer that cannot be written, comes behind the headers.
    if Refusal::is_marked(answer.headers()) {
        return answer;
    }
    match Status::from_header_map(answer.headers()) {
        Some(status) if status.code() == Code::Internal => of(status).into_http(),
        Some(_) | None => answer,
    }
}

/// The status of a request that tonic cannot read.
pub(crate) fn of(status: Status) -> Status {
    if status.code() == Code::Internal {
        return errors::malformed(&format!("the request cannot be read: {}", status.message()));
    }
    status
}
