//! Metrics for Prometheus at /metrics, and by OTLP if the standard variables of OpenTelemetry ask for it. Each module
//! makes its own instruments; docs/metrics.md lists them all.
//!
//! Labels are bounded: they are words of the code, names of methods and steps, and fingerprints up to a number; never
//! an order, a customer, a caller or free text.

mod export;

use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::global;
use opentelemetry::metrics::Meter;
use opentelemetry_sdk::metrics::{Instrument, SdkMeterProvider, Stream};
use prometheus::{Registry, TextEncoder};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use opentelemetry::KeyValue;
pub use opentelemetry::metrics::{AsyncInstrument, Counter, Histogram, UpDownCounter};

use crate::otlp::{self, FLUSH_TIMEOUT};
use crate::telemetry;
use crate::trace::export::dropped_spans;
use export::{Sender, Settings};

/// Maximum number of series of one metric; further ones are counted together as `otel_metric_overflow`. No metric of
/// Waybill reaches it.
const SERIES_MAX: usize = 512;
/// What [`text`] is: <https://prometheus.io/docs/instrumenting/exposition_formats/>.
pub const TEXT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Bucket bounds for durations of calls, appends and attempts.
const CALL_SECONDS: [f64; 17] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];
/// Bounds of times that may go on for hours: an order's whole way, what a watcher is behind.
const ORDER_SECONDS: [f64; 19] = [
    0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0,
    3600.0, 14400.0,
];

static REGISTRY: OnceLock<Registry> = OnceLock::new();

/// The metrics of this program, as its `main` holds them.
#[derive(Debug)]
#[must_use = "the last metrics are sent by flush"]
pub struct Metrics {
    provider: SdkMeterProvider,
    /// Whether they are sent to a collector.
    sent: bool,
    /// Ends what is still being sent.
    stopped: CancellationToken,
}

impl Metrics {
    /// Starts metrics; called once, within the runtime, before any instrument is made. Fails with the name of an
    /// invalid variable.
    pub fn start(program: &str) -> Result<Self, String> {
        let settings = Settings::read(otlp::variable)?;
        let registry = Registry::new();
        let fetched = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            // There is only one scope.
            .scope_info_enabled(false)
            .build()
            .map_err(|error| error.to_string())?;
        let mut provider = SdkMeterProvider::builder()
            .with_resource(otlp::resource(program))
            .with_view(bounded)
            .with_reader(fetched);
        let stopped = CancellationToken::new();
        if let Some(settings) = &settings {
            provider = provider.with_reader(Sender::start(settings, stopped.clone())?);
            for warning in &settings.warnings {
                warn!("{warning}");
            }
            info!(protocol = ?settings.transport.protocol, interval = ?settings.interval, "metrics are exported");
        }
        let provider = provider.build();
        global::set_meter_provider(provider.clone());
        REGISTRY.get_or_init(|| registry);
        count_drops();
        Ok(Self { provider, sent: settings.is_some(), stopped })
    }

    /// Sends what was counted last, if that is possible within [`FLUSH_TIMEOUT`].
    pub async fn flush(self) {
        if !self.sent {
            return;
        }
        let Self { provider, stopped, .. } = self;
        let flushed = spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_TIMEOUT)).await;
        stopped.cancel();
        match flushed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "last metrics not sent"),
            Err(error) => warn!(%error, "last metrics not sent"),
        }
    }
}

/// All that was counted, as Prometheus reads it.
pub fn text() -> Result<String, prometheus::Error> {
    let families = REGISTRY.get().map(Registry::gather).unwrap_or_default();
    TextEncoder::new().encode_to_string(&families)
}

/// Makes instruments. Those that are made before [`Metrics::start`], and in tests, count nothing.
pub fn meter() -> Meter {
    global::meter("waybill")
}

/// The duration of a call, append or attempt, 0.5 ms to a minute.
pub fn call_duration(name: &'static str, description: &'static str) -> Histogram<f64> {
    histogram(name, description, &CALL_SECONDS)
}

/// How long something took that may go on for hours.
pub fn order_duration(name: &'static str, description: &'static str) -> Histogram<f64> {
    histogram(name, description, &ORDER_SECONDS)
}

fn histogram(name: &'static str, description: &'static str, bounds: &[f64]) -> Histogram<f64> {
    let meter = meter();
    let seconds = meter.f64_histogram(name).with_description(description).with_unit("s");
    seconds.with_boundaries(bounds.to_vec()).build()
}

/// Something that happens now and then.
pub fn counter(name: &'static str, description: &'static str) -> Counter<u64> {
    meter().u64_counter(name).with_description(description).build()
}

/// Something of which there is more and less.
pub fn up_and_down(name: &'static str, description: &'static str) -> UpDownCounter<i64> {
    meter().i64_up_down_counter(name).with_description(description).build()
}

/// A gauge that is read at each collection. A value that `look` does not report is missing then.
pub fn gauge(
    name: &'static str,
    description: &'static str,
    look: impl Fn(&dyn AsyncInstrument<u64>) + Send + Sync + 'static,
) {
    // The provider keeps the callback.
    meter().u64_observable_gauge(name).with_description(description).with_callback(look).build();
}

/// The same of an age.
pub fn age(
    name: &'static str,
    description: &'static str,
    look: impl Fn(&dyn AsyncInstrument<f64>) + Send + Sync + 'static,
) {
    let meter = meter();
    let seconds = meter.f64_observable_gauge(name).with_description(description).with_unit("s");
    seconds.with_callback(look).build();
}

/// A number counted elsewhere that only grows.
pub fn total(name: &'static str, description: &'static str, look: impl Fn() -> u64 + Send + Sync + 'static) {
    let meter = meter();
    let total = meter.u64_observable_counter(name).with_description(description);
    total.with_callback(move |total| total.observe(look(), &[])).build();
}

/// In seconds, as all durations.
pub fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

fn bounded(_: &Instrument) -> Option<Stream> {
    Stream::builder().with_cardinality_limit(SERIES_MAX).build().ok()
}

fn count_drops() {
    total(
        "waybill.log.lines.dropped",
        "Log lines dropped because stdout was not read in time.",
        telemetry::dropped_lines,
    );
    total(
        "waybill.spans.dropped",
        "Finished spans that were not exported: the queue was full, or the collector rejected them or was unavailable.",
        dropped_spans,
    );
}
