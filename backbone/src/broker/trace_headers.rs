//! Trace context in the headers of NATS messages, by W3C Trace Context.

use async_nats::HeaderMap;
use program::trace::{self, SpanContext, TRACEPARENT, TRACESTATE};

/// Reads the trace context of the message with these headers; `None` if it has none that is valid.
pub fn read(headers: &HeaderMap) -> Option<SpanContext> {
    let all = |name| headers.get_all(name).map(|value| value.as_str().as_bytes());
    trace::extract(all(TRACEPARENT), all(TRACESTATE))
}

/// Writes the current trace context to the headers of a message.
pub(crate) fn write(headers: &mut HeaderMap) {
    trace::inject(|key, value| headers.insert(key, value));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_tracestates_are_one_list_and_several_traceparents_are_none() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let mut headers = HeaderMap::new();
        assert_eq!(read(&headers), None);
        headers.append(TRACEPARENT, text);
        for state in ["a=1", " ", "b=2,c=3", ""] {
            headers.append(TRACESTATE, state);
        }
        assert_eq!(read(&headers).unwrap().trace_state().header(), "a=1,b=2,c=3");
        headers.append(TRACEPARENT, text);
        assert_eq!(read(&headers), None);
    }
}
