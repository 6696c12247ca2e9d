//! Log lines with the ids of the trace and the span that they were written in.

use std::fmt;

use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

use crate::trace;

/// A format of lines that adds `trace_id` and `span_id` to those that are written within a trace.
#[derive(Debug)]
pub(crate) struct WithTraceIds<F> {
    format: F,
    is_json: bool,
}

impl<F> WithTraceIds<F> {
    /// Adds them at the end of a line of text.
    pub(crate) fn text(format: F) -> Self {
        Self { format, is_json: false }
    }

    /// Adds them to the object `fields`.
    pub(crate) fn json(format: F) -> Self {
        Self { format, is_json: true }
    }
}

impl<S, N, F> FormatEvent<S, N> for WithTraceIds<F>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some(current) = trace::current() else {
            return self.format.format_event(context, writer, event);
        };
        let (trace_id, span_id) = (current.trace_id(), current.span_id());
        let mut line = String::new();
        self.format.format_event(context, Writer::new(&mut line), event)?;
        // Nothing before the fields contains text from outside.
        if self.is_json
            && let Some((before, fields)) = line.split_once(r#""fields":{"#)
        {
            let comma = if fields.starts_with('}') { "" } else { "," };
            let ids = format_args!(r#""trace_id":"{trace_id}","span_id":"{span_id}"{comma}"#);
            return write!(writer, r#"{before}"fields":{{{ids}{fields}"#);
        }
        writeln!(writer, "{} trace_id={trace_id} span_id={span_id}", line.trim_end())
    }
}
