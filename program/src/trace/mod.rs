//! W3C Trace Context (<https://www.w3.org/TR/trace-context/>): what ties a client's call to every event
//! that came of it. Carried in gRPC metadata and in the headers of every message; while traces are exported, every
//! context but those from outside is that of a [`Span`].

pub mod attribute;
pub mod export;
mod span;

pub use opentelemetry::KeyValue;
pub use opentelemetry::trace::SpanKind;
pub use span::Span;

use std::fmt;

use data_encoding::HEXLOWER;
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use sha2::{Digest, Sha256};

/// Header and metadata key of the trace and span ids.
pub const TRACEPARENT: &str = "traceparent";
/// Header and metadata key of the vendors' own entries.
pub const TRACESTATE: &str = "tracestate";

/// Longest tracestate that is passed on; a longer one is dropped, as the specification allows.
const TRACESTATE_BYTES_MAX: usize = 512;

/// The flag that says that a trace is sampled.
const SAMPLED: u8 = 1;

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
        Self { trace_id: rand::random(), span_id: rand::random(), flags: SAMPLED, state: String::new() }
    }

    /// A new span within the same trace.
    pub fn child(&self) -> Self {
        Self { span_id: rand::random(), ..self.clone() }
    }

    /// A new span within the same trace, whose id follows from the trace and from `what` it is about.
    pub fn child_about(&self, what: &str) -> Self {
        let digest = Sha256::new().chain_update(self.trace_id).chain_update(what).finalize();
        let mut span_id = [0; 8];
        span_id.copy_from_slice(&digest[..8]);
        Self { span_id, ..self.clone() }
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

    /// Reads every `traceparent` and `tracestate` of a call or message. Several of the former are none; several of the
    /// latter are one list (<https://www.w3.org/TR/trace-context/#combined-header-value>).
    pub fn of_values<'a>(
        traceparents: impl IntoIterator<Item = &'a [u8]>,
        tracestates: impl IntoIterator<Item = &'a [u8]>,
    ) -> Option<Self> {
        let mut traceparents = traceparents.into_iter();
        let (Some(traceparent), None) = (traceparents.next(), traceparents.next()) else { return None };
        let states: Result<Vec<_>, _> = tracestates.into_iter().map(str::from_utf8).collect();
        // One that cannot be read makes the whole list unreadable.
        let mut states = states.unwrap_or_default();
        states.retain(|state| !state.trim().is_empty());
        Self::parse(str::from_utf8(traceparent).ok()?, Some(&states.join(",")))
    }

    /// The trace id: 32 lower-case hex digits.
    pub fn trace_id(&self) -> String {
        HEXLOWER.encode(&self.trace_id)
    }

    /// The span id: 16 lower-case hex digits.
    pub fn span_id(&self) -> String {
        HEXLOWER.encode(&self.span_id)
    }

    /// Whether somebody has decided to keep the trace.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    fn sampled(mut self, is_sampled: bool) -> Self {
        self.flags = self.flags & !SAMPLED | u8::from(is_sampled);
        self
    }

    fn otel_span_id(&self) -> SpanId {
        SpanId::from_bytes(self.span_id)
    }

    /// The same as the exporter takes it.
    fn span_context(&self, is_remote: bool) -> SpanContext {
        let (trace_id, flags) = (TraceId::from_bytes(self.trace_id), TraceFlags::new(self.flags));
        // What is passed on as it came may not be what the SDK takes.
        let state = self.state.parse().unwrap_or(TraceState::NONE);
        SpanContext::new(trace_id, self.otel_span_id(), flags, is_remote, state)
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
    fn several_tracestates_are_one_list_and_several_traceparents_are_none() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let text = text.as_bytes();
        let context = TraceContext::of_values([text], [&b"a=1"[..], b" ", b"b=2,c=3", b""]).unwrap();
        assert_eq!(context.tracestate(), Some("a=1,b=2,c=3"));
        assert_eq!(TraceContext::of_values([text, text], []), None);

        let unreadable: [&[u8]; 2] = [b"a=1", b"\xff"];
        let context = TraceContext::of_values([text], unreadable).unwrap();
        assert_eq!(context.tracestate(), None);
        assert_eq!(TraceContext::of_values([&b"\xff"[..]], []), None);
    }

    #[test]
    fn a_child_stays_in_the_trace_with_a_span_of_its_own() {
        let root = TraceContext::root();
        let child = root.child();
        assert_eq!(child.trace_id(), root.trace_id());
        assert_ne!(child.to_string(), root.to_string());
    }

    #[test]
    fn a_span_about_the_same_has_the_same_id_in_every_process() {
        let parent = TraceContext::root();
        let first = parent.child_about("payment 7");
        assert_eq!(first, parent.child().child_about("payment 7"), "whoever its parent is");
        assert_ne!(first, parent.child_about("payment 8"));
        assert_ne!(first.span_id(), TraceContext::root().child_about("payment 7").span_id());
        assert_eq!(first.trace_id(), parent.trace_id());
    }

    #[test]
    fn sampling_changes_no_other_flag() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-02";
        let context = TraceContext::parse(text, None).unwrap();
        assert!(!context.is_sampled());
        assert_eq!(context.clone().sampled(true).to_string(), text.replace("-02", "-03"));
        assert_eq!(context.sampled(true).sampled(false).to_string(), text);
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
