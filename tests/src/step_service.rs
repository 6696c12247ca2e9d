//! A step service of tests, in this process: what it answers depends on the customer, and it records its effects by key.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use proto::steps::v1::step_service_server::{StepService, StepServiceServer};
use proto::steps::v1::{
    ActRequest, ActResponse, AlreadyCompensated, CompensateRequest, CompensateResponse, Compensated,
    Completed, Deferred, NothingDone, Rejected, act_response, compensate_response,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::test_steps::{REFUSED, REFUSED_REASON};

/// It defers the orders of customers whose ids begin so, once.
pub const DEFERRED: &str = "deferred";
/// The reason of such a deferral.
pub const DEFERRED_REASON: &str = "WAITS_FOR_TEST";
/// An attribute of every completed order.
pub const ATTRIBUTE: (&str, &str) = ("carrier", "Test Parcels");

/// The service. Clones share its records.
#[derive(Clone, Debug)]
pub struct TestStepService {
    records: Arc<Mutex<HashMap<String, Record>>>,
    defers_by: Duration,
}

/// What it has on record under one key.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// When Act was called.
    pub acts: Vec<SystemTime>,
    /// Until when it deferred.
    pub until: Option<SystemTime>,
    /// Whether the effect was done.
    pub is_done: bool,
    /// How often Compensate was called.
    pub compensations: usize,
    /// The order as the last call had it.
    pub order: proto::orders::v1::Order,
}

impl TestStepService {
    /// Serves on a free port of this machine for as long as the test's runtime lives.
    pub async fn serve(defers_by: Duration) -> (Self, SocketAddr) {
        let service = Self { records: Arc::default(), defers_by };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let addr = listener.local_addr().expect("address");
        let server = Server::builder().add_service(StepServiceServer::new(service.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (service, addr)
    }

    /// What it has on record for an order.
    pub fn record(&self, order_id: &str) -> Record {
        let records = self.records();
        let mut of_order = records.values().filter(|record| record.order.order_id == order_id);
        of_order.next().cloned().unwrap_or_default()
    }

    fn records(&self) -> MutexGuard<'_, HashMap<String, Record>> {
        self.records.lock().expect("records")
    }
}

#[tonic::async_trait]
impl StepService for TestStepService {
    async fn act(&self, request: Request<ActRequest>) -> Result<Response<ActResponse>, Status> {
        let ActRequest { idempotency_key, order, .. } = request.into_inner();
        let order = order.ok_or_else(|| Status::invalid_argument("no order"))?;
        let mut records = self.records();
        let record = records.entry(idempotency_key).or_default();
        let now = SystemTime::now();
        record.acts.push(now);
        let (key, value) = ATTRIBUTE;
        let outcome = if record.compensations > 0 {
            act_response::Outcome::AlreadyCompensated(AlreadyCompensated {})
        } else if order.customer_id.starts_with(REFUSED) {
            act_response::Outcome::Rejected(Rejected {
                reason: REFUSED_REASON.to_owned(),
                message: "no".to_owned(),
            })
        } else if order.customer_id.starts_with(DEFERRED) && record.until.is_none_or(|until| until > now) {
            let until = *record.until.get_or_insert(now + self.defers_by);
            let (until, reason) = (Some(until.into()), DEFERRED_REASON.to_owned());
            act_response::Outcome::Deferred(Deferred { until, reason, message: "later".to_owned() })
        } else {
            record.is_done = true;
            let attributes = [(key.to_owned(), value.to_owned())].into();
            act_response::Outcome::Completed(Completed { attributes })
        };
        record.order = order;
        Ok(Response::new(ActResponse { outcome: Some(outcome) }))
    }

    async fn compensate(
        &self,
        request: Request<CompensateRequest>,
    ) -> Result<Response<CompensateResponse>, Status> {
        let CompensateRequest { idempotency_key, order, .. } = request.into_inner();
        let mut records = self.records();
        let record = records.entry(idempotency_key).or_default();
        record.compensations += 1;
        record.order = order.ok_or_else(|| Status::invalid_argument("no order"))?;
        let outcome = if record.is_done {
            compensate_response::Outcome::Compensated(Compensated {})
        } else {
            compensate_response::Outcome::NothingDone(NothingDone {})
        };
        Ok(Response::new(CompensateResponse { outcome: Some(outcome) }))
    }
}
