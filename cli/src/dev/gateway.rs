//! The gateway: started on the broker, and ready when its health service says so.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Uri};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::broker::Broker;
use super::children::Children;
use super::log::{self, log_tail};
use super::programs::Programs;
use crate::args::DevArgs;
use crate::client;

const START_TIMEOUT: Duration = Duration::from_secs(30);
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// What would have the gateway speak TLS, which `dev` does not.
const TLS_VARIABLES: [&str; 5] =
    ["TLS_CERT", "TLS_KEY", "TLS_CLIENT_CA", "TLS_CLIENT_OPTIONAL", "TLS_CLIENTS_FILE"];
const NAME: &str = "gateway";

/// The gateway, as soon as it takes orders.
#[derive(Debug)]
pub(super) struct Gateway {
    /// Where this machine reaches its gRPC.
    pub(super) grpc_addr: SocketAddr,
    /// Where this machine reaches its health over HTTP.
    pub(super) ops_addr: SocketAddr,
    /// Where operators on this machine reach it.
    pub(super) operations_addr: SocketAddr,
}

impl Gateway {
    /// The address as a client takes it.
    pub(super) fn uri(&self) -> anyhow::Result<Uri> {
        let uri = format!("http://{}", self.grpc_addr);
        uri.parse().with_context(|| format!("no address: {uri}"))
    }
}

/// Starts the gateway and waits until it takes orders.
pub(super) async fn start(
    args: &DevArgs,
    programs: &Programs,
    broker: &Broker,
    children: &mut Children,
) -> anyhow::Result<Gateway> {
    let mut command = broker.client_command(programs, &programs.gateway)?;
    command
        .env("GRPC_ADDR", args.grpc_addr.to_string())
        .env("OPS_ADDR", args.ops_addr.to_string())
        .env("OPERATIONS_ADDR", args.operations_addr.to_string())
        .envs(args.routes.routes_file.as_ref().map(|file| ("ROUTES_FILE", file)));
    for variable in TLS_VARIABLES {
        command.env_remove(variable);
    }
    children.start(NAME, command)?;

    let log = children.log_of(NAME);
    children
        .while_alive(async {
            timeout(START_TIMEOUT, ready(args, &log)).await.map_err(|_| {
                anyhow!("the gateway is not ready after {START_TIMEOUT:?}; {}", log_tail(&log))
            })?
        })
        .await
}

async fn ready(args: &DevArgs, log: &Path) -> anyhow::Result<Gateway> {
    let gateway = addresses(args, log).await?;
    let channel = client::endpoint(gateway.uri()?).connect_lazy();
    let mut health = HealthClient::new(channel);
    while !is_serving(&mut health).await {
        sleep(POLL_INTERVAL).await;
    }
    Ok(gateway)
}

/// Any failure means the same: not yet.
async fn is_serving(health: &mut HealthClient<Channel>) -> bool {
    let check = health.check(HealthCheckRequest::default());
    match timeout(CHECK_TIMEOUT, check).await {
        Ok(Ok(answer)) => answer.into_inner().status() == ServingStatus::Serving,
        Ok(Err(_)) | Err(_) => false,
    }
}

/// The configured addresses; for port 0 the address that the gateway logs.
async fn addresses(args: &DevArgs, log: &Path) -> anyhow::Result<Gateway> {
    let DevArgs { grpc_addr, ops_addr, operations_addr, .. } = *args;
    let mut gateway = Gateway { grpc_addr, ops_addr, operations_addr };
    if [grpc_addr, ops_addr, operations_addr].iter().any(|addr| addr.port() == 0) {
        let listening = log::wait_for(log, "listening").await;
        let address = |name: &str| {
            let logged = listening[name].as_str().unwrap_or_default();
            logged.parse().with_context(|| format!("the gateway logs no {name}: {logged:?}"))
        };
        gateway = Gateway {
            grpc_addr: address("grpc_addr")?,
            ops_addr: address("ops_addr")?,
            operations_addr: address("operations_addr")?,
        };
    }
    gateway.grpc_addr = reachable(gateway.grpc_addr);
    gateway.ops_addr = reachable(gateway.ops_addr);
    gateway.operations_addr = reachable(gateway.operations_addr);
    Ok(gateway)
}

/// One can listen on all addresses at once, but connect to one only.
pub(super) fn reachable(mut addr: SocketAddr) -> SocketAddr {
    if addr.ip().is_unspecified() {
        addr.set_ip(match addr {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    addr
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_for_all_interfaces_is_reached_on_loopback() {
        let reached = |addr: &str| reachable(addr.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:50051"), "127.0.0.1:50051");
        assert_eq!(reached("[::]:50051"), "[::1]:50051");
        assert_eq!(reached("127.0.0.2:50051"), "127.0.0.2:50051");
    }
}
