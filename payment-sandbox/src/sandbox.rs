//! The payment sandbox: a payment service that moves no money, and fails on demand. It is a process of its own, so that
//! it can be unavailable, be slow and die as a real one can.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use proto::payments::v1::payment_service_server::{PaymentServiceServer, SERVICE_NAME};
use proto::payments::v1::sandbox_control_service_server::{
    SERVICE_NAME as CONTROL_SERVICE_NAME, SandboxControlServiceServer,
};
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;
use tokio::try_join;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;

use crate::journal::OpenError;
use crate::ledger_task::{self, LedgerHandle, LedgerTask};
use crate::service::Service;

/// A request names an order, a customer and an amount.
const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// Calls that one connection may have open at once.
const CALLS_PER_CONNECTION_MAX: u32 = 1024;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The sandbox with its record read, before it serves.
#[derive(Debug)]
pub(crate) struct PaymentSandbox {
    records: LedgerHandle,
    task: LedgerTask,
}

impl PaymentSandbox {
    /// Reads the record at `path`, and makes the file if need be.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        let (records, task) = ledger_task::open(path)?;
        Ok(Self { records, task })
    }

    /// Serves until `stopping` is cancelled and the last call has ended, or the record cannot be written.
    pub(crate) async fn serve(
        self,
        listener: TcpListener,
        stopping: CancellationToken,
    ) -> anyhow::Result<()> {
        let Self { records, task } = self;
        // Ends when the server drops the last handle.
        let keeping = spawn_blocking(|| task.run());
        let keeping = async { keeping.await?.context("PAYMENT_SANDBOX_DATA cannot be written") };
        try_join!(serve(records, listener, stopping), keeping)?;
        Ok(())
    }
}

async fn serve(
    records: LedgerHandle,
    listener: TcpListener,
    stopping: CancellationToken,
) -> anyhow::Result<()> {
    let service = Service::new(records, stopping.clone());
    let payments = PaymentServiceServer::new(service.clone()).max_decoding_message_size(REQUEST_BYTES_MAX);
    let control = SandboxControlServiceServer::new(service).max_decoding_message_size(REQUEST_BYTES_MAX);
    let (reporter, health) = tonic_health::server::health_reporter();
    for name in ["", SERVICE_NAME, CONTROL_SERVICE_NAME] {
        reporter.set_service_status(name, ServingStatus::Serving).await;
    }
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::PAYMENTS_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // Error details, so that grpcurl decodes them.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(payments)
        .add_service(control)
        // Responses are small and must not wait for Nagle's algorithm.
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            stopping.cancelled_owned(),
        )
        .await?;
    Ok(())
}
