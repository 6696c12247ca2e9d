//! The gRPC server: the services on the port, the layers before them, and the limits.

use std::sync::Arc;

use backbone::log::OrderLog;
use proto::orders::v1::order_service_server::OrderServiceServer;
use routes::Routes;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::server::NamedService;
use tonic::service::Routes as Services;
use tonic_web::GrpcWebLayer;
use tower::ServiceBuilder;
use tower::util::option_layer;

use crate::admission::{Calls, ConcurrencyLimit, Metadata, Probes, RateLimit};
use crate::auth::Authentication;
use crate::config::Config;
use crate::deadline::CallerDeadline;
use crate::gate::Gate;
use crate::orders::Orders;
use crate::readiness::Readiness;
use crate::spans::Spans;
use crate::transport::connections::ConnectionLimit;
use crate::transport::tls::Tls;
use crate::transport::{connections, server};
use crate::{browser, errors, health, malformed, panics, reflection};

/// Largest request; documented in `OrderService`.
const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// Methods that answer with a stream: they count towards the limit of streams, not of calls.
const STREAMS: &[&str] = &["WatchOrder", "WatchOrders"];
/// Streams that one connection may have open at once.
const STREAMS_PER_CONNECTION_MAX: u32 = 1024;

/// Serves until the drain begins and the last call has ended.
pub(crate) async fn serve(
    listener: TcpListener,
    log: OrderLog,
    routes: Arc<Routes>,
    readiness: Readiness,
    authentication: Authentication,
    tls: Option<Tls>,
    config: Config,
) -> anyhow::Result<()> {
    let draining = readiness.draining();
    let streams =
        ConcurrencyLimit::new(config.max_streams, config.max_streams_per_caller, errors::too_many_streams);
    let orders = Orders::new(log, routes, config.request_timeout, readiness.clone(), streams);
    let orders = OrderServiceServer::new(orders).max_decoding_message_size(REQUEST_BYTES_MAX);
    let rate_limit = RateLimit::new(config.rate_limits());
    let _following = AbortOnDropHandle::new(tokio::spawn(authentication.clone().follow()));
    let _renewing = tls.clone().map(|tls| AbortOnDropHandle::new(tokio::spawn(tls.follow())));
    let _forgetting = AbortOnDropHandle::new(tokio::spawn(rate_limit.clone().forget_idle_callers()));

    let calls = Calls {
        limit: ConcurrencyLimit::new(
            config.max_concurrent_requests,
            config.max_concurrent_requests_per_caller,
            errors::too_many_calls,
        ),
        message_timeout: config.request_timeout,
        request_bytes_max: 2 * REQUEST_BYTES_MAX,
        streams: STREAMS,
    };
    let orders = ServiceBuilder::new()
        // The layers below know the principal.
        .layer(Gate(authentication))
        // One caller must not use up the capacity of the others.
        .layer(Gate(rate_limit))
        // Sheds load: with too many calls in flight all of them would be late.
        .layer(calls)
        .service(orders);
    let notified = CancellationToken::new();
    // Probes need no credential, so they have limits of their own.
    let probes = ServiceBuilder::new().layer(Probes::new(notified.clone()));

    let (health, _reporting) =
        health::service(readiness, notified, [OrderServiceServer::<Orders>::NAME]).await;
    let mut services = Services::new(probes.service(health)).add_service(orders);
    if config.reflection {
        let (v1, v1alpha) = reflection::services(proto::DESCRIPTOR_SET)?;
        services = services.add_service(probes.service(v1)).add_service(probes.service(v1alpha));
    }
    let service = ServiceBuilder::new()
        .layer(option_layer(browser::cors(&config.cors_allowed_origins)))
        // Any web page may send other content types without a CORS preflight.
        .layer(Gate(browser::OnlyGrpc))
        .layer(GrpcWebLayer::new())
        // A panic is answered with INTERNAL, not by a broken connection.
        .layer(panics::layer())
        // Before the layers that reject, so that rejected calls are traced and counted too.
        .layer(Spans)
        // Stops work for a caller that no longer waits.
        .layer(CallerDeadline)
        .layer(Gate(Metadata))
        .layer(Gate(browser::OnlyPost))
        .map_response(malformed::answer)
        .service(services.prepare());
    let limits = server::Limits {
        streams_per_connection_max: STREAMS_PER_CONNECTION_MAX,
        allows_http1: true,
        age_max: config.max_connection_age,
        age_grace: config.max_connection_age_grace,
    };
    let incoming =
        connections::accept(listener, ConnectionLimit::of(config.max_connections), tls, draining.clone());
    server::serve(incoming, service, limits, draining).await;
    Ok(())
}
