//! With `--observe`: Jaeger takes the traces of all programs, Prometheus fetches their metrics.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::children::Children;
use super::data_dir::DataDir;
use super::log::log_tail;
use crate::args::DevArgs;
use crate::die_with_parent;

const JAEGER: &str = "jaeger";
const PROMETHEUS: &str = "prometheus";
const START_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// The rules that Prometheus has in earnest too.
const RULES: [(&str, &str); 2] = [
    ("rules.yml", include_str!("../../../deploy/observability/prometheus/rules.yml")),
    ("alerts.yml", include_str!("../../../deploy/observability/prometheus/alerts.yml")),
];
/// What would send the spans elsewhere, or nowhere.
const COLLECTOR_VARIABLES: [&str; 7] = [
    "OTEL_SDK_DISABLED",
    "OTEL_TRACES_EXPORTER",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
];

/// The programs that watch, found before anything is started.
#[derive(Clone, Debug)]
pub(super) struct Observers {
    pub(super) jaeger: PathBuf,
    pub(super) prometheus: PathBuf,
}

/// Jaeger, as soon as it takes spans.
#[derive(Clone, Debug)]
pub(super) struct Jaeger {
    /// Where its pages and its API are.
    pub(super) url: String,
    otlp_url: String,
}

impl Jaeger {
    /// The variables that a program needs to send its spans here: to set, and to unset. The help of `dev` lists them.
    pub(super) fn variables(&self) -> Vec<(&'static str, Option<String>)> {
        let mut variables: Vec<_> = COLLECTOR_VARIABLES.iter().map(|name| (*name, None)).collect();
        variables.push(("OTEL_EXPORTER_OTLP_ENDPOINT", Some(self.otlp_url.clone())));
        variables.push(("OTEL_EXPORTER_OTLP_PROTOCOL", Some("grpc".to_owned())));
        // Jaeger accepts no metrics; Prometheus scrapes them.
        variables.push(("OTEL_METRICS_EXPORTER", Some("none".to_owned())));
        // Sample every order and export soon, since a user is watching.
        for (name, value) in
            [("OTEL_TRACES_SAMPLER", "parentbased_always_on"), ("OTEL_BSP_SCHEDULE_DELAY", "500")]
        {
            if std::env::var_os(name).is_none() {
                variables.push((name, Some(value.to_owned())));
            }
        }
        variables
    }
}

/// Starts Jaeger, which keeps its traces in memory, and waits until it listens.
pub(super) async fn start_jaeger(
    args: &DevArgs,
    data: &DataDir,
    observers: &Observers,
    children: &mut Children,
) -> anyhow::Result<Jaeger> {
    let (pages, api, otlp) = (at(args.jaeger_port)?, at(0)?, at(0)?);
    let config = data.observe()?.join("jaeger.yml");
    write(&config, &jaeger_config(pages, api, otlp))?;
    let mut command = die_with_parent::command(&observers.jaeger)?;
    // Jaeger would trace itself.
    command.arg("--config").arg(config).env("OTEL_TRACES_SAMPLER", "always_off");
    children.start_shared(JAEGER, command)?;
    listening(JAEGER, &[pages, otlp], children).await?;
    Ok(Jaeger { url: format!("http://{pages}"), otlp_url: format!("http://{otlp}") })
}

/// Starts Prometheus, with our rules, on these targets (job and address), and waits until it listens. Gives its URL.
pub(super) async fn start_prometheus(
    args: &DevArgs,
    data: &DataDir,
    observers: &Observers,
    targets: &[(String, SocketAddr)],
    children: &mut Children,
) -> anyhow::Result<String> {
    let addr = at(args.prometheus_port)?;
    let folder = data.observe()?;
    for (name, rules) in RULES {
        write(&folder.join(name), rules)?;
    }
    let config = folder.join("prometheus.yml");
    write(&config, &prometheus_config(targets))?;
    let mut command = die_with_parent::command(&observers.prometheus)?;
    command
        .arg(format!("--web.listen-address={addr}"))
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", folder.join("prometheus").display()));
    children.start(PROMETHEUS, command)?;
    listening(PROMETHEUS, &[addr], children).await?;
    Ok(format!("http://{addr}"))
}

async fn listening(name: &str, addrs: &[SocketAddr], children: &mut Children) -> anyhow::Result<()> {
    let log = children.log_of(name);
    let all = async {
        for addr in addrs {
            while TcpStream::connect(addr).await.is_err() {
                sleep(POLL_INTERVAL).await;
            }
        }
    };
    children
        .while_alive(async {
            timeout(START_TIMEOUT, all)
                .await
                .map_err(|_| anyhow!("{name} does not listen after {START_TIMEOUT:?}; {}", log_tail(&log)))
        })
        .await
}

/// The address on loopback; for port 0 with one that is free now. Neither program reports a port that it chose itself.
fn at(port: u16) -> anyhow::Result<SocketAddr> {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    if port != 0 {
        return Ok(addr);
    }
    let free = TcpListener::bind(addr).and_then(|listener| listener.local_addr());
    free.context("there is no free port on 127.0.0.1")
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn jaeger_config(pages: SocketAddr, api: SocketAddr, otlp: SocketAddr) -> String {
    format!(
        "service:
  extensions: [jaeger_storage, jaeger_query]
  pipelines:
    traces: {{ receivers: [otlp], exporters: [jaeger_storage_exporter] }}
  telemetry: {{ metrics: {{ level: none }} }}
extensions:
  jaeger_storage: {{ backends: {{ memory: {{ memory: {{ max_traces: 100000 }} }} }} }}
  jaeger_query:
    storage: {{ traces: memory }}
    http: {{ endpoint: '{pages}' }}
    grpc: {{ endpoint: '{api}' }}
receivers:
  otlp: {{ protocols: {{ grpc: {{ endpoint: '{otlp}' }} }} }}
exporters:
  jaeger_storage_exporter: {{ trace_storage: memory }}
"
    )
}

fn prometheus_config(targets: &[(String, SocketAddr)]) -> String {
    let jobs = targets.iter().map(|(job, addr)| {
        format!("  - {{ job_name: {job}, static_configs: [{{ targets: ['{addr}'] }}] }}\n")
    });
    let jobs: String = jobs.collect();
    format!(
        "global: {{ scrape_interval: 2s, evaluation_interval: 2s }}
rule_files: [rules.yml, alerts.yml]
scrape_configs:
{jobs}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_process_is_a_target_under_the_name_of_its_job() {
        let targets = [("gateway", 1), ("payment", 2)]
            .map(|(job, port)| (job.to_owned(), ([127, 0, 0, 1], port).into()));
        let config = prometheus_config(&targets);
        assert!(
            config.contains("{ job_name: payment, static_configs: [{ targets: ['127.0.0.1:2'] }] }"),
            "{config}"
        );
        assert_eq!(config.matches("job_name").count(), 2);
    }
}
