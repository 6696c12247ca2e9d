//! The gRPC server: which services stand on the port, behind what, and within which limits.

use std::time::Duration;

use backbone::log::OrderLog;
use proto::orders::v1::order_service_server::OrderServiceServer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tonic::server::NamedService;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::config::Config;
use crate::connections;
use crate::orders::Orders;
use crate::rate_limit::RateLimit;
use crate::readiness::{Readiness, State};

/// Largest request; the contract says so in `OrderService`.
const REQUEST_BYTES_MAX: usize = 1024 * 1024;
/// Streams that one connection may have open at once.
const STREAMS_PER_CONNECTION_MAX: u32 = 1024;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves until the drain begins and the last call has ended.
pub(crate) async fn serve(
    listener: TcpListener,
    log: OrderLog,
    readiness: Readiness,
    config: Config,
) -> anyhow::Result<()> {
    let draining = readiness.draining();
    let orders = Orders::new(log, config.request_timeout.into(), draining.clone());
    let orders = OrderServiceServer::new(orders).max_decoding_message_size(REQUEST_BYTES_MAX);
    // One peer that calls without end must not keep the others out.
    let rate_limit = RateLimit::new(config.rate_limit, config.rate_burst);
    let _forgetting = AbortOnDropHandle::new(tokio::spawn(rate_limit.clone().forget_idle_peers()));

    let (reporter, health) = tonic_health::server::health_reporter();
    let _reporting = AbortOnDropHandle::new(tokio::spawn(report(reporter, readiness.follow())));
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // Error details, so that grpcurl shows them readable.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };

    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(InterceptedService::new(orders, move |request| rate_limit.admit(request)))
        .serve_with_incoming_shutdown(
            connections::accept(listener, config.max_connections.into(), draining.clone()),
            draining.cancelled_owned(),
        )
        .await?;
    Ok(())
}

/// Passes the state on to grpc.health.v1, for the server as a whole and for the service.
async fn report(reporter: HealthReporter, mut state: watch::Receiver<State>) {
    loop {
        let serving = match *state.borrow_and_update() {
            State::Ready => ServingStatus::Serving,
            State::BrokerAway(_) | State::Draining => ServingStatus::NotServing,
        };
        for service in ["", <OrderServiceServer<Orders> as NamedService>::NAME] {
            reporter.set_service_status(service, serving).await;
        }
        if state.changed().await.is_err() {
            return;
        }
    }
}
