//! Spans: what took how long on an order's way.
//!
//! A span is a [`TraceContext`] and, while traces are exported, a record of what happened in it. Without an exporter
//! it is the context alone, which events carry in any case.
//!
//! The SDK's own tracer is passed by, because it lets nobody choose a span's id, and because it decides at the start
//! of a span whether it is kept: here an error keeps a span that was not sampled.

use std::borrow::Cow;
use std::fmt::{self, Display};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use opentelemetry::KeyValue;
use opentelemetry::trace::{Event, Link, SpanContext, SpanId, SpanKind, Status};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::export::{self, Export};
use super::{TraceContext, attribute};

/// Events, links and attributes of one span; what comes after them is counted only.
const PARTS_MAX: usize = 128;

tokio::task_local! {
    static CURRENT: Span;
}

/// One piece of work within a trace. Cheap to clone; it ends when its last clone is dropped.
#[derive(Clone, Debug)]
pub struct Span {
    context: TraceContext,
    record: Option<Arc<Mutex<Record>>>,
}

impl Span {
    /// Goes on with the trace that came from another process, or begins one.
    pub fn from_remote(
        parent: Option<&TraceContext>,
        kind: SpanKind,
        name: impl FnOnce() -> Cow<'static, str>,
    ) -> Self {
        match parent {
            Some(parent) => Self::begin(parent.child(), Some((parent, true)), kind, name),
            None => Self::begin(TraceContext::root(), None, kind, name),
        }
    }

    /// The same with an id that follows from the trace and from `what` it is about: so whoever knows both can link to
    /// it, also if the process that began it did not live to tell.
    pub fn from_remote_about(
        parent: &TraceContext,
        what: impl FnOnce() -> String,
        kind: SpanKind,
        name: impl FnOnce() -> Cow<'static, str>,
    ) -> Self {
        // Nobody links to what nobody hears of.
        let context = export::running().map_or_else(|| parent.child(), |_| parent.child_about(&what()));
        Self::begin(context, Some((parent, true)), kind, name)
    }

    /// A part of this span.
    pub fn child(&self, kind: SpanKind, name: impl FnOnce() -> Cow<'static, str>) -> Self {
        Self::child_of(&self.context, kind, name)
    }

    /// A part of a span of this process.
    pub fn child_of(parent: &TraceContext, kind: SpanKind, name: impl FnOnce() -> Cow<'static, str>) -> Self {
        Self::begin(parent.child(), Some((parent, false)), kind, name)
    }

    fn begin(
        context: TraceContext,
        parent: Option<(&TraceContext, bool)>,
        kind: SpanKind,
        name: impl FnOnce() -> Cow<'static, str>,
    ) -> Self {
        let Some(export) = export::running() else { return Self { context, record: None } };
        let is_sampled = export.samples(&context, parent.map(|(parent, _)| parent));
        let context = context.sampled(is_sampled);
        let now = SystemTime::now();
        let data = SpanData {
            span_context: SpanContext::NONE,
            parent_span_id: parent.map_or(SpanId::INVALID, |(parent, _)| parent.otel_span_id()),
            parent_span_is_remote: parent.is_some_and(|(_, is_remote)| is_remote),
            span_kind: kind,
            name: name(),
            start_time: now,
            end_time: now,
            attributes: Vec::with_capacity(12),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: export.scope.clone(),
        };
        let record = Record { export, context: context.clone(), keep: false, data: Some(data) };
        Self { context, record: Some(Arc::new(Mutex::new(record))) }
    }

    /// What is passed on, so that others can continue from here.
    pub fn context(&self) -> &TraceContext {
        &self.context
    }

    /// Whether anything that is said of it may reach anybody.
    pub fn is_recorded(&self) -> bool {
        self.record.is_some()
    }

    /// Says what it is about. Asked for only if somebody may hear it.
    pub fn set<const N: usize>(&self, attributes: impl FnOnce() -> [KeyValue; N]) {
        self.with(|data| {
            let attributes = attributes();
            let room = PARTS_MAX.saturating_sub(data.attributes.len());
            data.dropped_attributes_count += u32::try_from(N.saturating_sub(room)).unwrap_or(u32::MAX);
            data.attributes.extend(attributes.into_iter().take(room));
        });
    }

    /// Names it anew.
    pub fn rename(&self, name: &'static str) {
        self.with(|data| data.name = name.into());
    }

    /// Something that happened in it, now.
    pub fn event<const N: usize>(&self, name: &'static str, attributes: impl FnOnce() -> [KeyValue; N]) {
        self.with(|data| {
            if data.events.events.len() >= PARTS_MAX {
                data.events.dropped_count += 1;
                return;
            }
            let event = Event::new(name, SystemTime::now(), attributes().to_vec(), 0);
            data.events.events.push(event);
        });
    }

    /// Another span that has to do with it, of this trace or another.
    pub fn link<const N: usize>(&self, to: &TraceContext, attributes: impl FnOnce() -> [KeyValue; N]) {
        self.with(|data| {
            if data.links.links.len() >= PARTS_MAX {
                data.links.dropped_count += 1;
                return;
            }
            data.links.links.push(Link::new(to.span_context(true), attributes().to_vec(), 0));
        });
    }

    /// It failed: `kind` is one of a few words, `reason` is for people. Keeps it, whatever was sampled.
    pub fn fail(&self, kind: &'static str, reason: &dyn Display) {
        self.with(|data| data.status = Status::error(reason.to_string()));
        self.set(|| [KeyValue::new(attribute::ERROR_TYPE, kind)]);
    }

    /// Keeps it, whatever was sampled.
    pub fn keep(&self) {
        if let Some(mut record) = self.record() {
            record.keep = true;
        }
    }

    /// Makes it the [current](Self::current) one of `work`.
    pub async fn scope<F: Future>(&self, work: F) -> F::Output {
        CURRENT.scope(self.clone(), work).await
    }

    /// The span that the present task works in, or else the first of a new trace.
    pub fn current() -> Self {
        CURRENT.try_with(Self::clone).unwrap_or_else(|_| Self { context: TraceContext::root(), record: None })
    }

    fn with(&self, say: impl FnOnce(&mut SpanData)) {
        if let Some(mut record) = self.record()
            && let Some(data) = &mut record.data
        {
            say(data);
        }
    }

    /// Whoever panicked while saying something left no half of it.
    fn record(&self) -> Option<MutexGuard<'_, Record>> {
        Some(self.record.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What is known of a span until it ends.
struct Record {
    export: &'static Export,
    context: TraceContext,
    keep: bool,
    data: Option<SpanData>,
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").field("context", &self.context).finish_non_exhaustive()
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Some(mut data) = self.data.take() else { return };
        let failed = matches!(data.status, Status::Error { .. });
        if !(self.context.is_sampled() || self.keep || failed) {
            return;
        }
        data.end_time = SystemTime::now();
        // What is not sampled would be passed over on its way out.
        data.span_context = self.context.clone().sampled(true).span_context(false);
        self.export.end(data);
    }
}
