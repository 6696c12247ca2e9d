//! The processors, one for each step of an order.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::timeout;

use super::broker::Broker;
use super::catalogue;
use super::children::Children;
use super::log;
use super::programs::{Processor, Programs};
use crate::args::DevArgs;
use crate::console;

/// Orders may be placed before the processors work: they wait in the log. Waiting a little for the processors only
/// keeps their start out of the times that are shown, so it is no error if one does not say that it works.
const START_PATIENCE: Duration = Duration::from_secs(5);

/// Starts the processors, with the stock to begin with, and the payment service to call.
pub(super) async fn start(
    args: &DevArgs,
    programs: &Programs,
    broker: &Broker,
    payment_url: &str,
    children: &mut Children,
) -> anyhow::Result<()> {
    let processors = &programs.processors;
    let stock = args.stock.clone().filter(|stock| !stock.is_empty()).unwrap_or_else(catalogue::stock);
    for Processor { step, program, url } in processors {
        let mut command = broker.client_command(programs, program)?;
        command.env("STOCK", &stock).env("PAYMENT_URL", payment_url);
        if let Some(url) = url {
            command.env("STEP_NAME", step).env("STEP_URL", url);
        }
        // `OPS_ADDR` of the environment is meant for the gateway.
        command.env("OPS_ADDR", "127.0.0.1:0");
        children.start(step, command)?;
    }
    for step in &programs.elsewhere {
        console::tell(&format!(
            "step {step}: no program waybill-{step} here; its orders wait until one runs on this broker"
        ));
    }
    let logs: Vec<_> = processors.iter().map(|processor| children.log_of(&processor.step)).collect();
    let working = async {
        for log in &logs {
            log::wait_for(log, "processing").await;
        }
    };
    children
        .while_alive(async {
            match timeout(START_PATIENCE, working).await {
                Ok(()) | Err(_) => Ok(()),
            }
        })
        .await
}

/// Where the processors serve their metrics, by step: those that say so.
pub(super) async fn ops_addrs(programs: &Programs, children: &Children) -> Vec<(String, SocketAddr)> {
    let mut addrs = Vec::new();
    for Processor { step, .. } in &programs.processors {
        let log = children.log_of(step);
        let Ok(listening) = timeout(START_PATIENCE, log::wait_for(&log, "listening")).await else { continue };
        if let Ok(addr) = listening["ops_addr"].as_str().unwrap_or_default().parse() {
            addrs.push((step.clone(), addr));
        }
    }
    addrs
}
