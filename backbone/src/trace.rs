//! W3C Trace Context (<https://www.w3.org/TR/trace-context/>): what ties a client's call to every event
//! that came of it. Carried in gRPC metadata and in the headers of every message.

use std::fmt;

use data_encoding::HEXLOWER;

/// Header and metadata key of the trace and span ids.
pub const TRACEPARENT: &str = "traceparent";
/// Header and metadata key of the vendors' own entries.
pub const TRACESTATE: &str = "tracestate";

/// Longest tracestate that is passed on; a longer one is dropped, as the specification allows.
const TRACESTATE_BYTES_MAX: usize = 512;

tokio::task_local! {
    static CURRENT: TraceContext;
}

/// One place in one trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    flags: u8,
    state: String,
}

impl TraceContext {
    /// Starts a new trace, sampled.
    pub fn root() -> Self {
        Self { trace_id: rand::random(), span_id: rand::random(), flags: 1, state: String::new() }
    }

    /// A new span within the same trace.
    pub fn child(&self) -> Self {
        Self { span_id: rand::random(), ..self.clone() }
    }

    /// Does `work` as a part of this span, so that calls to others made by it can say so.
    pub async fn scope<F: Future>(self, work: F) -> F::Output {
        CURRENT.scope(self, work).await
    }

    /// The span that the caller's task is at work for, if it said so by [`scope`](Self::scope).
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Self::clone).ok()
    }

    /// Reads a `traceparent` and its `tracestate`; `None` if the former is not valid.
    pub fn parse(traceparent: &str, tracestate: Option<&str>) -> Option<Self> {
        let mut fields = traceparent.trim().split('-');
        let version = lower_hex::<1>(fields.next()?)?;
        let trace_id = lower_hex::<16>(fields.next()?)?;
        let span_id = lower_hex::<8>(fields.next()?)?;
        let [flags] = lower_hex::<1>(fields.next()?)?;
        // Later versions may append fields; version 00 may not, and ff is forbidden.
        let known_form = version != [0xff] && (version != [0] || fields.next().is_none());
        if !known_form || trace_id == [0; 16] || span_id == [0; 8] {
            return None;
        }
        let state = tracestate.filter(|state| state.len() <= TRACESTATE_BYTES_MAX && is_header_text(state));
        Some(Self { trace_id, span_id, flags, state: state.unwrap_or_default().to_owned() })
    }

    /// The trace id: 32 lower-case hex digits.
    pub fn trace_id(&self) -> String {
        HEXLOWER.encode(&self.trace_id)
    }

    /// The `tracestate` to pass on, if there is one.
    pub fn tracestate(&self) -> Option<&str> {
        (!self.state.is_empty()).then_some(&self.state)
    }
}

/// Formats the `traceparent`.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace_id, span_id) = (&self.trace_id, &self.span_id);
        write!(
            f,
            "00-{}-{}-{:02x}",
            HEXLOWER.encode_display(trace_id),
            HEXLOWER.encode_display(span_id),
            self.flags
        )
    }
}

fn lower_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()
}

fn is_header_text(text: &str) -> bool {
    text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_and_writes_the_specifications_example() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context = TraceContext::parse(text, Some("congo=t61rcWkgMzE")).unwrap();
        assert_eq!(context.to_string(), text);
        assert_eq!(context.tracestate(), Some("congo=t61rcWkgMzE"));
        assert_eq!(context.trace_id(), "0af7651916cd43dd8448eb211c80319c");
    }

    #[test]
    fn refuses_what_the_specification_calls_invalid() {
        for text in [
            "",
            "00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-extra",
        ] {
            assert_eq!(TraceContext::parse(text, None), None, "{text}");
        }
    }

    #[test]
    fn a_child_stays_in_the_trace_with_a_span_of_its_own() {
        let root = TraceContext::root();
        let child = root.child();
        assert_eq!(child.trace_id(), root.trace_id());
        assert_ne!(child.to_string(), root.to_string());
    }

    proptest! {
        #[test]
        fn no_text_breaks_a_header(parent in "\\PC{0,80}", state in "(?s).{0,80}") {
            if let Some(context) = TraceContext::parse(&parent, Some(&state)) {
                prop_assert!(is_header_text(&context.to_string()));
                prop_assert!(context.tracestate().is_none_or(is_header_text));
            }
        }
    }
}
