//! The gateway's settings: each a flag and an environment variable.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::anyhow;
use backbone::broker::credentials::BrokerConfig;
use backbone::broker::streams::{RETENTION_MAX, RETENTION_MIN, StreamConfig};
use clap::{ArgAction, Parser};
use governor::Quota;
use http::HeaderValue;
use program::config::{DAY, duration, parse_addr};
use program::telemetry::TelemetryConfig;
use routes::RoutesConfig;

use crate::admission::{COST_MAX, RateLimits};
use crate::auth::{Authentication, Directory, TokenConfig, Tokens};
use crate::durability::DurabilityConfig;
use crate::transport::tls::TlsConfig;

const COUNT_MAX: usize = 1_000_000_000;

const AGE_MIN: Duration = Duration::from_secs(1);
const AGE_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);
const REQUEST_TIMEOUT_MIN: Duration = Duration::from_millis(10);
const REQUEST_TIMEOUT_MAX: Duration = Duration::from_secs(60 * 60);

/// Accepts orders over gRPC and answers once they are durable.
#[derive(Clone, Debug, Parser)]
#[command(name = "waybill-gateway", version)]
pub(crate) struct Config {
    /// Address of the gRPC port. Port 0 takes a free one, which is logged.
    #[arg(long, env = "GRPC_ADDR", default_value = "127.0.0.1:50051", value_parser = parse_addr)]
    pub(crate) grpc_addr: SocketAddr,
    /// Address of the HTTP port with /livez, /readyz, /health and /metrics.
    #[arg(long, env = "OPS_ADDR", default_value = "127.0.0.1:9464", value_parser = parse_addr)]
    pub(crate) ops_addr: SocketAddr,
    /// Address of the gRPC services for operators (operations.v1.DeadLetterService, inventory.v1.StockService).
    /// Unset: not served. Without authentication it must be a loopback address.
    #[arg(long, env = "OPERATIONS_ADDR", value_parser = parse_addr)]
    pub(crate) operations_addr: Option<SocketAddr>,
    /// File of API keys: one line each with SHA-256, tenant and roles. Reloaded when it changes. Without this,
    /// JWT_JWKS and TLS_CLIENTS_FILE authentication is disabled.
    #[arg(long, env = "API_KEYS_FILE", value_parser = Directory::of_api_keys)]
    pub(crate) api_keys_file: Option<Directory>,
    #[command(flatten)]
    pub(crate) tokens: TokenConfig,
    #[command(flatten)]
    pub(crate) tls: TlsConfig,
    /// File of client certificates: one line each with a name in the certificate (URI or DNS), tenant and roles.
    /// Reloaded when it changes. Unset: a certificate only permits the connection.
    #[arg(long, env = "TLS_CLIENTS_FILE", requires = "tls_client_ca", value_parser = Directory::of_clients)]
    pub(crate) tls_clients_file: Option<Directory>,
    /// Serve other machines without authentication.
    #[arg(long, env = "ALLOW_ANONYMOUS")]
    pub(crate) allow_anonymous: bool,
    /// Serve gRPC reflection, which needs no credential.
    #[arg(long, env = "REFLECTION", default_value = "true", action = ArgAction::Set)]
    pub(crate) reflection: bool,
    /// Calls per second of one caller (tenant, or else peer address), sustained. A list counts as 10, a watch of a
    /// customer as 5, a watch of an order or a list of its events as 2.
    #[arg(long, env = "RATE_LIMIT", default_value = "10000")]
    pub(crate) rate_limit: NonZeroU32,
    /// Burst: calls of one caller at once, before the sustained rate applies; at least 10.
    #[arg(long, env = "RATE_BURST", default_value = "10000", value_parser = burst)]
    pub(crate) rate_burst: NonZeroU32,
    /// Calls per second of all callers, sustained.
    #[arg(long, env = "RATE_LIMIT_TOTAL", default_value = "50000")]
    pub(crate) rate_limit_total: NonZeroU32,
    /// Burst: calls of all callers at once, before the sustained rate applies; at least 10.
    #[arg(long, env = "RATE_BURST_TOTAL", default_value = "50000", value_parser = burst)]
    pub(crate) rate_burst_total: NonZeroU32,
    /// Calls in flight; further ones are rejected.
    #[arg(long, env = "MAX_CONCURRENT_REQUESTS", default_value = "4096", value_parser = count)]
    pub(crate) max_concurrent_requests: usize,
    /// Calls of one caller in flight; further ones are rejected.
    #[arg(long, env = "MAX_CONCURRENT_REQUESTS_PER_CALLER", default_value = "1024", value_parser = count)]
    pub(crate) max_concurrent_requests_per_caller: usize,
    /// Open streams.
    #[arg(long, env = "MAX_STREAMS", default_value = "100000", value_parser = count)]
    pub(crate) max_streams: usize,
    /// Open streams of one caller.
    #[arg(long, env = "MAX_STREAMS_PER_CALLER", default_value = "100000", value_parser = count)]
    pub(crate) max_streams_per_caller: usize,
    /// Open connections; further ones wait until one closes.
    #[arg(long, env = "MAX_CONNECTIONS", default_value = "10000", value_parser = count)]
    pub(crate) max_connections: usize,
    /// Maximum age of a connection, 1s-30d, plus or minus a tenth; the client then opens another (GOAWAY).
    #[arg(long, env = "MAX_CONNECTION_AGE", default_value = "1h", value_parser = duration(AGE_MIN..=AGE_MAX))]
    pub(crate) max_connection_age: Duration,
    /// How long calls and streams continue on a connection beyond its age, 1s-30d; less than REQUEST_TIMEOUT cuts calls.
    #[arg(long, env = "MAX_CONNECTION_AGE_GRACE", default_value = "10m",
          value_parser = duration(AGE_MIN..=AGE_MAX))]
    pub(crate) max_connection_age_grace: Duration,
    /// Origins of the web pages that may call by gRPC-Web, separated by commas. Unset: none.
    #[arg(long, env = "CORS_ALLOWED_ORIGINS", value_delimiter = ',', value_parser = crate::browser::origin)]
    pub(crate) cors_allowed_origins: Vec<HeaderValue>,
    /// Deadline of a call, 10ms-1h, unless the caller's is shorter.
    #[arg(long, env = "REQUEST_TIMEOUT", default_value = "5s",
          value_parser = duration(REQUEST_TIMEOUT_MIN..=REQUEST_TIMEOUT_MAX))]
    pub(crate) request_timeout: Duration,
    /// How long new calls are still answered after SIGTERM, while /readyz and health checks already fail, 0s-1h.
    #[arg(long, env = "DRAIN_DELAY", default_value = "0s", value_parser = duration(Duration::ZERO..=REQUEST_TIMEOUT_MAX))]
    pub(crate) drain_delay: Duration,
    /// How long open calls may then take, 0s-1d.
    #[arg(long, env = "DRAIN_TIMEOUT", default_value = "20s", value_parser = duration(Duration::ZERO..=DAY))]
    pub(crate) drain_timeout: Duration,
    /// Age at which an unfinished order is carried (appended again, so that it does not expire), 1s-100y. Unset, or
    /// more than that: half of the retention of stream ORDERS. Set it before you shorten the retention: see
    /// docs/operations.md.
    #[arg(long, env = "CARRY_AFTER", value_parser = duration(RETENTION_MIN..=RETENTION_MAX))]
    pub(crate) carry_after: Option<Duration>,
    #[command(flatten)]
    pub(crate) routes: RoutesConfig,
    #[command(flatten)]
    pub(crate) broker: BrokerConfig,
    #[command(flatten)]
    pub(crate) stream: StreamConfig,
    #[command(flatten)]
    pub(crate) durability: DurabilityConfig,
    #[command(flatten)]
    pub(crate) telemetry: TelemetryConfig,
}

impl Config {
    /// How callers authenticate, or why the gateway must not serve.
    pub(crate) fn authentication(&self) -> Result<Authentication, String> {
        let tokens = Tokens::read(&self.tokens).map_err(|error| format!("JWT_JWKS: {error}"))?;
        let authentication =
            Authentication::new(self.api_keys_file.clone(), tokens, self.tls_clients_file.clone());
        if let Some(addr) = self.operations_addr.filter(|addr| !addr.ip().is_loopback())
            && authentication.is_anonymous()
        {
            return Err(format!(
                "OPERATIONS_ADDR: {addr} can be reached from other machines, and authentication is disabled; set \
                 API_KEYS_FILE, JWT_JWKS or TLS_CLIENTS_FILE, or choose a loopback address"
            ));
        }
        if authentication.is_anonymous() && !self.allow_anonymous && !self.grpc_addr.ip().is_loopback() {
            return Err(format!(
                "GRPC_ADDR: {} can be reached from other machines, and authentication is disabled; set API_KEYS_FILE, \
                 JWT_JWKS or TLS_CLIENTS_FILE, or ALLOW_ANONYMOUS=true to let every caller do everything",
                self.grpc_addr
            ));
        }
        Ok(authentication)
    }

    /// How often callers may call.
    pub(crate) fn rate_limits(&self) -> RateLimits {
        let quota = |per_second, burst| Quota::per_second(per_second).allow_burst(burst);
        RateLimits {
            of_caller: quota(self.rate_limit, self.rate_burst),
            of_all: quota(self.rate_limit_total, self.rate_burst_total),
        }
    }
}

/// A burst in which the costliest call has room.
fn burst(text: &str) -> Result<NonZeroU32, String> {
    let number = text.parse().ok().filter(|number: &NonZeroU32| number.get() >= COST_MAX);
    number.ok_or_else(|| format!("must be a whole number of at least {COST_MAX}"))
}

/// How many of something, bounded so that a counter of the runtime can hold it.
fn count(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=COUNT_MAX).contains(number));
    number.ok_or_else(|| format!("must be a whole number of 1-{COUNT_MAX}"))
}

/// The error of an address that cannot be bound, with its setting.
pub(crate) fn cannot_bind(variable: &str, addr: SocketAddr) -> impl FnOnce(std::io::Error) -> anyhow::Error {
    let variable = variable.to_owned();
    move |error| anyhow!("cannot listen on {addr} ({variable}): {error}")
}
