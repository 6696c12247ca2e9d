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

use crate::admission::{COST_MAX, RateLimits};
use crate::auth::{Authentication, Directory, TokenConfig, Tokens};
use crate::durability::DurabilityConfig;
use crate::transport::tls::TlsConfig;

const COUNT_MAX: usize = 1_000_000_000;

const AGE_MIN: Duration = Duration::from_secs(1);
const AGE_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);
const REQUEST_TIMEOUT_MIN: Duration = Duration::from_millis(10);
const REQUEST_TIMEOUT_MAX: Duration = Duration::from_secs(60 * 60);

/// Takes orders over gRPC and answers once they are durable.
#[derive(Clone, Debug, Parser)]
#[command(name = "waybill-gateway", version)]
pub(crate) struct Config {
    /// Where to serve gRPC. Port 0 takes a free one, which is logged.
    #[arg(long, env = "GRPC_ADDR", default_value = "127.0.0.1:50051", value_parser = parse_addr)]
    pub(crate) grpc_addr: SocketAddr,
    /// Where to serve /livez, /readyz, /health and /metrics over HTTP.
    #[arg(long, env = "OPS_ADDR", default_value = "127.0.0.1:9464", value_parser = parse_addr)]
    pub(crate) ops_addr: SocketAddr,
    /// Where to serve operators (operations.v1.DeadLetterService, inventory.v1.StockService) over gRPC. Unset: nowhere. While nobody is asked who
    /// they are, only a loopback address.
    #[arg(long, env = "OPERATIONS_ADDR", value_parser = parse_addr)]
    pub(crate) operations_addr: Option<SocketAddr>,
    /// File of API keys: a line each of SHA-256, tenant and roles. Read again when it changes. Without this, JWT_JWKS
    /// and TLS_CLIENTS_FILE nobody is asked who they are.
    #[arg(long, env = "API_KEYS_FILE", value_parser = Directory::of_api_keys)]
    pub(crate) api_keys_file: Option<Directory>,
    #[command(flatten)]
    pub(crate) tokens: TokenConfig,
    #[command(flatten)]
    pub(crate) tls: TlsConfig,
    /// File of client certificates: a line each of a name in the certificate (URI or DNS), tenant and roles. Read
    /// again when it changes. Unset: a certificate lets a client connect, and says nothing of who it is.
    #[arg(long, env = "TLS_CLIENTS_FILE", requires = "tls_client_ca", value_parser = Directory::of_clients)]
    pub(crate) tls_clients_file: Option<Directory>,
    /// Serve other machines although nobody is asked who they are.
    #[arg(long, env = "ALLOW_ANONYMOUS")]
    pub(crate) allow_anonymous: bool,
    /// Serve gRPC reflection, which asks for no credential.
    #[arg(long, env = "REFLECTION", default_value = "true", action = ArgAction::Set)]
    pub(crate) reflection: bool,
    /// Calls per second that one caller (tenant, or else peer address) may make, sustained. A list counts as 10, a watch of a customer
    /// as 5, a watch of an order or a list of its events as 2.
    #[arg(long, env = "RATE_LIMIT", default_value = "10000")]
    pub(crate) rate_limit: NonZeroU32,
    /// Calls that one caller may make at once, before the sustained rate holds; at least 10.
    #[arg(long, env = "RATE_BURST", default_value = "10000", value_parser = burst)]
    pub(crate) rate_burst: NonZeroU32,
    /// Calls per second of all callers together, sustained.
    #[arg(long, env = "RATE_LIMIT_TOTAL", default_value = "50000")]
    pub(crate) rate_limit_total: NonZeroU32,
    /// Calls of all callers together at once, before the sustained rate holds; at least 10.
    #[arg(long, env = "RATE_BURST_TOTAL", default_value = "50000", value_parser = burst)]
    pub(crate) rate_burst_total: NonZeroU32,
    /// Calls under way at a time; further ones are refused.
    #[arg(long, env = "MAX_CONCURRENT_REQUESTS", default_value = "4096", value_parser = count)]
    pub(crate) max_concurrent_requests: usize,
    /// Calls that one caller may have under way at a time; further ones are refused.
    #[arg(long, env = "MAX_CONCURRENT_REQUESTS_PER_CALLER", default_value = "1024", value_parser = count)]
    pub(crate) max_concurrent_requests_per_caller: usize,
    /// Streams open at a time.
    #[arg(long, env = "MAX_STREAMS", default_value = "100000", value_parser = count)]
    pub(crate) max_streams: usize,
    /// Streams that one caller may have open at a time.
    #[arg(long, env = "MAX_STREAMS_PER_CALLER", default_value = "100000", value_parser = count)]
    pub(crate) max_streams_per_caller: usize,
    /// Connections at a time; others wait until one is closed.
    #[arg(long, env = "MAX_CONNECTIONS", default_value = "10000", value_parser = count)]
    pub(crate) max_connections: usize,
    /// How long a connection is used, 1s-30d, give or take a tenth; the client is then asked to open another.
    #[arg(long, env = "MAX_CONNECTION_AGE", default_value = "1h", value_parser = duration(AGE_MIN..=AGE_MAX))]
    pub(crate) max_connection_age: Duration,
    /// How long calls and streams may go on on a connection that is too old, 1s-30d; calls need REQUEST_TIMEOUT.
    #[arg(long, env = "MAX_CONNECTION_AGE_GRACE", default_value = "10m",
          value_parser = duration(AGE_MIN..=AGE_MAX))]
    pub(crate) max_connection_age_grace: Duration,
    /// Web pages that may call by gRPC-Web, by their origins, separated by commas. Unset: none.
    #[arg(long, env = "CORS_ALLOWED_ORIGINS", value_delimiter = ',', value_parser = crate::browser::origin)]
    pub(crate) cors_allowed_origins: Vec<HeaderValue>,
    /// How long a call may take, 10ms-1h; the caller's deadline may be shorter.
    #[arg(long, env = "REQUEST_TIMEOUT", default_value = "5s",
          value_parser = duration(REQUEST_TIMEOUT_MIN..=REQUEST_TIMEOUT_MAX))]
    pub(crate) request_timeout: Duration,
    /// How long, after SIGTERM, new calls are still answered while /readyz and health checks already tell
    /// everybody to call elsewhere, 0s-1h.
    #[arg(long, env = "DRAIN_DELAY", default_value = "0s", value_parser = duration(Duration::ZERO..=REQUEST_TIMEOUT_MAX))]
    pub(crate) drain_delay: Duration,
    /// How long open calls may take to end after that, 0s-1d.
    #[arg(long, env = "DRAIN_TIMEOUT", default_value = "20s", value_parser = duration(Duration::ZERO..=DAY))]
    pub(crate) drain_timeout: Duration,
    /// Age at which the events of an unfinished order are written anew, 1s-100y, so that they do not expire. Unset, or more
    /// than that: half of what stream ORDERS keeps. To be set before that is made shorter: see docs/operations.md.
    #[arg(long, env = "CARRY_AFTER", value_parser = duration(RETENTION_MIN..=RETENTION_MAX))]
    pub(crate) carry_after: Option<Duration>,
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
    /// How callers prove who they are, or why nobody may be served.
    pub(crate) fn authentication(&self) -> Result<Authentication, String> {
        let tokens = Tokens::read(&self.tokens).map_err(|error| format!("JWT_JWKS: {error}"))?;
        let authentication =
            Authentication::new(self.api_keys_file.clone(), tokens, self.tls_clients_file.clone());
        if let Some(addr) = self.operations_addr.filter(|addr| !addr.ip().is_loopback())
            && authentication.is_anonymous()
        {
            return Err(format!(
                "OPERATIONS_ADDR: {addr} can be reached from other machines, and operators would not be asked who they \
                 are; set API_KEYS_FILE, JWT_JWKS or TLS_CLIENTS_FILE, or choose a loopback address"
            ));
        }
        if authentication.is_anonymous() && !self.allow_anonymous && !self.grpc_addr.ip().is_loopback() {
            return Err(format!(
                "GRPC_ADDR: {} can be reached from other machines, and nobody would be asked who they are; set \
                 API_KEYS_FILE, JWT_JWKS or TLS_CLIENTS_FILE, or ALLOW_ANONYMOUS=true if everybody may do everything",
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

/// Says which setting asked for an address that cannot be had.
pub(crate) fn cannot_bind(variable: &str, addr: SocketAddr) -> impl FnOnce(std::io::Error) -> anyhow::Error {
    let variable = variable.to_owned();
    move |error| anyhow!("cannot listen on {addr} ({variable}): {error}")
}
