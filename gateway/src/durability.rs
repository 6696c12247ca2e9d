//! The durability of acknowledged orders at the broker, and whether it suffices.
//!
//! STREAM.INFO reports on how many servers the order log is, and whether on disk. Only a server's monitoring port shows
//! whether it syncs each message before it acknowledges it (`sync_interval: always`), so NATS_MONITOR_URL is read. An
//! unknown value counts as no.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use backbone::broker::streams::StreamState;
use clap::ValueEnum;
use futures::future::join_all;
use http::Uri;
use program::config::has_usable_port;
use serde::Deserialize;
use tokio::time::timeout;
use tracing::warn;

use crate::transport::http_client::HttpClient;

/// Copies of the log of which a majority survives the loss of a server, its disk and its power.
const REPLICAS_SAFE: usize = 3;
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest answer: a server's `/varz`.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Requests to the broker.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DurabilityConfig {
    /// Required durability. `strict` accepts orders only while the order log is on at least three servers, or each
    /// write is synced to the disk. `any` always accepts them, and reports the durability.
    #[arg(long, env = "DURABILITY", default_value = "any")]
    pub(crate) durability: RequiredDurability,
    /// Monitoring ports of all servers with the order log, such as `http://nats:8222`, separated by commas. Only they
    /// show whether each write is synced. Unset: it counts as not synced.
    #[arg(long, env = "NATS_MONITOR_URL", hide_env_values = true, value_delimiter = ',', value_parser = monitor)]
    pub(crate) nats_monitor_url: Vec<Uri>,
}

/// The required durability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RequiredDurability {
    Any,
    Strict,
}

/// The failures that acknowledged orders survive, the weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum DurabilityLevel {
    /// No restart of the server.
    Memory,
    /// A crash of the server's process, not a power failure.
    Process,
    /// A power failure too.
    Fsync,
    /// The loss of a server.
    Replicated,
}

impl DurabilityLevel {
    pub(crate) const ALL: [Self; 4] = [Self::Memory, Self::Process, Self::Fsync, Self::Replicated];

    /// The level of a stream, whose servers are known to write through, or not to.
    pub(crate) fn of(stream: &StreamState, fsyncs: &HashMap<String, bool>) -> Self {
        let writes_through = |server| fsyncs.get(server).copied().unwrap_or(false);
        match stream {
            StreamState { on_file: false, .. } => Self::Memory,
            StreamState { replicas: REPLICAS_SAFE.., .. } => Self::Replicated,
            StreamState { servers, .. } if !servers.is_empty() && servers.iter().all(writes_through) => {
                Self::Fsync
            }
            StreamState { .. } => Self::Process,
        }
    }

    pub(crate) fn satisfies(self, wanted: RequiredDurability) -> bool {
        match wanted {
            RequiredDurability::Any => true,
            RequiredDurability::Strict => self >= Self::Fsync,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Process => "process",
            Self::Fsync => "fsync",
            Self::Replicated => "replicated",
        }
    }
}

/// Formats it for people.
impl fmt::Display for DurabilityLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory: nothing survives a restart of the broker",
            Self::Process => {
                "process: acknowledged orders survive a crash of the broker, not a power failure"
            }
            Self::Fsync => "fsync: acknowledged orders survive a power failure",
            Self::Replicated => "replicated: acknowledged orders survive the loss of a server",
        })
    }
}

/// Asks the monitoring ports.
#[derive(Debug)]
pub(crate) struct Monitors {
    http: HttpClient,
    urls: Vec<Uri>,
}

/// The relevant part of a server's `/varz`.
#[derive(Deserialize)]
struct Varz {
    server_name: String,
    #[serde(default)]
    jetstream: JetStream,
}

#[derive(Default, Deserialize)]
struct JetStream {
    #[serde(default)]
    config: JetStreamConfig,
}

#[derive(Default, Deserialize)]
struct JetStreamConfig {
    #[serde(default)]
    sync_always: bool,
}

impl Monitors {
    /// Fails if the system's certificates cannot be read.
    pub(crate) fn new(config: &DurabilityConfig) -> std::io::Result<Option<Self>> {
        let urls = config.nats_monitor_url.clone();
        if urls.is_empty() {
            Ok(None)
        } else {
            Ok(Some(Self { http: HttpClient::new(ANSWER_BYTES_MAX)?, urls }))
        }
    }

    /// The names of the servers that answer, and whether each of them writes through.
    pub(crate) async fn ask(&self) -> Vec<(String, bool)> {
        let answers = join_all(self.urls.iter().map(|url| async move {
            let asked = timeout(ASK_TIMEOUT, self.ask_one(url)).await;
            asked.unwrap_or_else(|_| Err("no answer in time".to_owned())).inspect_err(|error| {
                warn!(%url, error, "monitoring port (NATS_MONITOR_URL) not read");
            })
        }));
        answers.await.into_iter().filter_map(Result::ok).collect()
    }

    async fn ask_one(&self, url: &Uri) -> Result<(String, bool), String> {
        let uri = format!("{}/varz", url.to_string().trim_end_matches('/'));
        let uri = uri.parse().map_err(|error: http::uri::InvalidUri| error.to_string())?;
        // An error page or a redirect does not describe this server.
        let answer = self.http.get(uri).await.map_err(|error| format!("{error:#}"))?;
        let varz: Varz = serde_json::from_slice(&answer).map_err(|error| error.to_string())?;
        Ok((varz.server_name, varz.jetstream.config.sync_always))
    }
}

fn monitor(text: &str) -> Result<Uri, String> {
    let url: Uri = text.parse().map_err(|error: http::uri::InvalidUri| error.to_string())?;
    let is_http = matches!(url.scheme_str(), Some("http" | "https"));
    // Credentials in the URL would be logged.
    let is_plain = url.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    let has_port = url.authority().is_some_and(has_usable_port);
    if is_http && is_plain && has_port {
        Ok(url)
    } else {
        Err("must be an address such as http://nats:8222".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn stream(replicas: usize, servers: &[&str]) -> StreamState {
        StreamState {
            created: SystemTime::UNIX_EPOCH,
            messages: 0,
            bytes: 0,
            bytes_max: None,
            replicas,
            has_leader: true,
            replicas_current: servers.len(),
            on_file: true,
            servers: servers.iter().map(|server| (*server).to_owned()).collect(),
        }
    }

    #[test]
    fn a_level_needs_every_server_that_holds_the_log() {
        let fsyncs = HashMap::from([("a".to_owned(), true), ("b".to_owned(), false)]);
        let level = |replicas, servers: &[&str]| DurabilityLevel::of(&stream(replicas, servers), &fsyncs);
        assert_eq!(level(1, &["a"]), DurabilityLevel::Fsync);
        assert_eq!(level(1, &["b"]), DurabilityLevel::Process);
        assert_eq!(level(1, &["unknown"]), DurabilityLevel::Process);
        assert_eq!(level(2, &["a", "b"]), DurabilityLevel::Process);
        assert_eq!(level(1, &[]), DurabilityLevel::Process, "the servers are unknown");
        assert_eq!(level(3, &["b"]), DurabilityLevel::Replicated);
        assert_eq!(
            DurabilityLevel::of(&StreamState { on_file: false, ..stream(3, &["a"]) }, &fsyncs),
            DurabilityLevel::Memory
        );
    }

    #[test]
    fn strict_requires_that_orders_survive_a_power_failure() {
        let enough = DurabilityLevel::ALL.map(|level| level.satisfies(RequiredDurability::Strict));
        assert_eq!(enough, [false, false, true, true]);
    }

    #[test]
    fn a_monitoring_port_is_an_address_without_a_password() {
        assert!(monitor("http://nats:8222").is_ok() && monitor("https://10.0.0.1:8222/").is_ok());
        for text in ["", "nats:8222", "nats://nats:8222", "http://user:secret@nats:8222"] {
            assert!(monitor(text).is_err(), "{text}");
        }
    }
}
