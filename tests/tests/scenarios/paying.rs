//! Payment by a service in another process: called as often as it takes, and charging once, whichever of the two
//! dies or says nothing.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use backbone::broker::streams::ORDERS;
use backbone::log::subjects::EventKind;
use harness::certificates::{Authority, replace};
use harness::{Deployment, Load, Options, PATIENCE, PaymentSandbox, Process, eventually, item, order_of};
use nix::sys::signal::Signal;
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Order, OrderStatus, PaymentRefunded};
use proto::payments::v1::payment_service_server::{PaymentService, PaymentServiceServer};
use proto::payments::v1::{
    Behaviour, CaptureRequest, CaptureResponse, Captured, Fault, Money, Payment, PaymentState, RefundRequest,
    RefundResponse, SetBehaviourRequest, capture_response, refund_response,
};
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Server, ServerTlsConfig};
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt;

use crate::accounting::{WHOLE_WAY, each_is_carried_out_once, ids, widgets};
use crate::events::kinds;
use crate::redelivery::take_and_die;

/// A call that gets no reply is given up after this time.
const PAYMENT_TIMEOUT: &str = "300ms";
const CUSTOMER: &str = "customer";

async fn deployment() -> Deployment {
    let mut options = Options { payment_sandbox: true, ..Options::default() };
    options.processors.push(("PAYMENT_TIMEOUT", PAYMENT_TIMEOUT.to_owned()));
    Deployment::start_with(options).await
}

async fn place(waybill: &Deployment) -> Order {
    waybill.place(order_of(CUSTOMER, "request", vec![item("widget", 2)])).await.unwrap()
}

/// The one payment that is on record for an order, as soon as it is.
async fn payment(sandbox: &PaymentSandbox, order_id: &str) -> Payment {
    let payments = eventually("a payment on record", async || {
        let payments = sandbox.ledger(order_id).await.payments;
        (!payments.is_empty()).then_some(payments)
    })
    .await;
    let [payment] = &payments[..] else { panic!("{payments:?}") };
    payment.clone()
}

/// The order is fulfilled, and one capture is all that happened to the money.
async fn is_paid_once(waybill: &mut Deployment, order_id: &str) {
    assert_eq!(waybill.finished(order_id).await.status(), OrderStatus::Fulfilled);
    waybill.idle("payment").await;
    assert_eq!(waybill.history(order_id).await, WHOLE_WAY);
    let ledger = waybill.sandbox().ledger("").await;
    assert_eq!((ledger.captures, ledger.refunds), (1, 0), "{ledger:?}");
    assert_eq!(ledger.payments.len(), 1, "{ledger:?}");
}

#[tokio::test]
async fn an_order_of_nothing_is_charged_nothing() {
    let mut waybill = deployment().await;
    // Whatever it is asked, it has no use for.
    waybill.sandbox().fail("", Fault::Nonsense, 0).await;
    let free = |request_id| {
        let mut item = item("widget", 2);
        item.unit_price.as_mut().unwrap().minor_units = 0;
        order_of(CUSTOMER, request_id, vec![item])
    };
    let order = waybill.place(free("fulfilled")).await.unwrap();
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
    let events = waybill.watch(&order.order_id, 0).await.unwrap().rest().await;
    assert_eq!(kinds(&events), WHOLE_WAY);
    let Some(Detail::Paid(paid)) = &events[2].detail else { panic!("{events:?}") };
    assert_eq!((paid.payment_id.as_str(), &paid.amount), ("", &order.total));

    waybill.kill_processors("fulfilment");
    let order = waybill.place(free("cancelled")).await.unwrap();
    waybill.reached(&order.order_id, OrderStatus::Paid).await;
    waybill.cancel(&order.order_id).await.unwrap();
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Cancelled);
    let refunded = waybill.watch(&order.order_id, 0).await.unwrap().rest().await;
    let refunded = refunded.into_iter().find_map(|event| {
        if let Some(Detail::Refunded(refunded)) = event.detail { Some(refunded) } else { None }
    });
    assert_eq!(refunded, Some(PaymentRefunded::default()));
    let ledger = waybill.sandbox().ledger("").await;
    assert_eq!((ledger.capture_calls, ledger.refund_calls), (0, 0), "{ledger:?}");
}

#[tokio::test]
async fn an_order_is_paid_by_the_service() {
    let mut waybill = deployment().await;
    let order = place(&waybill).await;
    let events = waybill.watch(&order.order_id, 0).await.unwrap().rest().await;
    assert_eq!(kinds(&events), WHOLE_WAY);
    let payment = payment(waybill.sandbox(), &order.order_id).await;
    assert_eq!((payment.state(), payment.customer_id.as_str()), (PaymentState::Captured, CUSTOMER));
    assert_eq!(payment.amount, Some(Money { currency_code: "EUR".to_owned(), minor_units: 700 }));
    let Some(Detail::Paid(paid)) = &events[2].detail else { panic!("{events:?}") };
    assert_eq!(paid.payment_id, format!("sandbox-{}", payment.idempotency_key));
    is_paid_once(&mut waybill, &order.order_id).await;
}

#[tokio::test]
async fn a_decline_rejects_the_order() {
    let mut waybill = deployment().await;
    waybill.sandbox().fail("poor", Fault::Decline, 0).await;
    for customer in ["poor", "declined-by-name"] {
        let order = waybill.place(order_of(customer, "request", vec![item("widget", 1)])).await.unwrap();
        let order = waybill.finished(&order.order_id).await;
        assert_eq!((order.status(), order.reason.as_str()), (OrderStatus::Rejected, "CARD_DECLINED"));
        let payment = payment(waybill.sandbox(), &order.order_id).await;
        assert_eq!(payment.state(), PaymentState::Declined);
    }
    let rich = waybill.place(order_of("rich", "request", vec![item("widget", 1)])).await.unwrap();
    assert_eq!(waybill.finished(&rich.order_id).await.status(), OrderStatus::Fulfilled);
    assert_eq!(waybill.held("widget").await, 1);
}

#[tokio::test]
async fn an_order_waits_for_a_service_that_is_away_and_is_finished_afterwards() {
    let mut waybill = deployment().await;
    waybill.sandbox().fail("", Fault::Outage, 0).await;
    let order = place(&waybill).await;
    eventually("failed calls", async || {
        (waybill.sandbox().ledger("").await.capture_calls >= 4).then_some(())
    })
    .await;
    assert_eq!(waybill.get(&order.order_id).await.unwrap().status(), OrderStatus::Reserved);
    assert!(waybill.sandbox().ledger("").await.payments.is_empty());
    waybill.sandbox().recover().await;
    is_paid_once(&mut waybill, &order.order_id).await;
}

#[tokio::test]
async fn a_service_that_is_started_last_is_found() {
    let mut waybill = deployment().await;
    waybill.sandbox().process.kill();
    let order = place(&waybill).await;
    waybill.reached(&order.order_id, OrderStatus::Reserved).await;
    waybill.sandbox().restart().await;
    is_paid_once(&mut waybill, &order.order_id).await;
}

#[tokio::test]
async fn a_lost_reply_is_asked_for_again() {
    let mut waybill = deployment().await;
    waybill.sandbox().fail(CUSTOMER, Fault::LostReply, 2).await;
    let order = place(&waybill).await;
    is_paid_once(&mut waybill, &order.order_id).await;
    assert!(waybill.sandbox().ledger("").await.capture_calls >= 3);
}

#[tokio::test]
async fn a_payment_step_that_dies_before_the_reply_charges_once() {
    let mut waybill = deployment().await;
    waybill.sandbox().fail("", Fault::LostReply, 0).await;
    let order = place(&waybill).await;
    payment(waybill.sandbox(), &order.order_id).await;
    waybill.kill_processors("payment");
    assert_eq!(waybill.get(&order.order_id).await.unwrap().status(), OrderStatus::Reserved);
    let calls = waybill.sandbox().ledger("").await.capture_calls;
    waybill.sandbox().recover().await;
    waybill.start_processor("payment");
    is_paid_once(&mut waybill, &order.order_id).await;
    assert!(waybill.sandbox().ledger("").await.capture_calls > calls);
}

#[tokio::test]
async fn a_service_that_dies_between_charge_and_reply_charges_once() {
    let mut waybill = deployment().await;
    waybill.sandbox().fail("", Fault::LostReply, 0).await;
    let order = place(&waybill).await;
    let charged = payment(waybill.sandbox(), &order.order_id).await;
    waybill.sandbox().restart().await;
    is_paid_once(&mut waybill, &order.order_id).await;
    assert_eq!(payment(waybill.sandbox(), &order.order_id).await, charged);
    // One process made the record, and the other found it.
    let records = waybill.sandbox().records();
    assert!(records.len() == 1 && records[0].contains("captured"), "{records:?}");
}

#[tokio::test]
async fn a_thousand_orders_are_paid_once_each_while_both_sides_die() {
    const ORDERS: usize = 1000;
    let mut waybill = deployment().await;
    let mut load = Load::start(waybill.channel(), widgets(ORDERS));
    for round in 1..=3 {
        load.acknowledged(round * ORDERS / 5).await;
        waybill.sandbox().restart().await;
        waybill.kill_processors("payment");
        waybill.start_processor("payment");
    }
    let orders = load.all().await;
    each_is_carried_out_once(&waybill, &orders).await;
    let ledger = waybill.sandbox().ledger("").await;
    assert_eq!((ledger.captures, ledger.refunds), (ORDERS as i64, 0));
    assert_eq!(ledger.captured[0].minor_units, 350 * ORDERS as i64);
    assert_eq!(ledger.payments.len(), ids(&orders).len());
}

/// The step's process has died, and the broker has noticed: else it would hand orders to the dead.
async fn die(waybill: &mut Deployment, step: &str) {
    let mut consumer = waybill.consumer(step).await;
    waybill.kill_processors(step);
    eventually("no worker that waits", async || (consumer.info().await.ok()?.num_waiting == 0).then_some(()))
        .await;
}

#[tokio::test]
async fn a_capture_that_comes_after_its_refund_is_refused() {
    let mut waybill = deployment().await;
    die(&mut waybill, "payment").await;
    let order = place(&waybill).await;
    waybill.reached(&order.order_id, OrderStatus::Reserved).await;
    // So that the cancel is all that payment gets to see of the order.
    take_and_die(&waybill.consumer("payment").await).await;
    waybill.cancel(&order.order_id).await.unwrap();
    waybill.start_processor("payment");
    waybill.finished(&order.order_id).await;
    waybill.idle("payment").await;

    let sandbox = waybill.sandbox();
    let ledger = sandbox.ledger("").await;
    let [forbidden] = &ledger.payments[..] else { panic!("{ledger:?}") };
    assert_eq!(forbidden.state(), PaymentState::Forbidden);
    assert!(forbidden.idempotency_key.starts_with(&order.order_id));
    // The call of a worker that was slow, also after a restart.
    sandbox.restart().await;
    let late = CaptureRequest {
        idempotency_key: forbidden.idempotency_key.clone(),
        order_id: order.order_id.clone(),
        customer_id: CUSTOMER.to_owned(),
        amount: Some(Money { currency_code: "EUR".to_owned(), minor_units: 700 }),
        ..CaptureRequest::default()
    };
    let answer = sandbox.client().capture(late).await.unwrap().into_inner();
    assert!(matches!(answer.outcome, Some(capture_response::Outcome::AlreadyRefunded(_))), "{answer:?}");
    assert_eq!(sandbox.ledger("").await.captures, 0);
}

#[tokio::test]
async fn an_order_that_was_cancelled_while_it_waited_for_payment_is_never_charged() {
    // Longer than the step takes an event for the order as it stands.
    const WAITED: Duration = Duration::from_secs(11);
    let mut waybill = deployment().await;
    die(&mut waybill, "payment").await;
    let order = place(&waybill).await;
    let reserved = waybill.reached(&order.order_id, OrderStatus::Reserved).await;
    waybill.cancel(&order.order_id).await.unwrap();
    eventually("an event that is no news", async || {
        let reserved_at = SystemTime::try_from(reserved.update_time?).ok()?;
        (reserved_at.elapsed().ok()? > WAITED).then_some(())
    })
    .await;
    waybill.start_processor("payment");
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Cancelled);
    waybill.idle("payment").await;
    let ledger = waybill.sandbox().ledger("").await;
    assert_eq!((ledger.capture_calls, ledger.captures), (0, 0), "{ledger:?}");
}

#[tokio::test]
async fn a_cancelled_order_is_refunded_once() {
    let mut waybill = deployment().await;
    die(&mut waybill, "fulfilment").await;
    let order = place(&waybill).await;
    waybill.reached(&order.order_id, OrderStatus::Paid).await;
    waybill.sandbox().fail("", Fault::LostReply, 1).await;
    waybill.cancel(&order.order_id).await.unwrap();
    waybill.finished(&order.order_id).await;
    // And the step gets everything once more.
    waybill.idle("payment").await;
    waybill.kill_processors("payment");
    let stream = waybill.jetstream().await.get_stream(ORDERS).await.unwrap();
    stream.delete_consumer("payment").await.unwrap();
    waybill.broker.provision().await;
    waybill.start_processor("payment");
    waybill.idle("payment").await;

    let history = waybill.history(&order.order_id).await;
    assert_eq!(history.iter().filter(|kind| **kind == EventKind::Refunded).count(), 1, "{history:?}");
    let ledger = waybill.sandbox().ledger("").await;
    assert_eq!((ledger.captures, ledger.refunds, &ledger.refunded), (1, 1, &ledger.captured));
    assert!(ledger.refund_calls >= 2, "{ledger:?}");
}

#[tokio::test]
async fn a_refund_that_is_in_the_log_is_not_asked_for_again() {
    let mut waybill = deployment().await;
    die(&mut waybill, "fulfilment").await;
    let order = place(&waybill).await;
    waybill.reached(&order.order_id, OrderStatus::Paid).await;
    waybill.idle("payment").await;
    die(&mut waybill, "payment").await;
    waybill.cancel(&order.order_id).await.unwrap();
    // A worker that dies after the append.
    take_and_die(&waybill.consumer("payment").await).await;
    let current = eventually("the release", async || {
        let order = waybill.get(&order.order_id).await.ok()?;
        (order.compensation_pending == ["payment"]).then_some(order)
    })
    .await;
    let log = waybill.step_log("payment").await;
    let current = log.load(&current.order_id.parse().unwrap()).await.unwrap().unwrap();
    let (refunded, deadline) = (Detail::Refunded(PaymentRefunded::default()), Instant::now() + PATIENCE);
    log.append(&current, refunded, deadline).await.unwrap();

    waybill.start_processor("payment");
    waybill.idle("payment").await;
    assert!(
        waybill.consumer("payment").await.cached_info().delivered.consumer_sequence >= 3,
        "delivered again"
    );
    assert_eq!(waybill.sandbox().ledger("").await.refund_calls, 0);
}

#[tokio::test]
async fn a_sandbox_that_is_told_to_stop_ends_calls_that_wait() {
    let mut waybill = deployment().await;
    let slow = Behaviour {
        latency: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
        ..Behaviour::default()
    };
    let request = SetBehaviourRequest { customer_id: "slow".to_owned(), behaviour: Some(slow) };
    let sandbox = waybill.sandbox();
    sandbox.control().set_behaviour(request).await.unwrap();
    sandbox.fail("lost", Fault::LostReply, 0).await;
    let calls = ["slow", "lost"].map(|customer| {
        let request = capture_of(customer, "order", 350);
        let mut client = sandbox.client();
        tokio::spawn(async move { client.capture(request).await })
    });
    eventually("both calls", async || (sandbox.ledger("").await.capture_calls == 2).then_some(())).await;
    eventually("the charge", async || (sandbox.ledger("").await.captures == 1).then_some(())).await;
    let status = timeout(PATIENCE, sandbox.process.stop()).await.unwrap();
    assert!(status.success(), "{status}");
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap_err().code(), Code::Unavailable);
    }
}

fn capture_of(customer_id: &str, order_id: &str, minor_units: i64) -> CaptureRequest {
    CaptureRequest {
        idempotency_key: format!("{customer_id}-{order_id}"),
        order_id: order_id.to_owned(),
        customer_id: customer_id.to_owned(),
        amount: Some(Money { currency_code: "EUR".to_owned(), minor_units }),
        ..CaptureRequest::default()
    }
}

#[tokio::test]
async fn a_sandbox_that_answers_nonsense_has_done_nothing() {
    let mut waybill = deployment().await;
    let sandbox = waybill.sandbox();
    let mut client = sandbox.client();
    sandbox.fail("ada", Fault::Nonsense, 1).await;
    for customer in ["ada", "nonsense-by-name"] {
        let answer = client.capture(capture_of(customer, "order", 350)).await.unwrap().into_inner();
        assert_eq!(answer.outcome, None, "{customer}");
    }
    assert_eq!(sandbox.ledger("").await.captures, 0);
    let answer = client.capture(capture_of("ada", "order", 350)).await.unwrap().into_inner();
    assert!(matches!(answer.outcome, Some(capture_response::Outcome::Captured(_))), "{answer:?}");
    sandbox.fail("ada", Fault::Nonsense, 1).await;
    let refund = RefundRequest { idempotency_key: "ada-order".to_owned() };
    assert_eq!(client.refund(refund.clone()).await.unwrap().into_inner().outcome, None);
    assert_eq!(sandbox.ledger("").await.refunds, 0);
    let answer = client.refund(refund).await.unwrap().into_inner();
    assert!(matches!(answer.outcome, Some(refund_response::Outcome::Refunded(_))), "{answer:?}");
}

#[tokio::test]
async fn a_key_that_is_used_for_another_amount_is_an_error_and_charges_nothing() {
    let mut waybill = deployment().await;
    let sandbox = waybill.sandbox();
    let mut client = sandbox.client();
    client.capture(capture_of("ada", "order", 350)).await.unwrap();
    let status = client.capture(capture_of("ada", "order", 351)).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    assert_eq!(status.get_details_error_info().unwrap().reason, "IDEMPOTENCY_KEY_REUSED");
    assert_eq!(sandbox.ledger("").await.captured[0].minor_units, 350);
    for wrong in [
        CaptureRequest { idempotency_key: String::new(), ..capture_of("ada", "order", 350) },
        CaptureRequest { amount: None, ..capture_of("ada", "order-2", 350) },
        capture_of("ada", "order-3", -1),
    ] {
        assert_eq!(client.capture(wrong).await.unwrap_err().code(), Code::InvalidArgument);
    }
    assert_eq!(sandbox.ledger("").await.payments.len(), 1);
}

#[tokio::test]
async fn a_paused_service_holds_orders_up_and_loses_none() {
    let mut waybill = deployment().await;
    waybill.sandbox().process.pause();
    let order = place(&waybill).await;
    waybill.reached(&order.order_id, OrderStatus::Reserved).await;
    // Long enough for calls to be given up.
    let payment = waybill.processor("payment");
    payment
        .line("a failed attempt", |line| line.contains("attempt failed, order retried").then_some(()))
        .await;
    waybill.sandbox().process.signal(Signal::SIGCONT);
    is_paid_once(&mut waybill, &order.order_id).await;
}

/// A payment service that comes to its senses after some calls.
#[derive(Clone, Default)]
struct Confused {
    calls: Arc<AtomicUsize>,
    traces: Arc<Mutex<Vec<String>>>,
}

impl Confused {
    async fn serve(self, mut server: Server) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let service = PaymentServiceServer::new(self);
        tokio::spawn(server.add_service(service).serve_with_incoming(TcpIncoming::from(listener)));
        addr
    }
}

#[tonic::async_trait]
impl PaymentService for Confused {
    async fn capture(&self, request: Request<CaptureRequest>) -> Result<Response<CaptureResponse>, Status> {
        let trace = request.metadata().get("traceparent").map(|value| value.to_str().unwrap().to_owned());
        self.traces.lock().unwrap().push(trace.unwrap_or_default());
        let captured =
            |payment_id: String| Some(capture_response::Outcome::Captured(Captured { payment_id }));
        let outcome = match self.calls.fetch_add(1, Ordering::Relaxed) {
            0 => None,
            1 => captured(String::new()),
            2 => return Err(Status::internal("no idea")),
            _ => captured("p-1".to_owned()),
        };
        Ok(Response::new(CaptureResponse { outcome }))
    }

    async fn refund(&self, _: Request<RefundRequest>) -> Result<Response<RefundResponse>, Status> {
        let outcome = Some(refund_response::Outcome::NothingCaptured(Default::default()));
        Ok(Response::new(RefundResponse { outcome }))
    }
}

#[tokio::test]
async fn a_service_that_answers_nonsense_costs_no_order() {
    let Confused { calls, traces } = Confused::default();
    let addr = Confused { calls: calls.clone(), traces: traces.clone() }.serve(Server::builder()).await;
    let mut options = Options::default();
    options.processors.push(("PAYMENT_URL", format!("http://{addr}")));
    let mut waybill = Deployment::start_with(options).await;
    let order = place(&waybill).await;
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
    assert_eq!(waybill.history(&order.order_id).await, WHOLE_WAY);
    assert!(calls.load(Ordering::Relaxed) >= 4);
    let events = waybill.watch(&order.order_id, 0).await.unwrap().rest().await;
    let (trace, traces) = (format!("00-{}-", events[0].trace_id), traces.lock().unwrap().clone());
    assert!(traces.iter().all(|parent| parent.starts_with(&trace)), "{traces:?} for {trace}");
    let output = waybill.processor("payment").output();
    assert!(!output.contains("panicked"), "{output}");
    assert!(waybill.processor("payment").stop().await.success());
}

#[tokio::test]
async fn nonsense_without_end_parks_an_order_and_a_redrive_pays_for_it_once() {
    let calls = Arc::new(AtomicUsize::new(0));
    let addr = Confused { calls: calls.clone(), ..Confused::default() }.serve(Server::builder()).await;
    let mut options = Options::default();
    options.processors.push(("PAYMENT_URL", format!("http://{addr}")));
    options.processors.push(("MAX_ATTEMPTS", "2".to_owned()));
    let waybill = Deployment::start_with(options).await;
    let order = place(&waybill).await;
    let parked = waybill.reached(&order.order_id, OrderStatus::Failed).await;
    assert_eq!((parked.parked_status(), calls.load(Ordering::Relaxed)), (OrderStatus::Reserved, 2));
    let letter = waybill.letter(&parked.dead_letter_id).await.unwrap();
    assert_eq!(letter.step, "payment");
    assert!(letter.attempts.iter().all(|attempt| attempt.error.contains("unusable answer")), "{letter:?}");

    waybill.redrive(harness::these(&[&parked.dead_letter_id])).await.unwrap();
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
    use EventKind::{Created, Failed, Fulfilled, Paid, Redriven, Reserved};
    let way = [Created, Reserved, Failed, Redriven, Paid, Fulfilled];
    assert_eq!(waybill.history(&order.order_id).await, way);
}

#[tokio::test]
async fn a_service_behind_tls_is_called_if_its_certificate_is_good() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, another) = (Authority::new(), Authority::new());
    let tls = ServerTlsConfig::new().identity(authority.gateway().identity());
    // In its senses from the first call on.
    let calls = Arc::new(AtomicUsize::new(3));
    let server = Server::builder().tls_config(tls).unwrap();
    let addr = Confused { calls: calls.clone(), ..Confused::default() }.serve(server).await;
    for (trusted, is_good) in [(&another, false), (&authority, true)] {
        let trusted = replace(dir.path(), "ca.pem", &trusted.pem());
        let mut options = Options::default();
        options.processors.push(("PAYMENT_URL", format!("https://{addr}")));
        options.processors.push(("SSL_CERT_FILE", trusted.display().to_string()));
        let mut waybill = Deployment::start_with(options).await;
        let order = place(&waybill).await;
        if is_good {
            assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
        } else {
            let payment = waybill.processor("payment");
            payment.line("a failed attempt", |line| line.contains("peer certificate").then_some(())).await;
            assert_eq!(calls.load(Ordering::Relaxed), 3, "called without trust");
        }
    }
}

#[tokio::test]
async fn a_service_that_denies_a_payment_closes_no_books() {
    // In its senses from the first call on, but for refunds.
    let calls = Arc::new(AtomicUsize::new(3));
    let addr = Confused { calls, ..Confused::default() }.serve(Server::builder()).await;
    let mut options = Options::default();
    options.processors.push(("PAYMENT_URL", format!("http://{addr}")));
    options.processors.push(("MAX_ATTEMPTS", "2".to_owned()));
    let mut waybill = Deployment::start_with(options).await;
    die(&mut waybill, "fulfilment").await;
    let order = place(&waybill).await;
    waybill.reached(&order.order_id, OrderStatus::Paid).await;
    waybill.cancel(&order.order_id).await.unwrap();
    let parked = waybill.reached(&order.order_id, OrderStatus::Failed).await;
    assert_eq!(parked.parked_status(), OrderStatus::Cancelled);
    assert!(parked.current_step == "payment", "{parked:?}");
    let letter = waybill.letter(&parked.dead_letter_id).await.unwrap();
    assert!(letter.attempts.iter().all(|attempt| attempt.error.contains("reports no capture")), "{letter:?}");
}

/// The payment sandbox at an address, with its record in a folder, run by a shell that has said something before.
fn sandbox_after(before: &str, name: &str, dir: &Path, addr: &str) -> Process {
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("{before} exec \"$0\"")).arg(harness::binary("waybill-payment-sandbox"));
    command.env("PAYMENT_SANDBOX_ADDR", addr).env("PAYMENT_SANDBOX_DATA", dir.join("payments.jsonl"));
    command.env("LOG_FORMAT", "json");
    Process::start(name, command, dir)
}

async fn listening(process: &mut Process) -> String {
    process.logged("its address", |fields| fields["grpc_addr"].as_str().map(str::to_owned)).await
}

#[tokio::test]
async fn a_sandbox_whose_disk_is_full_ends_and_charges_nobody_twice_when_there_is_room() {
    const ORDERS: usize = 20;
    let dir = tempfile::tempdir().unwrap();
    // What goes beyond 1 KiB cannot be written, in the middle of a record.
    let mut full = sandbox_after("trap '' XFSZ; ulimit -f 2;", "full", dir.path(), "127.0.0.1:0");
    let addr = listening(&mut full).await;
    let mut options = Options::default();
    options.processors.push(("PAYMENT_URL", format!("http://{addr}")));
    options.processors.push(("MAX_ATTEMPTS", "1".to_owned()));
    let waybill = Deployment::start_with(options).await;
    let orders = Load::start(waybill.channel(), widgets(ORDERS)).all().await;
    let status = full.ended().await;
    assert_eq!(status.code(), Some(1), "{status}");
    // Another one at the same time would charge twice.
    let mut roomy = sandbox_after("", "roomy", dir.path(), &addr);
    listening(&mut roomy).await;
    let mut second = sandbox_after("", "second", dir.path(), "127.0.0.1:0");
    assert_eq!(second.ended().await.code(), Some(1));
    assert!(second.output().contains("used by another payment sandbox"), "{}", second.output());

    each_is_carried_out_once(&waybill, &orders).await;
    let text = std::fs::read_to_string(dir.path().join("payments.jsonl")).unwrap();
    let captured = |order: &&Order| text.matches(&order.order_id).count() > 0;
    assert_eq!((orders.iter().filter(captured).count(), text.lines().count()), (ORDERS, ORDERS), "{text}");
}
