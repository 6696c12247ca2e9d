//! The operators' services for dead letters and stock, on an address of their own.

mod filter;
mod page;
mod redrive;
mod requests;
mod service;
mod stock;
mod stock_requests;

pub(crate) use service::Operations;
pub(crate) use stock::StockKeeping;

use http::Response;
use proto::inventory::v1::stock_service_server::StockServiceServer;
use proto::operations::v1::dead_letter_service_server::DeadLetterServiceServer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tower::ServiceBuilder;

use crate::admission::{Metadata, Probes};
use crate::auth::Authentication;
use crate::config::Config;
use crate::deadline::CallerDeadline;
use crate::gate::Gate;
use crate::readiness::Readiness;
use crate::spans::Spans;
use crate::transport::connections::ConnectionLimit;
use crate::transport::peer::KeepAuthenticated;
use crate::transport::tls::Tls;
use crate::transport::{connections, server};
use crate::{browser, health, malformed, panics, reflection};

/// Largest request: a thousand ids, with room to spare.
const REQUEST_BYTES_MAX: usize = 128 * 1024;
/// Few operators connect at a time.
const CONNECTIONS_MAX: usize = 64;
const STREAMS_PER_CONNECTION_MAX: u32 = 64;

/// Serves until the drain begins and the last call has ended.
pub(crate) async fn serve(
    listener: TcpListener,
    (letters, stock): (Operations, StockKeeping),
    readiness: Readiness,
    authentication: Authentication,
    tls: Option<Tls>,
    config: Config,
) -> anyhow::Result<()> {
    let draining = readiness.draining();
    let letters = DeadLetterServiceServer::new(letters).max_decoding_message_size(REQUEST_BYTES_MAX);
    let stock = StockServiceServer::new(stock).max_decoding_message_size(REQUEST_BYTES_MAX);
    // Only calls with the role pass. Their connections are not evicted.
    let operators = ServiceBuilder::new().layer(Gate(authentication)).layer(Gate(KeepAuthenticated));

    let notified = CancellationToken::new();
    let probes = ServiceBuilder::new().layer(Probes::new(notified.clone()));
    let services = [DeadLetterServiceServer::<Operations>::NAME, StockServiceServer::<StockKeeping>::NAME];
    let (health, _reporting) = health::service(readiness, notified, services).await;
    let mut routes = Routes::new(probes.service(health))
        .add_service(operators.service(letters))
        .add_service(operators.service(stock));
    if config.reflection {
        let (v1, v1alpha) = reflection::services(proto::OPERATIONS_DESCRIPTOR_SET)?;
        routes = routes.add_service(probes.service(v1)).add_service(probes.service(v1alpha));
    }
    let service = ServiceBuilder::new()
        // Any web page may send other content types without a CORS preflight, with the operator's certificate.
        .layer(Gate(browser::OnlyGrpc))
        .map_response(|answer: Response<_>| answer.map(Body::new))
        // A panic is answered with INTERNAL, not by a broken connection.
        .layer(panics::layer())
        // Before the layers that reject, so that rejected calls are traced and counted too.
        .layer(Spans)
        // Stops work for a caller that no longer waits.
        .layer(CallerDeadline)
        .layer(Gate(Metadata))
        .layer(Gate(browser::OnlyPost))
        .map_response(malformed::answer)
        .service(routes.prepare());
    let limits = server::Limits {
        streams_per_connection_max: STREAMS_PER_CONNECTION_MAX,
        allows_http1: false,
        age_max: config.max_connection_age,
        age_grace: config.max_connection_age_grace,
    };
    let incoming =
        connections::accept(listener, ConnectionLimit::with_eviction(CONNECTIONS_MAX), tls, draining.clone());
    server::serve(incoming, service, limits, draining).await;
    Ok(())
}
