//! The size of a call's metadata. The protocol's library reads more than that and rejects even larger metadata at the
//! level of HTTP, which a gRPC client reports as UNKNOWN or as a broken connection.

use http::Request;
use tonic::Status;
use tonic::body::Body;

use crate::errors;
use crate::gate::Admit;

/// Names and values of a request's headers, each with the overhead that HTTP/2 counts.
const BYTES_MAX: usize = 16 * 1024;
/// Overhead that each header counts besides its name and value (RFC 9113, section 6.5.2).
const OVERHEAD_BYTES: usize = 32;

/// Rejects calls with more metadata than `BYTES_MAX`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Metadata;

impl Admit for Metadata {
    fn admit(&self, request: &mut Request<Body>) -> Result<(), Status> {
        let path_bytes = request.uri().path().len();
        let headers = request.headers().iter();
        let bytes: usize =
            headers.map(|(name, value)| name.as_str().len() + value.len() + OVERHEAD_BYTES).sum();
        if bytes + path_bytes > BYTES_MAX { Err(errors::metadata_too_large(BYTES_MAX)) } else { Ok(()) }
    }
}
