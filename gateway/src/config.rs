//! The gateway's settings: each a flag and an environment variable.

use std::net::SocketAddr;
use std::num::NonZeroU32;

use anyhow::anyhow;
use backbone::connection::BrokerConfig;
use backbone::stream::StreamConfig;
use backbone::telemetry::TelemetryConfig;
use clap::Parser;

/// Takes orders over gRPC and answers once they are durable.
#[derive(Clone, Debug, Parser)]
#[command(name = "waybill-gateway", version)]
pub(crate) struct Config {
    /// Where to serve gRPC. Port 0 takes a free one, which is logged.
    #[arg(long, env = "GRPC_ADDR", default_value = "127.0.0.1:50051")]
    pub(crate) grpc_addr: SocketAddr,
    /// Where to serve /livez, /readyz and /health over HTTP.
    #[arg(long, env = "OPS_ADDR", default_value = "127.0.0.1:9464")]
    pub(crate) ops_addr: SocketAddr,
    /// Calls per second that one peer address may make, sustained.
    #[arg(long, env = "RATE_LIMIT", default_value = "10000")]
    pub(crate) rate_limit: NonZeroU32,
    /// Calls that one peer address may make at once, before the sustained rate holds.
    #[arg(long, env = "RATE_BURST", default_value = "10000")]
    pub(crate) rate_burst: NonZeroU32,
    /// Connections at a time; others wait until one is closed.
    #[arg(long, env = "MAX_CONNECTIONS", default_value = "10000", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) max_connections: u16,
    /// How long CreateOrder may wait for the broker.
    #[arg(long, env = "REQUEST_TIMEOUT", default_value = "5s")]
    pub(crate) request_timeout: humantime::Duration,
    /// How long open calls may take to end after SIGTERM.
    #[arg(long, env = "DRAIN_TIMEOUT", default_value = "20s")]
    pub(crate) drain_timeout: humantime::Duration,
    #[command(flatten)]
    pub(crate) broker: BrokerConfig,
    #[command(flatten)]
    pub(crate) stream: StreamConfig,
    #[command(flatten)]
    pub(crate) telemetry: TelemetryConfig,
}

/// Says which setting asked for an address that cannot be had.
pub(crate) fn cannot_bind(variable: &str, addr: SocketAddr) -> impl FnOnce(std::io::Error) -> anyhow::Error {
    let variable = variable.to_owned();
    move |error| anyhow!("cannot listen on {addr} ({variable}): {error}")
}
