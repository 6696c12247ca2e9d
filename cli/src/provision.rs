//! `waybill provision`: creates what the programs need at the broker, so that they need no permission to create it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use backbone::broker::connection::Connection;
use backbone::broker::credentials::BrokerConfig;
use backbone::broker::streams::StreamConfig;
use backbone::log::acknowledge_loss;
use processor::config::ACK_WAIT;
use processor::provision::provision;
use program::config::duration;
use program::telemetry::{self, TelemetryConfig};
use routes::{Routes, RoutesConfig};
use tokio::time::timeout;

use crate::console;
use crate::usage::{UsageError, parse_timeout};

/// The name of the provisioner at the broker; also part of the inbox that this user needs.
const NAME: &str = "provisioner";

#[derive(Debug, clap::Args)]
pub(crate) struct ProvisionArgs {
    #[command(flatten)]
    broker: BrokerConfig,
    #[command(flatten)]
    stream: StreamConfig,
    #[command(flatten)]
    routes: RoutesConfig,
    /// How long the broker waits for an acknowledgement or a sign of progress before it redelivers a message, as for
    /// the processors, 100ms-1d.
    #[arg(long, env = "ACK_WAIT", default_value = "10s", value_name = "TIME", value_parser = duration(ACK_WAIT))]
    ack_wait: Duration,
    /// Deadline, 1ms-1d.
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = parse_timeout)]
    timeout: humantime::Duration,
    /// Also acknowledge lost events of the order log, which ends the alert WaybillLogLost.
    #[arg(long)]
    acknowledge_loss: bool,
    #[command(flatten)]
    telemetry: TelemetryConfig,
}

/// Creates what is missing. Fails when an existing stream, bucket or consumer must not be changed, or when the deadline
/// passes first.
pub(crate) async fn run(args: ProvisionArgs) -> anyhow::Result<()> {
    let routes = Routes::read(&args.routes).map_err(|error| UsageError(error.to_string()))?;
    let _telemetry = telemetry::start(&args.telemetry);
    let connection = Connection::open(&args.broker, NAME).await?;
    let why = RefCell::new("broker unreachable".to_owned());
    let waiting = |reason| *why.borrow_mut() = reason;
    // The processors of built-in steps may run although no route names them.
    let built_in = Routes::default();
    let steps: BTreeSet<_> = built_in.steps().into_iter().chain(routes.steps()).collect();
    let steps = Vec::from_iter(steps);
    let (ack_wait, wait) = (args.ack_wait, Duration::from(args.timeout));
    let provisioned = async {
        tokio::select! {
            provisioned = provision(&connection, &args.stream, &steps, ack_wait, waiting) => Ok(provisioned?),
            () = connection.died() => bail!("NATS client stopped"),
        }
    };
    timeout(wait, provisioned).await.map_err(|_| not_done(&connection, args.timeout, &why.borrow()))??;
    if args.acknowledge_loss {
        acknowledge_loss(&connection).await.context("loss not acknowledged")?;
        console::answer("loss of events acknowledged")?;
    }
    let steps = steps.join(", ");
    Ok(console::answer(&format!(
        "streams ORDERS, DEAD_LETTERS and DEFERRALS, bucket INVENTORY and the consumers of {steps} are provisioned"
    ))?)
}

/// The one line for the operator: the failure, its cause as far as known, and the fix.
fn not_done(connection: &Connection, timeout: humantime::Duration, why: &str) -> anyhow::Error {
    if !connection.is_up() {
        return anyhow!("not done within {timeout}: {}", connection.away());
    }
    match connection.refused_at_all() {
        Some(refused) => anyhow!(
            "not done within {timeout}: {refused}; use a user with these rights, as the provisioner of deploy/nats/accounts.conf"
        ),
        None => anyhow!("not done within {timeout}: {why}"),
    }
}
