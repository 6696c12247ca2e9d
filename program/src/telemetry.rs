//! Logging: one line an event on standard output, as text or JSON.
//!
//! A thread of its own writes the lines. A stalled stdout never blocks the process; lines are dropped and counted.

use std::io::IsTerminal;
use std::sync::mpsc;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tracing::{Level, Metadata, warn};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{FilterExt, LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use crate::trace_ids::WithTraceIds;

/// Lines that wait to be written; further ones are dropped, and counted.
const LINES_MAX: usize = 16_384;
/// How often the number of dropped lines is checked.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// How long, at the end, the last lines may take to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval between two lines of a kind that callers can cause at any rate.
const THROTTLE_INTERVAL: Duration = Duration::from_secs(1);

static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// Lines dropped since the start, because stdout stalled.
pub(crate) fn dropped_lines() -> u64 {
    DROPPED.get().map_or(0, |dropped| dropped.dropped_lines() as u64)
}

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Level and format.
#[derive(Clone, Debug, clap::Args)]
pub struct TelemetryConfig {
    /// What to log: a level, or directives as in `info,backbone=debug`.
    #[arg(long, env = "RUST_LOG", default_value = "info,async_nats=warn", value_parser = directives)]
    pub log: String,
    /// How to write the log.
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// The log, for as long as the program runs. When it is dropped, the last lines are written.
#[derive(Debug)]
pub struct Telemetry {
    writing: Option<WorkerGuard>,
    /// Stops the thread that reports dropped lines.
    stop: Option<mpsc::Sender<()>>,
    reporter: Option<JoinHandle<()>>,
}

/// Starts logging; called once, first thing after the configuration is read. What it returns has to be kept to
/// the end of the program.
#[must_use = "the last lines are written when it is dropped"]
pub fn start(config: &TelemetryConfig) -> Telemetry {
    start_with(config, None)
}

/// The same with a layer that makes spans.
pub(crate) fn start_with(
    config: &TelemetryConfig,
    spans: Option<Box<dyn Layer<Registry> + Send + Sync>>,
) -> Telemetry {
    // Colours only on a terminal.
    let ansi = std::io::stdout().is_terminal();
    let builder =
        NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES_MAX).thread_name("log");
    let (writer, writing) = builder.finish(std::io::stdout());
    let dropped = writer.error_counter();
    DROPPED.get_or_init(|| dropped.clone());
    let lines = fmt::layer().with_ansi(ansi).with_writer(writer);
    let lines = match config.log_format {
        LogFormat::Text => {
            lines.map_event_format(|format| WithTraceIds::text(format.with_ansi(ansi))).boxed()
        }
        LogFormat::Json => lines.json().map_event_format(WithTraceIds::json).boxed(),
    };
    let is_written = |metadata: &Metadata<'_>| {
        metadata.is_event() && !shows_secrets(metadata) && !is_reported_elsewhere(metadata)
    };
    // With a level hint, so that disabled levels cost nothing.
    let is_written = filter_fn(is_written).with_max_level_hint(LevelFilter::TRACE);
    let lines = lines.with_filter(EnvFilter::new(&config.log).and(is_written));
    // A Vec, not an Option of a layer: beside a `None` layer tracing no longer knows which lines and spans are disabled.
    let layers: Vec<_> = [lines.boxed()].into_iter().chain(spans).collect();
    tracing_subscriber::registry().with(layers).init();
    let (stop, stopped) = mpsc::channel();
    let reporter = thread::Builder::new().name("log-dropped".to_owned());
    let reporter = reporter.spawn(move || report_dropped_lines(&dropped, &stopped));
    // Without this thread only the count of dropped lines is missing.
    Telemetry { writing: Some(writing), stop: Some(stop), reporter: reporter.ok() }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(reporter) = self.reporter.take() {
            // Ends at once. A panic has been logged already.
            drop(reporter.join());
        }
        let writing = self.writing.take();
        let (written, flushed) = mpsc::channel::<()>();
        // In a thread of its own, because the guard prints to stdout when its lines are not read in time.
        let flushing = thread::Builder::new().spawn(move || {
            drop(writing);
            drop(written);
        });
        if flushing.is_ok() {
            // The process exits, flushed or not.
            flushed.recv_timeout(FLUSH_TIMEOUT).ok();
        }
    }
}

/// Says how many lines were dropped, as soon as there is room for that line. Ends when the program does.
fn report_dropped_lines(dropped: &ErrorCounter, stopped: &mpsc::Receiver<()>) {
    let mut reported = 0;
    let mut running = true;
    while running {
        running = stopped.recv_timeout(REPORT_INTERVAL) == Err(mpsc::RecvTimeoutError::Timeout);
        let lines = dropped.dropped_lines();
        if lines > reported {
            warn!(lines, "log not read in time, lines dropped since the start");
            // This line may have been dropped, too.
            if dropped.dropped_lines() == lines {
                reported = lines;
            }
        }
    }
}

/// Limits lines that callers can cause at any rate: one in an interval.
#[derive(Debug)]
pub struct LogThrottle {
    interval: Duration,
    state: Mutex<ThrottleState>,
}

#[derive(Debug)]
struct ThrottleState {
    last: Option<Instant>,
    suppressed: u64,
}

impl LogThrottle {
    /// One a second. None has been let through yet.
    pub const fn new() -> Self {
        Self::every(THROTTLE_INTERVAL)
    }

    /// One in such an interval.
    pub const fn every(interval: Duration) -> Self {
        Self { interval, state: Mutex::new(ThrottleState { last: None, suppressed: 0 }) }
    }

    /// Whether a line may be written now, and then how many like it were left out since the last one.
    pub fn allow(&self) -> Option<u64> {
        self.at(Instant::now())
    }

    fn at(&self, now: Instant) -> Option<u64> {
        // No code panics under this lock, so it cannot be poisoned.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| now.saturating_duration_since(last) < self.interval) {
            state.suppressed += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.suppressed))
    }
}

impl Default for LogThrottle {
    fn default() -> Self {
        Self::new()
    }
}

/// The NATS client's finer levels show where it connects to, with the password, and what it sends.
fn shows_secrets(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("async_nats") && *metadata.level() > Level::INFO
}

/// Messages of the export libraries, which the program logs itself at a lower rate.
fn is_reported_elsewhere(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("opentelemetry")
}

fn directives(text: &str) -> Result<String, String> {
    let directives: Vec<_> = text.split(',').map(str::trim).filter(|text| !text.is_empty()).collect();
    if directives.is_empty() {
        return Err("is empty; a level is one of off, error, warn, info, debug, trace".to_owned());
    }
    for directive in &directives {
        // The filter would take a misspelt level for a target, and silence all other targets.
        if !directive.contains(['=', '[', ']']) && directive.parse::<LevelFilter>().is_err() {
            return Err(format!(
                "`{directive}` is not a level (off, error, warn, info, debug, trace); for a target use target=level"
            ));
        }
    }
    let directives = directives.join(",");
    EnvFilter::builder().parse(&directives).map_err(|error| error.to_string())?;
    Ok(directives)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_is_logged_with_the_number_suppressed() {
        let throttle = LogThrottle::new();
        let start = Instant::now();
        assert_eq!(throttle.at(start), Some(0));
        for ms in [0, 1, 500, 999] {
            assert_eq!(throttle.at(start + Duration::from_millis(ms)), None);
        }
        assert_eq!(throttle.at(start + THROTTLE_INTERVAL), Some(4));
        assert_eq!(throttle.at(start + 3 * THROTTLE_INTERVAL), Some(0));
    }

    #[test]
    fn a_misspelt_level_is_rejected() {
        for text in ["info", "WARN", "off", "info,async_nats=warn", "backbone::log=debug", "[span]=info"] {
            assert_eq!(directives(text).as_deref(), Ok(text));
        }
        assert_eq!(directives(" info, async_nats=warn,").as_deref(), Ok("info,async_nats=warn"));
        for text in ["", ",", "infoo", "info,backbone", "a=b=c", "backbone=loud"] {
            assert!(directives(text).is_err(), "{text}");
        }
        assert!(directives("infoo").unwrap_err().contains("target=level"));
    }
}
