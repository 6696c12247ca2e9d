//! Sending spans to a collector, by OTLP. Nothing waits for it: a bounded queue holds the spans until a thread of the
//! SDK sends them. Spans that do not fit are dropped and counted.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry::trace::{Link, SpanContext, SpanKind, Status, TraceContextExt, TraceId, TracerProvider};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SamplingDecision, SamplingResult, SdkTracerProvider,
    ShouldSample, Span, SpanData, SpanProcessor,
};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::level_filters::LevelFilter;
use tracing::{Metadata, info, warn};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::{Layer, Registry};

use super::attribute;
use crate::otlp::{self, FLUSH_TIMEOUT, Protocol, Signal, TIME_MS, Transport, number};

/// Share of new traces that is sampled unless OTEL_TRACES_SAMPLER says otherwise.
const RATIO: f64 = 0.1;
/// Spans that wait to be sent unless OTEL_BSP_MAX_QUEUE_SIZE says otherwise: the default of the specification.
const QUEUE_SPANS: u64 = 2048;
const QUEUE_SPANS_MAX: u64 = 1_000_000;
/// Most spans that are sent together unless OTEL_BSP_MAX_EXPORT_BATCH_SIZE says otherwise.
const BATCH_SPANS: u64 = 512;
/// How long a batch waits to become full unless OTEL_BSP_SCHEDULE_DELAY says otherwise.
const DELAY_MS: u64 = 5000;
/// Deadline of one batch with its retries, unless OTEL_BSP_EXPORT_TIMEOUT is set.
const EXPORT_TIMEOUT_MS: u64 = 30_000;
/// Least time between two lines about dropped spans.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

const TRACES: Signal = Signal { exporter: "OTEL_TRACES_EXPORTER", infix: "TRACES" };

static COUNTS: OnceLock<Arc<Counts>> = OnceLock::new();

/// Spans that were not exported, since the start.
pub(crate) fn dropped_spans() -> u64 {
    COUNTS.get().map_or(0, |counts| counts.dropped.load(Ordering::Relaxed))
}

/// The export of this program's traces, as long as the program runs.
#[derive(Debug)]
#[must_use = "the last spans are sent by flush"]
pub(crate) struct Traces(Option<Export>);

#[derive(Debug)]
struct Export {
    provider: SdkTracerProvider,
    counts: Arc<Counts>,
    settings: Settings,
}

impl Traces {
    /// Starts to export if the variables say so; called once, within the runtime, before logging starts. Fails with the
    /// name of a variable that cannot be used.
    pub(crate) fn start(program: &str) -> Result<Self, String> {
        let settings = Settings::read(otlp::variable)?;
        Ok(Self(settings.map(|settings| Export::start(settings, program)).transpose()?))
    }

    /// The layer that makes spans, if there is an export.
    pub(crate) fn layer(&self) -> Option<Box<dyn Layer<Registry> + Send + Sync>> {
        let tracer = self.0.as_ref()?.provider.tracer_with_scope(
            InstrumentationScope::builder("waybill").with_version(env!("CARGO_PKG_VERSION")).build(),
        );
        let layer = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_target(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false);
        // Log lines are not span events, and spans of libraries have no otel.kind.
        let is_ours =
            |metadata: &Metadata<'_>| metadata.is_span() && metadata.fields().field("otel.kind").is_some();
        Some(layer.with_filter(filter_fn(is_ours).with_max_level_hint(LevelFilter::INFO)).boxed())
    }

    /// Says in the log that there is an export.
    pub(crate) fn announce(&self) {
        if let Some(Export { settings: Settings { transport, ratio, parent_based, warnings, .. }, .. }) =
            &self.0
        {
            for warning in warnings {
                warn!("{warning}");
            }
            info!(protocol = ?transport.protocol, sample_ratio = ratio, parent_based, "traces are exported");
        }
    }

    /// Sends the last spans, if that is possible within [`FLUSH_TIMEOUT`].
    pub(crate) async fn flush(self) {
        let Some(Export { provider, counts, .. }) = self.0 else { return };
        let flushed = spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_TIMEOUT)).await;
        let dropped_spans = counts.dropped.load(Ordering::Relaxed);
        let unsent_spans = counts.queued.load(Ordering::Relaxed) + counts.sending.load(Ordering::Relaxed);
        match flushed {
            Ok(Ok(())) if dropped_spans == 0 => {}
            Ok(Ok(())) => warn!(dropped_spans, "spans dropped since the start"),
            Ok(Err(error)) => warn!(%error, dropped_spans, unsent_spans, "last spans not sent"),
            Err(error) => warn!(%error, dropped_spans, unsent_spans, "last spans not sent"),
        }
    }
}

impl Export {
    fn start(settings: Settings, program: &str) -> Result<Self, String> {
        let counts = COUNTS.get_or_init(Arc::default).clone();
        let sender = Sender {
            exporter: Arc::new(settings.exporter(program)?),
            timeout: settings.export_timeout,
            runtime: Handle::current(),
            counts: counts.clone(),
        };
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(settings.queue_spans)
            .with_max_export_batch_size(settings.batch_spans)
            .with_scheduled_delay(settings.delay)
            .build();
        let queue = Queue {
            processor: BatchSpanProcessor::new(sender, batches),
            counts: counts.clone(),
            spans_max: settings.queue_spans,
        };
        let ratio = Sampler::TraceIdRatioBased(settings.ratio);
        let provider = SdkTracerProvider::builder()
            .with_resource(otlp::resource(program))
            .with_sampler(Sampling { parent_based: settings.parent_based, ratio })
            .with_span_processor(queue)
            .build();
        Ok(Self { provider, counts, settings })
    }
}

#[derive(Debug, PartialEq)]
struct Settings {
    transport: Transport,
    ratio: f64,
    parent_based: bool,
    queue_spans: usize,
    batch_spans: usize,
    delay: Duration,
    export_timeout: Duration,
    /// Variables that are not used as they are set.
    warnings: Vec<String>,
}

/// Bounded by [`QUEUE_SPANS_MAX`].
fn spans(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl Settings {
    /// `None` if no traces are wanted.
    fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, String> {
        let mut warnings = Vec::new();
        let Some(transport) = Transport::read(TRACES, &variable, &mut warnings)? else { return Ok(None) };
        let (parent_based, ratio) = sampler(&variable, &mut warnings);
        let mut whole = |name: &str, default, range| number(&variable, name, default, range, &mut warnings);
        let queue_spans = whole("OTEL_BSP_MAX_QUEUE_SIZE", QUEUE_SPANS, 1..=QUEUE_SPANS_MAX);
        let batch_spans =
            whole("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", BATCH_SPANS.min(queue_spans), 1..=queue_spans);
        let delay = Duration::from_millis(whole("OTEL_BSP_SCHEDULE_DELAY", DELAY_MS, TIME_MS));
        let export_timeout =
            Duration::from_millis(whole("OTEL_BSP_EXPORT_TIMEOUT", EXPORT_TIMEOUT_MS, TIME_MS));
        let (queue_spans, batch_spans) = (spans(queue_spans), spans(batch_spans));
        Ok(Some(Self {
            transport,
            ratio,
            parent_based,
            queue_spans,
            batch_spans,
            delay,
            export_timeout,
            warnings,
        }))
    }

    fn exporter(&self, program: &str) -> Result<SpanExporter, String> {
        let exporter = match self.transport.protocol {
            Protocol::Grpc => self.transport.over_grpc(SpanExporter::builder().with_tonic()).build(),
            Protocol::Http => self.transport.over_http(SpanExporter::builder().with_http())?.build(),
        };
        let mut exporter = exporter.map_err(|error| format!("OTEL_EXPORTER_OTLP_*: {error}"))?;
        opentelemetry_sdk::trace::SpanExporter::set_resource(&mut exporter, &otlp::resource(program));
        Ok(exporter)
    }
}

/// Whether a parent's decision counts, and the share of the other traces. An invalid value counts as unset.
fn sampler(variable: impl Fn(&str) -> Option<String>, warnings: &mut Vec<String>) -> (bool, f64) {
    let mut ratio = |default: f64| {
        let Some(text) = variable("OTEL_TRACES_SAMPLER_ARG") else { return default };
        text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio)).unwrap_or_else(|| {
            warnings.push(format!("OTEL_TRACES_SAMPLER_ARG is not a number of 0-1, {default} is used"));
            default
        })
    };
    match variable("OTEL_TRACES_SAMPLER").as_deref() {
        None => (true, ratio(RATIO)),
        Some("parentbased_traceidratio") => (true, ratio(1.0)),
        Some("parentbased_always_on") => (true, 1.0),
        Some("parentbased_always_off") => (true, 0.0),
        Some("traceidratio") => (false, ratio(1.0)),
        Some("always_on") => (false, 1.0),
        Some("always_off") => (false, 0.0),
        Some(_) => {
            let ratio = ratio(RATIO);
            warnings.push(format!(
                "OTEL_TRACES_SAMPLER is not one of always_on, always_off, traceidratio, parentbased_always_on, \
                 parentbased_always_off, parentbased_traceidratio; parentbased_traceidratio with {ratio} is used"
            ));
            (true, ratio)
        }
    }
}

/// Samples as its settings say, and has every other span recorded too, because it may yet fail.
#[derive(Clone, Debug)]
struct Sampling {
    parent_based: bool,
    ratio: Sampler,
}

impl ShouldSample for Sampling {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let mut sampled = self.ratio.should_sample(parent, trace_id, name, kind, attributes, links);
        let parent = parent.filter(|_| self.parent_based).map(|parent| parent.span().span_context().clone());
        if let Some(parent) = parent.filter(SpanContext::is_valid) {
            let decision = [SamplingDecision::RecordOnly, SamplingDecision::RecordAndSample];
            sampled.decision = decision[usize::from(parent.is_sampled())].clone();
        }
        if sampled.decision == SamplingDecision::Drop {
            sampled.decision = SamplingDecision::RecordOnly;
        }
        sampled
    }
}

/// Queues the spans that are to be exported: those of sampled traces, and of others those that failed or are marked by
/// [`attribute::KEEP`]. The SDK's processor would queue all, and counts what finds no room for itself only.
#[derive(Debug)]
struct Queue {
    processor: BatchSpanProcessor,
    counts: Arc<Counts>,
    spans_max: usize,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        let failed = matches!(span.status, Status::Error { .. });
        let is_marked = || span.attributes.iter().any(|attribute| attribute.key.as_str() == attribute::KEEP);
        if !(span.span_context.is_sampled() || failed || is_marked()) {
            return;
        }
        if self.counts.queued.fetch_add(1, Ordering::Relaxed) >= self.spans_max {
            self.counts.queued.fetch_sub(1, Ordering::Relaxed);
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.processor.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.processor.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.processor.set_resource(resource);
    }
}

#[derive(Debug, Default)]
struct Counts {
    /// Spans that have not been taken to be sent.
    queued: AtomicUsize,
    /// Spans that are being sent.
    sending: AtomicUsize,
    dropped: AtomicU64,
}

/// Sends what the SDK's thread gives it, on the program's runtime, and says when that does not work.
#[derive(Debug)]
struct Sender {
    exporter: Arc<SpanExporter>,
    timeout: Duration,
    runtime: Handle,
    counts: Arc<Counts>,
}

/// The last reported state of the export.
#[derive(Debug, Default)]
struct LastReport {
    is_unavailable: bool,
    dropped: u64,
    at: Option<Instant>,
}

static LAST_REPORT: Mutex<LastReport> =
    Mutex::new(LastReport { is_unavailable: false, dropped: 0, at: None });

impl opentelemetry_sdk::trace::SpanExporter for Sender {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        self.counts.queued.fetch_sub(spans, Ordering::Relaxed);
        self.counts.sending.store(spans, Ordering::Relaxed);
        let (exporter, limit) = (self.exporter.clone(), self.timeout);
        let sending = async move {
            let sending = opentelemetry_sdk::trace::SpanExporter::export(&*exporter, batch);
            timeout(limit, sending).await.unwrap_or(Err(OTelSdkError::Timeout(limit)))
        };
        // Without a runtime the program is exiting, and has logged what was not sent.
        let sent = self.runtime.spawn(sending).await.map_err(|_| OTelSdkError::AlreadyShutdown)?;
        self.counts.sending.store(0, Ordering::Relaxed);
        if sent.is_err() {
            self.counts.dropped.fetch_add(spans as u64, Ordering::Relaxed);
        }
        self.report(&sent);
        sent
    }
}

impl Sender {
    /// Logs when the collector becomes unavailable and available again, and occasionally how much was dropped.
    fn report(&self, sent: &OTelSdkResult) {
        let mut last_report = LAST_REPORT.lock().unwrap_or_else(PoisonError::into_inner);
        let dropped_spans = self.counts.dropped.load(Ordering::Relaxed);
        match sent {
            Err(error) if !last_report.is_unavailable => {
                warn!(%error, dropped_spans, "collector unavailable, spans dropped");
            }
            Ok(()) if last_report.is_unavailable => {
                info!(dropped_spans, "collector available again, spans sent");
            }
            Ok(()) if dropped_spans > last_report.dropped => {
                if last_report.at.is_some_and(|at| at.elapsed() < REPORT_INTERVAL) {
                    return;
                }
                warn!(dropped_spans, "span queue full, spans dropped since the start");
            }
            Ok(()) | Err(_) => return,
        }
        *last_report =
            LastReport { is_unavailable: sent.is_err(), dropped: dropped_spans, at: Some(Instant::now()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Settings>, String> {
        Settings::read(|name| {
            variables.iter().find(|(variable, _)| *variable == name).map(|(_, text)| (*text).to_owned())
        })
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4317");

    #[test]
    fn export_is_off_by_default() {
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")]), Ok(None));
        assert_eq!(read(&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")]), Ok(None));
        for wanted in
            [ENDPOINT, ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://c"), ("OTEL_TRACES_EXPORTER", "otlp")]
        {
            assert!(read(&[wanted]).unwrap().is_some(), "{wanted:?}");
        }
    }

    #[test]
    fn one_in_ten_new_traces_is_sampled_by_default() {
        let sampling = |variables: &[(&str, &str)]| {
            let settings = read(&[&[ENDPOINT], variables].concat()).unwrap().unwrap();
            (settings.parent_based, settings.ratio)
        };
        let sampler = |name| ("OTEL_TRACES_SAMPLER", name);
        let arg = ("OTEL_TRACES_SAMPLER_ARG", "0.25");
        assert_eq!(sampling(&[]), (true, 0.1));
        assert_eq!(sampling(&[arg]), (true, 0.25));
        assert_eq!(sampling(&[sampler("parentbased_traceidratio"), arg]), (true, 0.25));
        assert_eq!(sampling(&[sampler("parentbased_traceidratio")]), (true, 1.0));
        assert_eq!(sampling(&[sampler("parentbased_always_on"), arg]), (true, 1.0));
        assert_eq!(sampling(&[sampler("always_off")]), (false, 0.0));
    }

    #[test]
    fn a_variable_that_cannot_be_used_is_named() {
        for (name, text) in [
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "udp"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "ca.pem"),
        ] {
            let refused = read(&[ENDPOINT, (name, text)]).unwrap_err();
            assert!(refused.starts_with(name), "{refused}");
        }
    }

    #[test]
    fn a_value_out_of_range_is_the_default_with_a_warning() {
        let defaults = read(&[ENDPOINT]).unwrap().unwrap();
        for (name, text) in [
            ("OTEL_TRACES_SAMPLER", "sometimes"),
            ("OTEL_TRACES_SAMPLER_ARG", "2"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2049"),
            ("OTEL_BSP_SCHEDULE_DELAY", "0"),
            ("OTEL_BSP_EXPORT_TIMEOUT", "1s"),
        ] {
            let mut settings = read(&[ENDPOINT, (name, text)]).unwrap().unwrap();
            let warnings = std::mem::take(&mut settings.warnings);
            assert_eq!(settings, defaults, "{name}");
            assert!(warnings[0].starts_with(name) && warnings.len() == 1, "{warnings:?}");
        }
    }
}
