//! What the programs say of themselves: one line an event on standard output, for people or for machines.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is said, and how.
#[derive(Clone, Debug, clap::Args)]
pub struct TelemetryConfig {
    /// What to log: a level, or directives as in `info,backbone=debug`.
    #[arg(long, env = "RUST_LOG", default_value = "info,async_nats=warn", value_parser = directives)]
    pub log: String,
    /// How to write the log.
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// Starts logging; called once, first thing after the configuration is read.
pub fn start(config: &TelemetryConfig) {
    // Colours are for terminals, not for files.
    let ansi = std::io::stdout().is_terminal();
    let subscriber = tracing_subscriber::fmt().with_ansi(ansi).with_env_filter(EnvFilter::new(&config.log));
    match config.log_format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().init(),
    }
}

fn directives(text: &str) -> Result<String, String> {
    EnvFilter::builder().parse(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}
