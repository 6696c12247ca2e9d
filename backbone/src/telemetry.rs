//! What the programs say of themselves: one line an event on standard output, for people or for machines.

use std::io::IsTerminal;

use tracing::{Level, Metadata};
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

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
    let text = (config.log_format == LogFormat::Text).then(|| fmt::layer().with_ansi(ansi));
    let json = (config.log_format == LogFormat::Json).then(|| fmt::layer().json());
    tracing_subscriber::registry()
        .with(EnvFilter::new(&config.log))
        .with(filter_fn(|metadata| !shows_secrets(metadata)))
        .with(text)
        .with(json)
        .init();
}

/// The NATS client's finer levels show where it connects to, with the password, and what it sends.
fn shows_secrets(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("async_nats") && *metadata.level() > Level::INFO
}

fn directives(text: &str) -> Result<String, String> {
    let directives: Vec<_> = text.split(',').map(str::trim).filter(|text| !text.is_empty()).collect();
    if directives.is_empty() {
        return Err("says nothing; a level is one of off, error, warn, info, debug, trace".to_owned());
    }
    for directive in &directives {
        // The filter would take a misspelt level for a target, and be silent about all others.
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
    fn what_would_silence_everything_by_mistake_is_refused() {
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
