//! What operators do about orders that are parked, on an address of its own.

mod page;
mod redrive;
mod requests;
mod service;

pub(crate) use service::Operations;

use http::Response;
use proto::operations::v1::dead_letter_service_server::DeadLetterServiceServer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::service::Routes;
use tower::ServiceBuilder;

use crate::admission::{Gate, Metadata, Probes};
use crate::auth::Authentication;
use crate::config::Config;
use crate::connections::{Acquaint, Limit};
use crate::deadline::CallerDeadline;
use crate::readiness::Readiness;
use crate::spans::Spans;
use crate::tls::Tls;
use crate::{browser, connections, health, malformed, panics, reflection, server};

/// Largest request: a thousand ids, with room to spare.
const REQUEST_BYTES_MAX: usize = 128 * 1024;
/// Operators are few.
const CONNECTIONS_MAX: usize = 64;
const STREAMS_PER_CONNECTION_MAX: u32 = 64;

/// Serves until the drain begins and the last call has ended.
pub(crate) async fn serve(
    listener: TcpListener,
    service: Operations,
    readiness: Readiness,
    authentication: Authentication,
    tls: Option<Tls>,
    config: Config,
) -> anyhow::Result<()> {
    let draining = readiness.draining();
    let service = DeadLetterServiceServer::new(service).max_decoding_message_size(REQUEST_BYTES_MAX);
    let service = ServiceBuilder::new()
        // Nobody without the role gets any further.
        .layer(Gate(authentication))
        .layer(Gate(Acquaint))
        .service(service);

    let told = CancellationToken::new();
    let probes = ServiceBuilder::new().layer(Probes::new(told.clone()));
    let (health, _reporting) = health::service::<DeadLetterServiceServer<Operations>>(readiness, told).await;
    let mut routes = Routes::new(probes.service(health)).add_service(service);
    if config.reflection {
        let (v1, v1alpha) = reflection::services(proto::OPERATIONS_DESCRIPTOR_SET)?;
        routes = routes.add_service(probes.service(v1)).add_service(probes.service(v1alpha));
    }
    let service = ServiceBuilder::new()
        // A page of anybody's may send other types without asking first, with the operator's certificate.
        .layer(Gate(browser::OnlyGrpc))
        .map_response(|answer: Response<_>| answer.map(Body::new))
        // One call that panics must not look like a broken connection.
        .layer(panics::layer())
        // Calls that are refused are to be seen, too.
        .layer(Spans)
        // A caller that no longer waits costs nothing more.
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
        connections::accept(listener, Limit::of_acquaintances(CONNECTIONS_MAX), tls, draining.clone());
    server::serve(incoming, service, limits, draining).await;
    Ok(())
}
