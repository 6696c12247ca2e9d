//! The gateway: takes orders over gRPC and answers once they are durable.
//!
//! A library only so that the fuzz targets reach its parsers; the program is [`main`].

mod admission;
mod auth;
mod broker_errors;
mod browser;
mod carrier;
mod config;
mod deadline;
mod durability;
mod errors;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod gate;
mod grpc;
mod health;
mod idempotency;
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
mod resumer;
mod route_steps;
mod spans;
mod streams;
mod transport;
mod validation;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use backbone::broker::connection::Connection;
use backbone::dead_letters::DeadLetters;
use backbone::log::OrderLog;
use program::shutdown::{self, Shutdown};
use program::{Prepared, ops};
use routes::Routes;
use stock::Presence;
use tokio::net::TcpListener;
use tokio::select;
use tokio::time::sleep;
use tracing::info;

use crate::auth::Authentication;
use crate::carrier::Carrier;
use crate::config::Config;
use crate::durability::Monitors;
use crate::operations::{Operations, StockKeeping};
use crate::readiness::Readiness;
use crate::route_steps::RouteSteps;
use crate::streams::Streams;
use crate::transport::open_files;
use crate::transport::tls::Tls;

/// The whole program: reads its settings, and serves until it is stopped.
#[tokio::main]
pub async fn main() -> ExitCode {
    let prepare = |config: Config| {
        let tls = Tls::read(&config.tls)?;
        let authentication = config.authentication()?;
        let routes = Routes::read(&config.routes).map_err(|error| error.to_string())?;
        let telemetry = config.telemetry.clone();
        Ok(Prepared { telemetry, has_metrics: true, settings: (config, tls, authentication, routes) })
    };
    program::run(prepare, serve).await
}

async fn serve(
    (config, tls, authentication, routes): (Config, Option<Tls>, Authentication, Routes),
    mut shutdown: Shutdown,
) -> anyhow::Result<()> {
    open_files::allow(config.max_connections);
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

    let monitors = Monitors::new(&config.durability).context("cannot read the system's certificates")?;
    let streams = Streams::new(connection.clone(), config.durability.durability, &config.stream);
    let routes = Arc::new(routes);
    info!(default = routes.default_name(), routes = %routes.names().collect::<Vec<_>>().join(", "), "routes read");
    let steps = RouteSteps::of(&routes);
    let readiness = Readiness::new(streams, Presence::new(connection.clone()), steps);
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
    let until_drain = drain.clone();
    let mut operating = tokio::spawn(async move {
        match operations {
            Some(serving) => serving.await,
            None => {
                until_drain.cancelled().await;
                Ok(())
            }
        }
    });
    let mut serving = tokio::spawn(grpc::serve(
        grpc_listener,
        log.clone(),
        routes,
        readiness.clone(),
        authentication,
        tls,
        config.clone(),
    ));
    let carrying = tokio::spawn(Carrier::new(log.clone(), config.carry_after).keep());
    let resuming = tokio::spawn(resumer::keep(log.clone()));
    let mut watching = tokio::spawn(readiness.clone().keep(log, letters, monitors, config.stream));
    let mut answering = tokio::spawn(ops::serve(ops_listener, readiness.clone()));

    let outcome = select! {
        () = shutdown.requested() => {
            readiness.leave();
            // New calls are still answered until load balancers and clients notice.
            sleep(config.drain_delay).await;
            Ok(())
        }
        ended = &mut serving => ended?,
        ended = &mut operating => ended?,
        ended = &mut answering => match ended? {},
        ended = &mut watching => ended?.map_err(Into::into),
        () = connection.died() => Err(anyhow!("NATS client stopped")),
    };
    readiness.leave();
    drain.cancel();
    let last_calls = async {
        for served in [&mut serving, &mut operating] {
            // The outcome of a finished task was taken by the select, or is Ok.
            if !served.is_finished() {
                drop(served.await);
            }
        }
    };
    shutdown::drain(config.drain_timeout, last_calls).await;
    answering.abort();
    watching.abort();
    carrying.abort();
    resuming.abort();
    connection.flush().await;
    outcome
}
