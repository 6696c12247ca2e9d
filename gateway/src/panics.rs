//! A panic is an internal error: one call is answered with INTERNAL, and the others continue.

use std::any::Any;

use http::Response;
use tonic::body::Body;
use tower_http::catch_panic::{CatchPanicLayer, ResponseForPanic};
use tracing::error;

use crate::errors::{self, Rejection};

/// Answers for a handler that panicked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Internal;

impl ResponseForPanic for Internal {
    type ResponseBody = Body;

    fn response_for_panic(&mut self, panic: Box<dyn Any + Send>) -> Response<Body> {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        error!(panic = text, "call handler panicked");
        let mut answer = errors::internal().into_http();
        // `Spans` is inside this layer: it has counted the call, and cannot remove the mark.
        Rejection::take(answer.headers_mut());
        answer
    }
}

/// The layer that catches panics.
pub(crate) fn layer() -> CatchPanicLayer<Internal> {
    CatchPanicLayer::custom(Internal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use tonic::{Code, Status};
    use tower::{Layer, ServiceExt, service_fn};

    #[tokio::test]
    async fn a_panic_is_answered_without_its_text() {
        let panicking =
            service_fn(async |_: Request<Body>| -> Result<Response<Body>, std::convert::Infallible> {
                panic!("secret")
            });
        let response = layer().layer(panicking).oneshot(Request::new(Body::empty())).await.unwrap();
        let status = Status::from_header_map(response.headers()).unwrap();
        assert_eq!(status.code(), Code::Internal);
        assert!(!status.message().contains("secret"));
    }
}
