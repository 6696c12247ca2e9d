//! The payment sandbox: moves no money, and goes wrong on demand.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::time::timeout;

use super::children::Children;
use super::data_dir::DataDir;
use super::gateway::reachable;
use super::log::{self, log_tail};
use super::programs::Programs;
use crate::args::DevArgs;

const START_TIMEOUT: Duration = Duration::from_secs(30);
const NAME: &str = "payment-sandbox";

/// Starts the payment sandbox and waits until it listens. Gives the URL by which it is called.
pub(super) async fn start(
    args: &DevArgs,
    data: &DataDir,
    programs: &Programs,
    children: &mut Children,
) -> anyhow::Result<String> {
    let mut command = programs.program_command(&programs.payment_sandbox)?;
    command
        .env("PAYMENT_SANDBOX_ADDR", args.payment_sandbox_addr.to_string())
        .env("PAYMENT_SANDBOX_DATA", data.payments());
    children.start_shared(NAME, command)?;

    let log = children.log_of(NAME);
    children
        .while_alive(async {
            let listening = timeout(START_TIMEOUT, log::wait_for(&log, "listening")).await.map_err(|_| {
                anyhow!("the payment sandbox does not listen after {START_TIMEOUT:?}; {}", log_tail(&log))
            })?;
            let addr = listening["grpc_addr"].as_str().unwrap_or_default();
            let addr: SocketAddr = addr.parse().context("the payment sandbox logs no grpc_addr")?;
            Ok(format!("http://{}", reachable(addr)))
        })
        .await
}
