//! `grpc.health.v1`: the state of the gateway, for the server as a whole and for its services.

use std::pin::Pin;

use futures::{Stream, StreamExt, stream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Request, Response, Status};
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_check_response};
use tonic_health::server::{HealthReporter, HealthService};

use crate::readiness::{Readiness, State};

/// The health of these services, and the task that updates it. Cancels `notified` when the drain has begun and all watchers
/// can know of it.
pub(crate) async fn service<const N: usize>(
    readiness: Readiness,
    notified: CancellationToken,
    services: [&'static str; N],
) -> (HealthServer<Watchable>, AbortOnDropHandle<()>) {
    let reporter = HealthReporter::new();
    // Registered before the first call: a watch of a name that is missing then would never learn of it.
    report(&reporter, services, &readiness.now()).await;
    let health = Watchable(HealthService::from_health_reporter(reporter.clone()));
    let following = tokio::spawn(follow(reporter, services, readiness, notified));
    (HealthServer::new(health), AbortOnDropHandle::new(following))
}

async fn follow<const N: usize>(
    reporter: HealthReporter,
    services: [&'static str; N],
    readiness: Readiness,
    notified: CancellationToken,
) {
    let mut state = readiness.follow();
    loop {
        let now = state.borrow_and_update().clone();
        report(&reporter, services, &now).await;
        if now == State::Draining || state.changed().await.is_err() {
            break;
        }
    }
    readiness.draining().cancelled().await;
    notified.cancel();
}

async fn report<const N: usize>(reporter: &HealthReporter, services: [&'static str; N], state: &State) {
    let serving = match state {
        State::Ready => ServingStatus::Serving,
        State::BrokerUnavailable(_)
        | State::NotDurable(_)
        | State::StorageFull(_)
        | State::StockMissing(_)
        | State::Draining => ServingStatus::NotServing,
    };
    for service in [""].into_iter().chain(services) {
        reporter.set_service_status(service, serving).await;
    }
}

/// tonic-health's service, except for the watch of an unknown name. That watch must report SERVICE_UNKNOWN and wait for
/// the service to appear, but the library answers NOT_FOUND (0.14.9). Names are fixed here, so none appears.
#[derive(Debug)]
pub(crate) struct Watchable(HealthService);

#[tonic::async_trait]
impl Health for Watchable {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.0.check(request).await
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        match self.0.watch(request).await {
            Ok(watch) => Ok(watch.map(StreamExt::boxed)),
            Err(status) if status.code() == Code::NotFound => {
                let status = health_check_response::ServingStatus::ServiceUnknown.into();
                let unknown = stream::iter([Ok(HealthCheckResponse { status })]);
                Ok(Response::new(unknown.chain(stream::pending()).boxed()))
            }
            Err(status) => Err(status),
        }
    }
}
