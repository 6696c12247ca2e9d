//! How long a call may take: as long as its caller waits (`grpc-timeout`), and no longer than configured.

use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::MetadataMap;

/// What is left of the caller's time for the answer to travel. The server would cut the call at the end of
/// that time with an answer that says less than ours.
const MARGIN: Duration = Duration::from_millis(50);
/// Most digits of a `grpc-timeout`.
const DIGITS_MAX: usize = 8;

/// When a call that begins now has to be answered, at the latest after `timeout_max`.
pub(crate) fn of(metadata: &MetadataMap, timeout_max: Duration) -> Instant {
    Instant::now() + caller_timeout(metadata).map_or(timeout_max, |timeout| timeout.min(timeout_max))
}

/// When the caller of a stream stops listening, if it said so.
pub(crate) fn of_stream(metadata: &MetadataMap) -> Option<Instant> {
    Some(Instant::now() + caller_timeout(metadata)?)
}

fn caller_timeout(metadata: &MetadataMap) -> Option<Duration> {
    let timeout = parse(metadata.get("grpc-timeout")?.to_str().ok()?)?;
    Some(timeout.saturating_sub(MARGIN.min(timeout / 10)))
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
    }
}
