//! Bytes that are not the message of a method. tonic answers INTERNAL (0.14.9), which means an internal error.

use http::Response;
use tonic::body::Body;
use tonic::{Code, Status};

use crate::errors::{self, Rejection};

/// Replaces tonic's status for an unreadable request by INVALID_ARGUMENT.
pub(crate) fn answer(answer: Response<Body>) -> Response<Body> {
    // The gateway's own INTERNAL has a mark. A later INTERNAL, such as a stream's, is in the trailers.
    if Rejection::is_marked(answer.headers()) {
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
        return errors::malformed(&format!("the request cannot be decoded: {}", status.message()));
    }
    status
}
