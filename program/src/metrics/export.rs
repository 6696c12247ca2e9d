//! Sending metrics to a collector, by OTLP, as often as the interval says. Nothing waits for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry_otlp::MetricExporter;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{PeriodicReader, Temporality};
use tokio::runtime::Handle;
use tokio::select;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::otlp::{Protocol, Signal, TIME_MS, Transport, number};

const METRICS: Signal = Signal { exporter: "OTEL_METRICS_EXPORTER", infix: "METRICS" };
/// How often metrics are sent unless OTEL_METRIC_EXPORT_INTERVAL says otherwise: the default of the specification.
const INTERVAL_MS: u64 = 60_000;
/// How long that may take unless OTEL_METRIC_EXPORT_TIMEOUT says otherwise.
const TIMEOUT_MS: u64 = 30_000;

#[derive(Debug, PartialEq)]
pub(super) struct Settings {
    pub(super) transport: Transport,
    pub(super) interval: Duration,
    timeout: Duration,
    /// Variables that are not used as they are set.
    pub(super) warnings: Vec<String>,
}

impl Settings {
    /// `None` if no metrics are to be sent.
    pub(super) fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, String> {
        let mut warnings = Vec::new();
        let Some(transport) = Transport::read(METRICS, &variable, &mut warnings)? else { return Ok(None) };
        let mut time = |name: &str, default_ms: u64| {
            Duration::from_millis(number(&variable, name, default_ms, TIME_MS, &mut warnings))
        };
        let interval = time("OTEL_METRIC_EXPORT_INTERVAL", INTERVAL_MS);
        let timeout = time("OTEL_METRIC_EXPORT_TIMEOUT", TIMEOUT_MS);
        Ok(Some(Self { transport, interval, timeout, warnings }))
    }

    fn exporter(&self) -> Result<MetricExporter, String> {
        let exporter = match self.transport.protocol {
            Protocol::Grpc => self.transport.over_grpc(MetricExporter::builder().with_tonic()).build(),
            Protocol::Http => self.transport.over_http(MetricExporter::builder().with_http())?.build(),
        };
        exporter.map_err(|error| format!("OTEL_EXPORTER_OTLP_*: {error}"))
    }
}

/// Sends what the thread of the SDK gives it, on the program's runtime, and says when that does not work.
#[derive(Debug)]
pub(super) struct Sender {
    exporter: MetricExporter,
    timeout: Duration,
    runtime: Handle,
    stopped: CancellationToken,
    is_unavailable: AtomicBool,
}

impl Sender {
    /// Begins to send, until `over` is cancelled.
    pub(super) fn start(
        settings: &Settings,
        stopped: CancellationToken,
    ) -> Result<PeriodicReader<Self>, String> {
        let sender = Self {
            exporter: settings.exporter()?,
            timeout: settings.timeout,
            runtime: Handle::current(),
            stopped,
            is_unavailable: AtomicBool::new(false),
        };
        Ok(PeriodicReader::builder(sender).with_interval(settings.interval).build())
    }

    /// Logs when the collector becomes unavailable, and when it is available again.
    fn report(&self, sent: &OTelSdkResult) {
        let was_unavailable = self.is_unavailable.swap(sent.is_err(), Ordering::Relaxed);
        match sent {
            Err(error) if !was_unavailable => warn!(%error, "collector unavailable, metrics not sent"),
            Ok(()) if was_unavailable => info!("collector available again, metrics sent"),
            Ok(()) | Err(_) => {}
        }
    }
}

impl PushMetricExporter for Sender {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let sending = async {
            select! {
                // On exit `flush` logs that the last metrics were not sent.
                () = self.stopped.cancelled() => Err(OTelSdkError::AlreadyShutdown),
                sent = timeout(self.timeout, self.exporter.export(metrics)) => {
                    let sent = sent.unwrap_or(Err(OTelSdkError::Timeout(self.timeout)));
                    self.report(&sent);
                    sent
                }
            }
        };
        // Blocking is fine: the reader has a thread of its own. `metrics` is only borrowed, so it cannot be moved to a task.
        self.runtime.block_on(sending)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
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
        assert_eq!(read(&[ENDPOINT, ("OTEL_METRICS_EXPORTER", "none")]), Ok(None));
        assert_eq!(read(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://localhost")]), Ok(None));
        for wanted in [
            ENDPOINT,
            ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "https://c"),
            ("OTEL_METRICS_EXPORTER", "otlp"),
        ] {
            assert!(read(&[wanted]).unwrap().is_some(), "{wanted:?}");
        }
    }

    #[test]
    fn a_variable_that_cannot_be_used_is_named() {
        for (name, text) in
            [("OTEL_METRICS_EXPORTER", "prometheus"), ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "udp")]
        {
            let refused = read(&[ENDPOINT, (name, text)]).unwrap_err();
            assert!(refused.starts_with(name), "{refused}");
        }
    }

    #[test]
    fn a_time_out_of_range_is_the_default_with_a_warning() {
        for (name, text) in [("OTEL_METRIC_EXPORT_INTERVAL", "0"), ("OTEL_METRIC_EXPORT_TIMEOUT", "1s")] {
            let settings = read(&[ENDPOINT, (name, text)]).unwrap().unwrap();
            assert_eq!((settings.interval.as_secs(), settings.timeout.as_secs()), (60, 30));
            assert!(settings.warnings[0].starts_with(name), "{:?}", settings.warnings);
        }
    }
}
