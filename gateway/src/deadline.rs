//! How long a call may take: as long as its caller waits (`grpc-timeout`), and no longer than configured.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::future::Either;
use http::{HeaderMap, Request, Response};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep};
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tower::{Layer, Service};

use crate::errors;

/// Time reserved for the answer to travel. [`CallerDeadline`] would otherwise cut the call with a less informative
/// answer.
const MARGIN: Duration = Duration::from_millis(50);
/// Below this deadline a timeout counts as the caller's fault: no answer is promised so soon.
const TIMEOUT_FAIR_MIN: Duration = Duration::from_millis(100);
/// Most digits of a `grpc-timeout`.
const DIGITS_MAX: usize = 8;

/// When a call that begins now has to be answered, at the latest after `timeout_max`.
pub(crate) fn of(metadata: &MetadataMap, timeout_max: Duration) -> Instant {
    Instant::now() + caller_timeout(metadata).map_or(timeout_max, |timeout| timeout.min(timeout_max))
}

/// The caller's deadline of a stream, if it set one.
pub(crate) fn of_stream(metadata: &MetadataMap) -> Option<Instant> {
    Some(Instant::now() + caller_timeout(metadata)?)
}

fn caller_timeout(metadata: &MetadataMap) -> Option<Duration> {
    let timeout = timeout_of(metadata.as_ref())?;
    Some(timeout.saturating_sub(MARGIN.min(timeout / 10)))
}

/// Of several, the shortest: its sender no longer waits then.
fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    let timeouts = headers.get_all("grpc-timeout").iter();
    timeouts.filter_map(|timeout| parse(timeout.to_str().ok()?)).min()
}

/// Whether a call's deadline is too short for any answer.
pub(crate) fn is_hasty(headers: &HeaderMap) -> bool {
    timeout_of(headers).is_some_and(|timeout| timeout < TIMEOUT_FAIR_MIN)
}

/// The layer that ends a call when its caller no longer waits for it, wherever it is until its answer begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallerDeadline;

impl<S> Layer<S> for CallerDeadline {
    type Service = Timed<S>;

    fn layer(&self, inner: S) -> Timed<S> {
        Timed(inner)
    }
}

/// A service behind [`CallerDeadline`].
#[derive(Clone, Debug)]
pub(crate) struct Timed<S>(S);

impl<S> Service<Request<Body>> for Timed<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, DeadlineFuture<S::Future>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let timeout = timeout_of(request.headers());
        let answer = self.0.call(request);
        match timeout {
            Some(timeout) => Either::Right(DeadlineFuture { answer, timer: sleep(timeout) }),
            None => Either::Left(answer),
        }
    }
}

pin_project! {
    /// A call whose caller waits for so long.
    pub(crate) struct DeadlineFuture<F> {
        #[pin]
        answer: F,
        #[pin]
        timer: Sleep,
    }
}

impl<F> Future for DeadlineFuture<F>
where
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if let Poll::Ready(answer) = this.answer.poll(cx) {
            return Poll::Ready(answer);
        }
        ready!(this.timer.poll(cx));
        Poll::Ready(Ok(errors::caller_timed_out().into_http()))
    }
}

/// Reads a `grpc-timeout` (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>): up to eight
/// digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let unit = text.chars().next_back()?;
    let digits = text.strip_suffix(unit)?;
    if digits.is_empty() || digits.len() > DIGITS_MAX || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value = digits.parse().ok()?;
    match unit {
        'H' => Some(Duration::from_secs(value * 3600)),
        'M' => Some(Duration::from_secs(value * 60)),
        'S' => Some(Duration::from_secs(value)),
        'm' => Some(Duration::from_millis(value)),
        'u' => Some(Duration::from_micros(value)),
        'n' => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_unit_and_nothing_else() {
        assert_eq!(parse("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(parse("3M"), Some(Duration::from_secs(180)));
        assert_eq!(parse("99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse("7u"), Some(Duration::from_micros(7)));
        assert_eq!(parse("0n"), Some(Duration::ZERO));
        for malformed in ["", "S", "5", "-5S", "+5S", "1.5S", "100000000S", "5s", "5 S", "5\u{e4}"] {
            assert_eq!(parse(malformed), None, "{malformed}");
        }
    }

    #[test]
    fn a_caller_can_shorten_the_wait_and_not_lengthen_it() {
        let mut metadata = MetadataMap::new();
        let at_most = |metadata: &MetadataMap| of(metadata, Duration::from_secs(5)) - Instant::now();
        assert!(at_most(&metadata) > Duration::from_secs(4));
        metadata.insert("grpc-timeout", "100m".parse().unwrap());
        assert!(at_most(&metadata) < Duration::from_millis(100));
        metadata.insert("grpc-timeout", "9H".parse().unwrap());
        assert!(at_most(&metadata) <= Duration::from_secs(5));
        metadata.append("grpc-timeout", "100m".parse().unwrap());
        metadata.append("grpc-timeout", "1H".parse().unwrap());
        assert!(at_most(&metadata) < Duration::from_millis(100), "the shortest of several");
    }
}
