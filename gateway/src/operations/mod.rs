//! What operators do about orders that are parked, on an address of its own.

mod page;
mod redrive;
mod requests;
mod service;

pub(crate) use service::Operations;

use proto::operations::v1::dead_letter_service_server::DeadLetterServiceServer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tower::ServiceBuilder;

use crate::admission::{Gate, Probes};
use crate::auth::Authentication;
use crate::config::Config;
use crate::connections::{Acquaint, Limit};
use crate::grpc::{HEADER_BYTES_MAX, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT};
use crate::readiness::Readiness;
use crate::spans::Spans;
use crate::tls::Tls;
use crate::{connections, health, panics, reflection};

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
    let (reflection_v1, reflection_v1alpha) = if config.reflection {
        let (v1, v1alpha) = reflection::services(proto::OPERATIONS_DESCRIPTOR_SET)?;
        (Some(probes.service(v1)), Some(probes.service(v1alpha)))
    } else {
        (None, None)
    };

    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .max_connection_age(config.max_connection_age)
        .max_connection_age_grace(config.max_connection_age_grace)
        // One call that panics must not look like a broken connection.
        .layer(panics::layer())
        // Calls that are refused are to be seen, too.
        .layer(Spans)
        .add_service(probes.service(health))
        .add_optional_service(reflection_v1)
        .add_optional_service(reflection_v1alpha)
        .add_service(service)
        .serve_with_incoming_shutdown(
            connections::accept(listener, Limit::of_acquaintances(CONNECTIONS_MAX), tls, draining.clone()),
            draining.cancelled_owned(),
        )
        .await?;
    Ok(())
}
