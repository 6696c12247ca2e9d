//! The life of a processor, the same for every step.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use backbone::broker::connection::Connection;
use backbone::broker::streams::{provision, provision_with_deferrals};
use backbone::dead_letters::DeadLetters;
use backbone::log::OrderLog;
use program::shutdown::{self, Shutdown};
use program::{Prepared, ops};
use tokio::net::TcpListener;
use tokio::{join, select};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::info;

use crate::config::Config;
use crate::keeping;
use crate::runtime;
use crate::status::{ProcessorStatus, Status};
use crate::step::Step;

/// How long, after the drain, a processor may take to nak the remaining messages.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs a processor until it is stopped. `open` creates the step, once the broker is available.
pub async fn run<C, S, F>(open: impl FnOnce(C, Connection) -> F) -> ExitCode
where
    C: Config,
    S: Step,
    F: Future<Output = anyhow::Result<S>>,
{
    let prepare = |config: C| {
        config.check()?;
        let telemetry = config.processor().telemetry.clone();
        Ok(Prepared { telemetry, has_metrics: true, settings: config })
    };
    program::run(prepare, |config, shutdown| work(config, open, shutdown)).await
}

async fn work<C, S, F>(
    config: C,
    open: impl FnOnce(C, Connection) -> F,
    mut shutdown: Shutdown,
) -> anyhow::Result<()>
where
    C: Config,
    S: Step,
    F: Future<Output = anyhow::Result<S>>,
{
    let (settings, profile) = (config.processor().clone(), config.step());
    let connection = Connection::open(&settings.broker, profile.name).await?;
    let log = OrderLog::of_step(connection.clone(), profile.name).await?;
    let dead_letters = DeadLetters::new(connection.clone()).await?;
    let status = ProcessorStatus {
        step: Status::new(profile.name, connection.clone()),
        carried: profile.carried.map(|consumer| Status::new(consumer, connection.clone())),
    };
    let _ops_server = match settings.ops_addr {
        Some(addr) => Some(serve_ops(addr, status.clone()).await?),
        None => None,
    };
    let drain = CancellationToken::new();

    let processing = async {
        let opening = async {
            let waiting = |reason| status.step.waits(reason);
            if profile.defers {
                provision_with_deferrals(&connection, &settings.stream, waiting).await?;
            } else {
                provision(&connection, &settings.stream, waiting).await?;
            }
            status.step.waits("step is starting".to_owned());
            open(config, connection.clone()).await
        };
        let step = select! {
            step = opening => Arc::new(step?),
            // No work has started.
            () = drain.cancelled() => return Ok(()),
        };
        let opened = step.clone();
        status.step.set_dependency_check(move || opened.lacks());
        let monitoring = async {
            select! {
                biased;
                () = drain.cancelled() => {}
                () = status.monitor(&log) => {}
            }
        };
        let keeping = async {
            if let Some(carried) = &status.carried {
                keeping::keep(profile, step.clone(), log.connection(), &settings, carried, &drain).await;
            }
        };
        join!(
            runtime::process(
                profile,
                step.clone(),
                log.clone(),
                dead_letters,
                &settings,
                &status.step,
                &drain
            ),
            keeping,
            monitoring,
        );
        Ok(())
    };
    tokio::pin!(processing);
    select! {
        // Ends by itself only with an error.
        ended = &mut processing => return ended,
        () = log.keep_quorum() => {}
        never = log.watch_for_losses() => match never {},
        () = connection.died() => bail!("NATS client stopped"),
        () = shutdown.requested() => {}
    }
    drain.cancel();
    status.set_draining();
    // `process` ends earlier by its own timeouts, unless a stalled broker does not accept the naks.
    if let Some(ended) = shutdown::drain(settings.drain_timeout + LEAVE_TIMEOUT, processing).await {
        ended?;
    }
    connection.flush().await;
    Ok(())
}

/// Answers probes until the returned handle is dropped.
async fn serve_ops(
    addr: SocketAddr,
    status: ProcessorStatus,
) -> anyhow::Result<AbortOnDropHandle<Infallible>> {
    let listener = TcpListener::bind(addr).await;
    let listener = listener.with_context(|| format!("cannot listen on {addr} (OPS_ADDR)"))?;
    info!(pid = std::process::id(), ops_addr = %listener.local_addr()?, "listening");
    Ok(AbortOnDropHandle::new(tokio::spawn(ops::serve(listener, status))))
}
