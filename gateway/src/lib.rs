//! The gateway: takes orders over gRPC and answers once they are durable.
//!
//! A library only so that the fuzz targets reach its parsers; the program is [`main`].

mod admission;
mod auth;
mod browser;
mod carrier;
mod config;
mod deadline;
mod durability;
mod errors;
mod failures;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod gate;
mod grpc;
mod health;
mod losses;
mod lost_letters;
mod malformed;
mod methods;
mod metrics;
mod operations;
mod orders;
mod page_token;
mod panics;
mod readiness;
mod reflection;
mod spans;
mod streams;
mod transport;
mod validation;

use std::process::ExitCode;

use anyhow::{Context, anyhow};
use backbone::broker::connection::Connection;
use backbone::dead_letters::DeadLetters;
use backbone::log::OrderLog;
use program::metrics::Metrics;
use program::ops;
use program::shutdown::Shutdown;
use program::telemetry;
use program::trace::export::Traces;
use stock::Presence;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use tokio::{join, select};
use tracing::{error, info, warn};

use crate::auth::Authentication;
use crate::carrier::Carrier;
use crate::config::Config;
use crate::durability::Monitors;
use crate::operations::{Operations, StockKeeping};
use crate::readiness::Readiness;
use crate::streams::Streams;
use crate::transport::open_files;
use crate::transport::tls::Tls;

/// The whole program: reads its settings, and serves until it is told to stop.
#[tokio::main]
pub async fn main() -> ExitCode {
    let config: Config = match program::config::parse() {
        Ok(config) => config,
        Err(code) => return code,
    };
    let tls = match Tls::read(&config.tls) {
        Ok(tls) => tls,
        Err(reason) => return program::config::refuse(&reason),
    };
    let authentication = match config.authentication() {
        Ok(authentication) => authentication,
        Err(reason) => return program::config::refuse(&reason),
    };
    let _telemetry = telemetry::start(&config.telemetry);
    open_files::allow(config.max_connections);
    let traces = match Traces::start("waybill-gateway") {
        Ok(traces) => traces,
        Err(reason) => return program::config::refuse(&reason),
    };
    let metrics = match Metrics::start("waybill-gateway") {
        Ok(metrics) => metrics,
        Err(reason) => return program::config::refuse(&reason),
    };
    let code = match run(config, tls, authentication).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = format!("{error:#}"), "gateway stopped");
            ExitCode::FAILURE
        }
    };
    join!(traces.flush(), metrics.flush());
    code
}

async fn run(config: Config, tls: Option<Tls>, authentication: Authentication) -> anyhow::Result<()> {
    let mut shutdown = Shutdown::listen()?;
    let connection = Connection::open(&config.broker, "waybill-gateway").await?;
    let log = OrderLog::new(connection.clone(), "waybill-gateway").await?;
    let letters = DeadLetters::new(connection.clone()).await?;

    let grpc_listener = TcpListener::bind(config.grpc_addr)
        .await
        .map_err(config::cannot_bind("GRPC_ADDR", config.grpc_addr))?;
    let ops_listener =
        TcpListener::bind(config.ops_addr).await.map_err(config::cannot_bind("OPS_ADDR", config.ops_addr))?;
    let operations_listener = match config.operations_addr {
        Some(addr) => {
            let bound = TcpListener::bind(addr).await;
            Some(bound.map_err(config::cannot_bind("OPERATIONS_ADDR", addr))?)
        }
        None => None,
    };
    let operations_addr = operations_listener.as_ref().map(TcpListener::local_addr).transpose()?;
    let pid = std::process::id();
    info!(
        pid,
        grpc_addr = %grpc_listener.local_addr()?,
        ops_addr = %ops_listener.local_addr()?,
        operations_addr = operations_addr.map(tracing::field::display),
        "listening"
    );

    let monitors = Monitors::new(&config.durability).context("the system's certificates")?;
    let streams = Streams::new(connection.clone(), config.durability.durability, &config.stream);
    let readiness = Readiness::new(streams, Presence::new(connection.clone()));
    metrics::start(&readiness);
    let drain = readiness.draining();
    let operations = operations_listener.map(|listener| {
        let timeout = config.request_timeout;
        let letters = Operations::new(log.clone(), letters.clone(), timeout, readiness.clone());
        let stock = StockKeeping::new(log.clone(), timeout, readiness.clone());
        operations::serve(
            listener,
            (letters, stock),
            readiness.clone(),
            authentication.clone(),
            tls.clone(),
            config.clone(),
        )
    });
    let nobody = drain.clone();
    let mut operating = tokio::spawn(async move {
        match operations {
            Some(serving) => serving.await,
            None => {
                nobody.cancelled().await;
                Ok(())
            }
        }
    });
    let mut serving = tokio::spawn(grpc::serve(
        grpc_listener,
        log.clone(),
        readiness.clone(),
        authentication,
        tls,
        config.clone(),
    ));
    let carrying = tokio::spawn(Carrier::new(log.clone(), config.carry_after).keep());
    let mut watching = tokio::spawn(readiness.clone().keep(log, letters, monitors, config.stream));
    let mut answering = tokio::spawn(ops::serve(ops_listener, readiness.clone()));

    let outcome = select! {
        signal = shutdown.requested() => {
            info!(signal, drain_delay = ?config.drain_delay, "leaving");
            readiness.leave();
            // Until load balancers and clients know, calls that come are still answered.
            sleep(config.drain_delay).await;
            Ok(())
        }
        ended = &mut serving => ended?,
        ended = &mut operating => ended?,
        ended = &mut answering => match ended? {},
        ended = &mut watching => ended?.map_err(Into::into),
        () = connection.died() => Err(anyhow!("the client of the broker has died")),
    };
    readiness.leave();
    drain.cancel();
    let last_calls = async {
        for served in [&mut serving, &mut operating] {
            // One that is finished has been heard already, or has nothing to say.
            if !served.is_finished() {
                drop(served.await);
            }
        }
    };
    if timeout(config.drain_timeout, last_calls).await.is_err() {
        warn!(drain_timeout = ?config.drain_timeout, "calls were still open at the end of the drain");
    }
    answering.abort();
    watching.abort();
    carrying.abort();
    connection.flush().await;
    info!("stopped");
    outcome
}
