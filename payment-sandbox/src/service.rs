//! The services of the sandbox: `payments.v1.PaymentService`, and the control over it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use program::trace::{self, Context, FutureExt, KeyValue, TRACEPARENT, TRACESTATE, attribute};
use proto::payments::v1::payment_service_server::PaymentService;
use proto::payments::v1::sandbox_control_service_server::SandboxControlService;
use proto::payments::v1::{
    CaptureRequest, CaptureResponse, Fault, GetLedgerRequest, GetLedgerResponse, RefundRequest,
    RefundResponse, ResetBehaviourRequest, ResetBehaviourResponse, SetBehaviourRequest, SetBehaviourResponse,
};
use tokio::select;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};
use tracing::field::Empty;
use tracing::{Span, info_span};

use crate::behaviour::{Behaviour, Behaviours};
use crate::ledger::{Charge, Refusal, is_declined};
use crate::ledger_task::{LedgerHandle, RecordError};

const KEY_BYTES_MAX: usize = 128;
const ID_BYTES_MAX: usize = 256;
const LATENCY_MAX: Duration = Duration::from_secs(60 * 60);
/// Domain of the reasons in ErrorInfo.
const DOMAIN: &str = "payments.waybill";
const KEY_REUSED: &str = "IDEMPOTENCY_KEY_REUSED";
/// Customers whose id begins so get answers that make no sense, also after a restart.
const NONSENSE_PREFIX: &str = "nonsense";

/// The sandbox, as it is served. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Service {
    records: LedgerHandle,
    behaviours: Arc<Behaviours>,
    calls: Arc<CallCounts>,
    stopping: CancellationToken,
}

/// Calls since the start.
#[derive(Debug, Default)]
struct CallCounts {
    captures: AtomicI64,
    refunds: AtomicI64,
}

impl Service {
    /// Serves these records until `stopping` is cancelled, which ends every wait.
    pub(super) fn new(records: LedgerHandle, stopping: CancellationToken) -> Self {
        Self { records, behaviours: Arc::default(), calls: Arc::default(), stopping }
    }

    /// Serves calls with the configured behaviour.
    async fn apply_behaviour<T>(
        &self,
        behaviour: Behaviour,
        work: impl Future<Output = Result<T, RecordError>>,
    ) -> Result<T, Status> {
        if !behaviour.latency.is_zero() {
            select! {
                () = sleep(behaviour.latency) => {}
                () = self.stopping.cancelled() => return Err(stopped()),
            }
        }
        if behaviour.fault == Fault::Outage {
            return Err(Status::unavailable("unavailable, as SetBehaviour requested"));
        }
        let outcome = work.await.map_err(|error| refused(&error))?;
        if behaviour.fault == Fault::LostReply {
            // The call ends with the caller's deadline or cancellation.
            self.stopping.cancelled().await;
            return Err(stopped());
        }
        Ok(outcome)
    }
}

#[tonic::async_trait]
impl PaymentService for Service {
    async fn capture(&self, request: Request<CaptureRequest>) -> Result<Response<CaptureResponse>, Status> {
        self.calls.captures.fetch_add(1, Ordering::Relaxed);
        let (span, context) = serving(request.metadata(), "payments.v1.PaymentService/Capture");
        let answer = async {
            let (key, charge) = charge_in(request.into_inner())?;
            let order_id = KeyValue::new(attribute::ORDER_ID, charge.order_id.clone());
            trace::with_current(|call| call.set_attribute(order_id));
            let behaviour = self.behaviours.next(&charge.customer_id);
            if is_nonsense(behaviour, &charge.customer_id) {
                let outcome = self.apply_behaviour(behaviour, async { Ok(None) }).await?;
                return Ok(Response::new(CaptureResponse { outcome }));
            }
            let decline = behaviour.fault == Fault::Decline || is_declined(&charge.customer_id);
            let outcome = self.apply_behaviour(behaviour, self.records.capture(key, charge, decline)).await?;
            Ok(Response::new(CaptureResponse { outcome: Some(outcome) }))
        };
        let answer = answer.with_context(context).await;
        served(&span, answer)
    }

    async fn refund(&self, request: Request<RefundRequest>) -> Result<Response<RefundResponse>, Status> {
        self.calls.refunds.fetch_add(1, Ordering::Relaxed);
        let (span, context) = serving(request.metadata(), "payments.v1.PaymentService/Refund");
        let answer = async {
            let key = checked_key(request.into_inner().idempotency_key)?;
            let customer_id = self.records.customer_of(&key).await.map_err(|error| refused(&error))?;
            let customer_id = customer_id.unwrap_or_default();
            let behaviour = self.behaviours.next(&customer_id);
            if is_nonsense(behaviour, &customer_id) {
                let outcome = self.apply_behaviour(behaviour, async { Ok(None) }).await?;
                return Ok(Response::new(RefundResponse { outcome }));
            }
            let outcome = self.apply_behaviour(behaviour, self.records.refund(key)).await?;
            Ok(Response::new(RefundResponse { outcome: Some(outcome) }))
        };
        let answer = answer.with_context(context).await;
        served(&span, answer)
    }
}

#[tonic::async_trait]
impl SandboxControlService for Service {
    async fn set_behaviour(
        &self,
        request: Request<SetBehaviourRequest>,
    ) -> Result<Response<SetBehaviourResponse>, Status> {
        let SetBehaviourRequest { customer_id, behaviour } = request.into_inner();
        check_id("customer_id", &customer_id)?;
        let behaviour = behaviour.unwrap_or_default();
        let fault = Fault::try_from(behaviour.fault)
            .map_err(|_| Status::invalid_argument("behaviour.fault is unknown"))?;
        let calls = behaviour.calls.try_into().map_err(|_| {
            Status::invalid_argument(format!("behaviour.calls must be 0 or more, not {}", behaviour.calls))
        })?;
        let latency = behaviour.latency.unwrap_or_default();
        let latency = Duration::try_from(latency).ok().filter(|latency| *latency <= LATENCY_MAX);
        let latency = latency.ok_or_else(|| {
            Status::invalid_argument(format!("behaviour.latency must be 0s to {LATENCY_MAX:?}"))
        })?;
        self.behaviours
            .set(customer_id, Behaviour { latency, fault }, calls)
            .map_err(|error| Status::resource_exhausted(error.to_string()))?;
        Ok(Response::new(SetBehaviourResponse {}))
    }

    async fn reset_behaviour(
        &self,
        _: Request<ResetBehaviourRequest>,
    ) -> Result<Response<ResetBehaviourResponse>, Status> {
        self.behaviours.reset();
        Ok(Response::new(ResetBehaviourResponse {}))
    }

    async fn get_ledger(
        &self,
        request: Request<GetLedgerRequest>,
    ) -> Result<Response<GetLedgerResponse>, Status> {
        let of_order = self.records.of_order(request.into_inner().order_id);
        let ledger = of_order.await.map_err(|error| refused(&error))?;
        Ok(Response::new(GetLedgerResponse {
            capture_calls: self.calls.captures.load(Ordering::Relaxed),
            refund_calls: self.calls.refunds.load(Ordering::Relaxed),
            ..ledger
        }))
    }
}

fn is_nonsense(behaviour: Behaviour, customer_id: &str) -> bool {
    behaviour.fault == Fault::Nonsense || customer_id.starts_with(NONSENSE_PREFIX)
}

/// The span of a call, in its caller's trace.
fn serving(metadata: &MetadataMap, name: &'static str) -> (Span, Context) {
    let all = |key| metadata.get_all(key).into_iter().map(|value| value.as_encoded_bytes());
    let span = info_span!(
        "call",
        otel.name = name,
        otel.kind = "server",
        rpc.system.name = "grpc",
        rpc.method = name,
        rpc.response.status_code = Empty,
        waybill.order.id = Empty,
    );
    let context = trace::continue_in(&span, trace::extract(all(TRACEPARENT), all(TRACESTATE)));
    (span, context)
}

fn served<T>(span: &Span, answer: Result<T, Status>) -> Result<T, Status> {
    let code = proto::code_name(answer.as_ref().err().map_or(Code::Ok, Status::code));
    span.record("rpc.response.status_code", code);
    if let Err(status) = &answer
        && attribute::is_server_error(code)
    {
        trace::fail(span, code, &status.message());
    }
    answer
}

fn charge_in(request: CaptureRequest) -> Result<(String, Charge), Status> {
    let CaptureRequest { idempotency_key, order_id, customer_id, amount, payment_method } = request;
    let key = checked_key(idempotency_key)?;
    check_id("order_id", &order_id)?;
    check_id("customer_id", &customer_id)?;
    check_id("payment_method", &payment_method)?;
    let amount = amount.ok_or_else(|| Status::invalid_argument("amount is missing"))?;
    let is_code =
        amount.currency_code.len() == 3 && amount.currency_code.bytes().all(|byte| byte.is_ascii_uppercase());
    if !is_code || amount.minor_units < 0 {
        return Err(Status::invalid_argument("amount must be an ISO 4217 code and 0 or more minor units"));
    }
    let (currency_code, minor_units) = (amount.currency_code, amount.minor_units);
    Ok((key, Charge { order_id, customer_id, currency_code, minor_units, payment_method }))
}

fn checked_key(key: String) -> Result<String, Status> {
    let is_good = (1..=KEY_BYTES_MAX).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
    is_good.then_some(key).ok_or_else(|| {
        Status::invalid_argument(format!(
            "idempotency_key must be 1-{KEY_BYTES_MAX} printable ASCII characters"
        ))
    })
}

fn check_id(field: &str, id: &str) -> Result<(), Status> {
    if id.len() > ID_BYTES_MAX {
        return Err(Status::invalid_argument(format!("{field} must be at most {ID_BYTES_MAX} bytes")));
    }
    Ok(())
}

fn refused(error: &RecordError) -> Status {
    match error {
        RecordError::Refused(Refusal::KeyReused) => {
            let details = ErrorDetails::with_error_info(KEY_REUSED, DOMAIN, HashMap::new());
            Status::with_error_details(Code::AlreadyExists, error.to_string(), details)
        }
        RecordError::Refused(Refusal::Full) => Status::resource_exhausted(error.to_string()),
        RecordError::Gone => Status::unavailable(error.to_string()),
    }
}

fn stopped() -> Status {
    Status::unavailable("the sandbox is stopping")
}
