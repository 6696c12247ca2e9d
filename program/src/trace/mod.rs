//! Traces: spans of the crate tracing, which tracing-opentelemetry hands to the exporter, and W3C Trace Context
//! (<https://www.w3.org/TR/trace-context/>), which ties a client's call to every event that it caused.
//!
//! Each task works in an OpenTelemetry [`Context`]. While traces are exported, that is the context of its innermost span. While
//! none are, there are no spans, and the context is the caller's: it passes through unchanged.

pub mod attribute;
pub mod export;

use std::borrow::Cow;
use std::fmt::Display;

use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanId, Status, TraceContextExt, TraceFlags, TraceId, TraceState};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;

pub use opentelemetry::context::{Context, FutureExt};
pub use opentelemetry::trace::{SpanContext, SpanRef};
pub use opentelemetry::{ContextGuard, KeyValue};
pub use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Header and metadata key of the trace and span ids.
pub const TRACEPARENT: &str = "traceparent";
/// Header and metadata key of the vendors' own entries.
pub const TRACESTATE: &str = "tracestate";

/// Longest tracestate that is passed on; a longer one is dropped, as the specification allows.
const TRACESTATE_BYTES_MAX: usize = 512;

/// Reads the trace context of a call or message from all its `traceparent` and `tracestate` values. Several of the former
/// are none; several of the latter are one list (<https://www.w3.org/TR/trace-context/#combined-header-value>).
pub fn extract<'a>(
    traceparents: impl IntoIterator<Item = &'a [u8]>,
    tracestates: impl IntoIterator<Item = &'a [u8]>,
) -> Option<SpanContext> {
    let mut traceparents = traceparents.into_iter();
    let (Some(traceparent), None) = (traceparents.next(), traceparents.next()) else { return None };
    if !has_its_form(traceparent) {
        return None;
    }
    let headers = Headers { traceparent: str::from_utf8(traceparent).ok()?, tracestate: joined(tracestates) };
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &headers);
    of(&context)
}

/// Whether a `traceparent` has the form of the specification: four fields of 2, 32, 16 and 2 lower-case hex digits. A later version
/// may have more fields. The SDK's propagator checks neither lengths nor signs.
fn has_its_form(traceparent: &[u8]) -> bool {
    const BYTES: usize = 55;
    const DASHES: [usize; 3] = [2, 35, 52];
    let Some((fields, further)) = traceparent.split_at_checked(BYTES) else { return false };
    let mut bytes = fields.iter().enumerate();
    let is_formed = bytes.all(|(at, byte)| match byte {
        b'-' => DASHES.contains(&at),
        b'0'..=b'9' | b'a'..=b'f' => !DASHES.contains(&at),
        _ => false,
    });
    is_formed && (further.is_empty() || (further[0] == b'-' && !fields.starts_with(b"00")))
}

/// One list of all the values. One that cannot be read makes the whole list unreadable.
fn joined<'a>(tracestates: impl IntoIterator<Item = &'a [u8]>) -> Cow<'a, str> {
    let states: Result<Vec<_>, _> = tracestates.into_iter().map(str::from_utf8).collect();
    let mut states = states.unwrap_or_default();
    states.retain(|state| !state.trim().is_empty());
    let list = match states[..] {
        [] => return Cow::default(),
        [only] => Cow::from(only),
        [..] => Cow::from(states.join(",")),
    };
    let is_printable = list.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if is_printable && list.len() <= TRACESTATE_BYTES_MAX { list } else { Cow::default() }
}

struct Headers<'a> {
    traceparent: &'a str,
    tracestate: Cow<'a, str>,
}

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            TRACEPARENT => Some(self.traceparent),
            TRACESTATE => Some(&self.tracestate),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT, TRACESTATE]
    }
}

/// Gives `set` the headers that pass on the current context. Outside of every trace that is a new one.
pub fn inject(set: impl FnMut(&str, String)) {
    struct Each<F>(F);
    impl<F: FnMut(&str, String)> Injector for Each<F> {
        fn set(&mut self, key: &str, value: String) {
            if !value.is_empty() {
                (self.0)(key, value);
            }
        }
    }
    let context = if current().is_some() { Context::current() } else { remote(root()) };
    TraceContextPropagator::new().inject_context(&context, &mut Each(set));
}

/// Where in which trace the current task works.
pub fn current() -> Option<SpanContext> {
    Context::map_current(of)
}

/// Where in which trace work in this context is.
pub fn of(context: &Context) -> Option<SpanContext> {
    Some(context.span().span_context().clone()).filter(SpanContext::is_valid)
}

/// The current trace's id: 32 lower-case hex digits, or nothing outside of every trace.
pub fn current_trace_id() -> String {
    current().map(|context| context.trace_id().to_string()).unwrap_or_default()
}

/// The first context of a new trace. It is sampled, so that every program that exports may keep it.
pub fn root() -> SpanContext {
    let (trace_id, span_id) = (TraceId::from_bytes(rand::random()), SpanId::from_bytes(rand::random()));
    SpanContext::new(trace_id, span_id, TraceFlags::SAMPLED, true, TraceState::NONE)
}

/// The context of work that goes on with another process' trace.
pub fn remote(parent: SpanContext) -> Context {
    Context::new().with_remote_span_context(parent)
}

/// Makes `span`, which has not begun, continue the trace of another process, or begin one. Returns the context for the
/// work, whether or not the span is enabled.
pub fn continue_in(span: &Span, parent: Option<SpanContext>) -> Context {
    if span.is_disabled() {
        return remote(parent.unwrap_or_else(root));
    }
    let context = parent.map_or_else(Context::new, remote);
    // Cannot fail: enabled spans are made by the OpenTelemetry layer alone.
    if let Err(error) = span.set_parent(context) {
        tracing::debug!(%error, "span not linked to its parent");
    }
    span.context()
}

/// The trace context of work within `span`, or the current one if it is disabled. Work is put into it by
/// [`FutureExt::with_context`]. No span is ever entered: that costs a look-up in every layer each time a task is polled.
pub fn within(span: &Span) -> Context {
    if span.is_disabled() { Context::current() } else { span.context() }
}

/// Does something to the current span, if there is one.
pub fn with_current(change: impl FnOnce(&SpanRef<'_>)) {
    Context::map_current(|context| {
        let span = context.span();
        if span.is_recording() {
            change(&span);
        }
    });
}

/// The span failed: `kind` is one of a few words, `reason` is for people. It is exported even if its trace is not sampled.
pub fn fail(span: &Span, kind: &'static str, reason: &dyn Display) {
    if span.is_disabled() {
        return;
    }
    span.set_attribute(attribute::ERROR_TYPE, kind);
    span.set_status(Status::error(reason.to_string()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn read(parent: &str, states: &[&str]) -> Option<SpanContext> {
        extract([parent.as_bytes()], states.iter().map(|state| state.as_bytes()))
    }

    fn written(context: SpanContext) -> Vec<(String, String)> {
        let _current = remote(context).attach();
        let mut headers = Vec::new();
        inject(|key, value| headers.push((key.to_owned(), value)));
        headers
    }

    #[test]
    fn reads_and_writes_the_specifications_example() {
        let context = read(PARENT, &["congo=t61rcWkgMzE"]).unwrap();
        let headers = [(TRACEPARENT, PARENT), (TRACESTATE, "congo=t61rcWkgMzE")];
        assert_eq!(written(context), headers.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }

    #[test]
    fn invalid_traceparents_are_rejected() {
        for text in [
            "",
            "00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-extra",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
            "00-+af7651916cd43dd8448eb211c80319c-+7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-+1",
            "+0-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-1-1-1",
        ] {
            assert_eq!(read(text, &[]), None, "{text}");
        }
    }

    #[test]
    fn several_tracestates_are_one_list_and_several_traceparents_are_none() {
        let state = |states: &[&str]| read(PARENT, states).unwrap().trace_state().header();
        assert_eq!(state(&["a=1", " ", "b=2,c=3", ""]), "a=1,b=2,c=3");
        assert_eq!(state(&[&format!("a={}", "x".repeat(TRACESTATE_BYTES_MAX))]), "");
        let parent = PARENT.as_bytes();
        assert_eq!(extract([parent, parent], []), None);

        let unreadable: [&[u8]; 2] = [b"a=1", b"\xff"];
        assert_eq!(extract([parent], unreadable).unwrap().trace_state().header(), "");
        assert_eq!(extract([&b"\xff"[..]], []), None);
    }

    #[test]
    fn without_a_trace_a_new_one_is_started() {
        let mut headers = Vec::new();
        inject(|key, value| headers.push((key.to_owned(), value)));
        let [(key, parent)] = &headers[..] else { panic!("{headers:?}") };
        assert_eq!(key, TRACEPARENT);
        assert!(read(parent, &[]).unwrap().is_sampled());
    }

    proptest! {
        #[test]
        fn no_text_breaks_a_header(parent in "\\PC{0,80}", state in "(?s).{0,80}") {
            for parent in [&parent, PARENT] {
                for (_, text) in read(parent, &[&state]).map(written).unwrap_or_default() {
                    prop_assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{text:?}");
                }
            }
        }
    }
}
