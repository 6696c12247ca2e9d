//! `waybill dev`: the whole system on this machine, from one command.

mod board;
mod broker;
mod catalogue;
mod children;
mod data_dir;
mod gateway;
mod log;
mod observe;
mod payment_sandbox;
mod ports;
mod processors;
mod programs;
mod samples;
mod signals;
mod summary;

use anyhow::{anyhow, bail};
use tokio::select;

use crate::args::DevArgs;
use crate::program_path::program_path;
use crate::{client, console};

use broker::Broker;
use children::Children;
use data_dir::DataDir;
use gateway::Gateway;
use observe::Jaeger;
use programs::Programs;
use signals::Signals;
use summary::Summary;

/// Runs until a signal, or with `--exit` until the sample orders are finished; then stops every child. An error
/// if something did not go as it should.
pub(crate) async fn run(args: &DevArgs) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let data = DataDir::lock(&args.data_dir)?;
    let programs = Programs::find(args)?;
    broker::check_version(&programs.nats_server).await?;
    ports::check_free(args)?;

    let mut children = Children::new(data.logs());
    let outcome = select! {
        biased;
        signal = signals.next() => interrupted(args, signal),
        outcome = run_programs(args, &data, programs, &mut children) => outcome,
    };
    children.stop(&mut signals).await;
    outcome
}

/// Returns only with an error, or with `--exit`.
async fn run_programs(
    args: &DevArgs,
    data: &DataDir,
    mut programs: Programs,
    children: &mut Children,
) -> anyhow::Result<()> {
    let jaeger = match &programs.observers {
        Some(observers) => Some(observe::start_jaeger(args, data, observers, children).await?),
        None => None,
    };
    if let Some(jaeger) = &jaeger {
        programs.variables = jaeger.variables();
    }
    let programs = &programs;
    let broker = broker::start(args, data, programs, children).await?;
    let payment_url = match args.payment_url.as_ref().filter(|payment_url| !payment_url.is_empty()) {
        Some(payment_url) => payment_url.clone(),
        None => payment_sandbox::start(args, data, programs, children).await?,
    };
    let gateway = gateway::start(args, programs, &broker, children).await?;
    processors::start(args, programs, &broker, &payment_url, children).await?;
    let prometheus = match &programs.observers {
        Some(observers) => {
            let mut targets = processors::ops_addrs(programs, children).await;
            targets.insert(0, ("gateway".to_owned(), gateway.ops_addr));
            Some(observe::start_prometheus(args, data, observers, &targets, children).await?)
        }
        None => None,
    };

    let orders = client::orders(client::endpoint(gateway.uri()?).connect_lazy(), args.credential.clone());
    let summary = children.while_alive(samples::run(args, orders)).await?;
    if let Some(summary) = &summary {
        console::tell(&format!("\n{summary}"));
    }
    if args.exit {
        return verdict(summary.as_ref());
    }
    console::tell(&usage_hint(args, &broker, &payment_url, &gateway, summary.as_ref()));
    if let (Some(jaeger), Some(prometheus)) = (&jaeger, &prometheus) {
        console::tell(&observability_hint(jaeger, prometheus, summary.as_ref()));
    }
    Err(children.exit().await)
}

fn interrupted(args: &DevArgs, signal: &str) -> anyhow::Result<()> {
    if args.exit {
        bail!("{signal} before the sample orders finished");
    }
    console::tell(&format!("\n{signal}: stopping"));
    Ok(())
}

fn verdict(summary: Option<&Summary>) -> anyhow::Result<()> {
    match summary.map_or(0, Summary::unfinished) {
        0 => Ok(()),
        unfinished => Err(anyhow!("{unfinished} sample orders did not finish")),
    }
}

/// The query uses Jaeger's API, which works without Jaeger's web pages too.
fn observability_hint(jaeger: &Jaeger, prometheus: &str, summary: Option<&Summary>) -> String {
    let order_id = summary.and_then(Summary::an_order_id).unwrap_or("ORDER_ID");
    let jaeger = &jaeger.url;
    format!(
        "
Traces are at {jaeger}, metrics at {prometheus}, alerts at {prometheus}/api/v1/alerts. The builds that `make observe` installs have
no web UI; use their APIs:

  curl '{jaeger}/api/traces?service=waybill-gateway&tags=%7B%22waybill.order.id%22%3A%22{order_id}%22%7D'
  curl '{prometheus}/api/v1/query?query=sum%20by%20(step,outcome)%20(waybill_step_attempt_duration_seconds_count)'"
    )
}

fn usage_hint(
    args: &DevArgs,
    broker: &Broker,
    payment_url: &str,
    gateway: &Gateway,
    summary: Option<&Summary>,
) -> String {
    let addr = gateway.grpc_addr;
    let order_id = summary.and_then(Summary::an_order_id).unwrap_or("ORDER_ID");
    let order = catalogue::example_json();
    let item = catalogue::example_item();
    let waybill = program_path();
    format!(
        "
Waybill is up: gRPC on {addr}, health on http://{ops}/health, {nats}, payments at {payment_url}, logs in {logs}.
Try it:

  grpcurl -plaintext {addr} list
  grpcurl -plaintext -d '{order}' {addr} orders.v1.OrderService/CreateOrder
  grpcurl -plaintext -d '{{\"order_id\":\"{order_id}\"}}' {addr} orders.v1.OrderService/WatchOrder
  {waybill} order --gateway http://{addr} place --customer ada --item {item} --watch
  {waybill} order --gateway http://{addr} get {order_id}
  {waybill} dead-letter --operations http://{operations} list

Ctrl-C stops everything; the data stays in {data}.",
        ops = gateway.ops_addr,
        operations = gateway.operations_addr,
        nats = broker.url,
        logs = args.data_dir.join("logs").display(),
        data = args.data_dir.display(),
    )
}
