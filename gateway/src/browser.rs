//! Calls from web pages: which origins may make them, and which headers they may read; and requests that are not gRPC calls.

use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use tonic::Status;
use tonic::body::Body;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::errors;
use crate::gate::Admit;

/// How long a browser may cache the answer.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(60 * 60);

/// Request headers of a gRPC-Web client.
const REQUEST_HEADERS: [HeaderName; 8] = [
    HeaderName::from_static("authorization"),
    HeaderName::from_static("content-type"),
    HeaderName::from_static("grpc-timeout"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-grpc-web"),
    HeaderName::from_static("x-user-agent"),
];
/// Response headers that it reads of an answer without a body.
const RESPONSE_HEADERS: [HeaderName; 3] = [
    HeaderName::from_static("grpc-status"),
    HeaderName::from_static("grpc-message"),
    HeaderName::from_static("grpc-status-details-bin"),
];

/// Lets pages of `origins` call; `None` if there are none, and then no page may.
pub(crate) fn cors(origins: &[HeaderValue]) -> Option<CorsLayer> {
    let cors = CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins.iter().cloned()))
        .allow_methods([Method::POST])
        .allow_headers(AllowHeaders::list(REQUEST_HEADERS))
        .expose_headers(RESPONSE_HEADERS)
        .max_age(PREFLIGHT_MAX_AGE);
    (!origins.is_empty()).then_some(cors)
}

/// Admits requests with a content type of gRPC or gRPC-Web. Browsers let every page send forms and plain text to any
/// server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OnlyGrpc;

impl Admit for OnlyGrpc {
    fn admit(&self, request: &mut Request<Body>) -> Result<(), Status> {
        let mut content_types = request.headers().get_all(CONTENT_TYPE).iter();
        // Of two, a proxy may have checked the other one.
        let content_type = content_types.next().filter(|_| content_types.next().is_none());
        match content_type.map_or(&[][..], HeaderValue::as_bytes).strip_prefix(b"application/grpc") {
            Some([] | [b'+' | b'-' | b';', ..]) => Ok(()),
            Some(_) | None => Err(Status::unknown("not gRPC")),
        }
    }

    /// A client that does not speak gRPC reads no gRPC status.
    fn answer(&self, _: Status) -> Response<Body> {
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        answer
    }
}

/// Admits POST, the method of every gRPC call. Proxies may retry other methods and cache their answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OnlyPost;

impl Admit for OnlyPost {
    fn admit(&self, request: &mut Request<Body>) -> Result<(), Status> {
        if request.method() == Method::POST {
            return Ok(());
        }
        Err(errors::malformed("a gRPC call must be a POST"))
    }
}

/// Reads an origin: scheme, host and port, and nothing else.
pub(crate) fn origin(text: &str) -> Result<HeaderValue, String> {
    let is_origin = text.split_once("://").is_some_and(|(scheme, host)| {
        matches!(scheme, "http" | "https") && !host.is_empty() && !host.contains(['/', '*', '?', '#', ' '])
    });
    let value = is_origin.then(|| HeaderValue::from_str(text).ok()).flatten();
    value.ok_or_else(|| "must be an origin such as https://shop.example.org, without a path".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        for good in ["https://shop.example.org", "http://localhost:3000"] {
            assert_eq!(origin(good).unwrap(), good);
        }
        for bad in ["", "*", "shop.example.org", "https://", "https://a/", "https://*.a", "ftp://a"] {
            assert!(origin(bad).is_err(), "{bad}");
        }
    }
}
