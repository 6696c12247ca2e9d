//! What the programs count is what happened, and docs/metrics.md lists it all.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::SystemTime;

use harness::collector::{Collector, Span};
use harness::{Deployment, Load, Options, Scrape, eventually, item, order_of};
use http::uri::PathAndQuery;
use nix::sys::signal::Signal;
use prost::Message;
use prost_types::Timestamp;
use proto::orders::v1::{CreateOrderResponse, OrderStatus, WatchOrdersRequest};
use proto::payments::v1::Fault;
use tonic::client::Grpc;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt;

use crate::accounting::{ids, widgets};
use crate::dead_letters::{parked, with_damage_and};
use crate::http2::{
    DATA, END_HEADERS, END_STREAM, HEADERS, Raw, call_headers, frame, grpc_message, header, stream_ids,
};

const STEPS: [&str; 3] = ["inventory", "payment", "fulfilment"];
const WATCH_ORDER: &str = "orders.v1.OrderService/WatchOrder";
const WATCH_ORDERS: &str = "orders.v1.OrderService/WatchOrders";
const CREATE: &str = "orders.v1.OrderService/CreateOrder";
const CALLS: &str = "rpc_server_call_duration_seconds_count";
const AGE: &str = "waybill_step_oldest_unprocessed_age_seconds";

/// Name, type and labels of each row of a section of docs/metrics.md.
fn documented(section: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let text = std::fs::read_to_string(path).unwrap();
    let sections = text.split("\n## ");
    let section = sections.into_iter().find(|text| text.starts_with(section)).unwrap();
    let rows = section.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
        let name = cells.next()?.trim_end_matches('`').to_owned();
        let (kind, labels) = (cells.next()?.to_owned(), cells.next()?);
        // The table of outcomes is no table of metrics.
        cells.next()?;
        cells.next().filter(|meaning| !meaning.is_empty())?;
        let labels = labels.split(',').map(str::trim).filter(|label| !label.is_empty());
        Some((name, (kind, labels.map(str::to_owned).collect())))
    });
    rows.collect()
}

/// Whether the scrapes of processes of one kind have what the section of all and one of their own say, and nothing else.
fn is_documented(scrapes: &[Scrape], section: &str) {
    let mut rows = documented("Every process");
    rows.extend(documented(section));
    let mut seen = BTreeSet::new();
    for scrape in scrapes {
        for (name, kind) in &scrape.types {
            let (row, labels) = rows.get(name).unwrap_or_else(|| panic!("{name} is not in docs/metrics.md"));
            assert_eq!((kind, &scrape.labels(name)), (row, labels), "{name}");
            seen.insert(name.clone());
        }
    }
    let missing: Vec<_> = rows.keys().filter(|name| !seen.contains(*name)).collect();
    assert!(missing.is_empty(), "in docs/metrics.md, and not there: {missing:?}");
}

#[tokio::test]
async fn what_the_programs_count_is_what_the_page_lists_and_what_happened() {
    let options = Options {
        stock: vec![("widget", 1_000), ("gadget", 1), ("rare", 1)],
        payment_sandbox: true,
        ..Options::default()
    };
    let mut waybill = with_damage_and(2, options).await;
    let mut placed = 0.0;
    let mut watching = waybill
        .client()
        .await
        .watch_orders(WatchOrdersRequest { customer_id: "customer".to_owned(), after_revision: 0 })
        .await
        .unwrap()
        .into_inner();

    // Orders that are fulfilled, declined, out of stock, and given up.
    for request_id in ["a", "b", "c"] {
        let order = waybill.place(order_of("customer", request_id, vec![item("widget", 1)])).await.unwrap();
        let mut watcher = waybill.watch(&order.order_id, 0).await.unwrap();
        while watcher.next().await.unwrap().is_some() {}
        let again = waybill.cancel(&order.order_id).await.unwrap_err();
        assert_eq!(again.code(), Code::FailedPrecondition);
        placed += 1.0;
    }
    for (customer, sku, status) in
        [("declined-customer", "widget", OrderStatus::Rejected), ("customer", "rare", OrderStatus::Rejected)]
    {
        let order = waybill.place(order_of(customer, "no", vec![item(sku, 2)])).await.unwrap();
        assert_eq!(waybill.finished(&order.order_id).await.status(), status);
        placed += 1.0;
    }
    parked(&waybill, "poison").await;
    placed += 1.0;

    // Payments are away, and one of those who wait loses patience.
    waybill.sandbox().fail("", Fault::Outage, 0).await;
    let waiting = Load::start(waybill.channel(), widgets(10)).all().await;
    placed += 10.0;
    eventually("an open breaker", async || {
        let scrape = waybill.scrape_of("payment").await;
        (scrape.sum("waybill_step_breaker_state", &[("step", "payment")]) == Some(2.0)).then_some(())
    })
    .await;
    let age = eventually("an age", async || {
        let scrape = waybill.scrape_of("payment").await;
        scrape.sum(AGE, &[("step", "payment")]).filter(|age| *age > 0.0)
    })
    .await;
    eventually("a greater age", async || {
        let scrape = waybill.scrape_of("payment").await;
        let waiting =
            scrape.sum("waybill_step_ack_pending", &[])? + scrape.sum("waybill_step_pending", &[])?;
        (scrape.sum(AGE, &[])? > age + 2.0 && waiting >= 10.0).then_some(())
    })
    .await;
    waybill.reached(&waiting[0].order_id, OrderStatus::Reserved).await;
    waybill.cancel(&waiting[0].order_id).await.unwrap();
    let open = eventually("the dead letter", async || {
        waybill.scrape().await.sum("waybill_dead_letters_open", &[("step", "inventory")])
    })
    .await;
    assert_eq!(open, 1.0);
    let mut watcher = waybill.watch(&waiting[1].order_id, 0).await.unwrap();
    let scrape = waybill.scrape().await;
    let open = |method| scrape.sum("waybill_streams_open", &[("rpc_method", method)]);
    assert_eq!((open(WATCH_ORDER), open(WATCH_ORDERS)), (Some(1.0), Some(1.0)));

    // They are back.
    waybill.sandbox().recover().await;
    let statuses = waybill.statuses(&ids(&waiting)).await;
    assert_eq!(statuses.get(&OrderStatus::Fulfilled), Some(&9));
    while watcher.next().await.unwrap().is_some() {}
    eventually("no age", async || {
        let scrape = waybill.scrape_of("payment").await;
        (scrape.sum(AGE, &[]) == Some(0.0)).then_some(())
    })
    .await;
    watching.message().await.unwrap();
    drop(watching);
    eventually("no watch", async || {
        (waybill.scrape().await.sum("waybill_streams_open", &[]) == Some(0.0)).then_some(())
    })
    .await;

    let gateway = waybill.scrape().await;
    assert_eq!(
        gateway.sum(CALLS, &[("rpc_method", CREATE), ("rpc_response_status_code", "OK")]),
        Some(placed)
    );
    let appends = |scrape: &Scrape, event: &str| {
        scrape.sum("waybill_append_duration_seconds_count", &[("event", event), ("outcome", "acked")])
    };
    assert_eq!((appends(&gateway, "created"), appends(&gateway, "cancelled")), (Some(placed), Some(1.0)));
    let refused = |reason| gateway.sum("waybill_calls_refused_total", &[("reason", reason)]);
    assert_eq!((refused("NOT_CANCELLABLE"), refused("STORAGE_FULL")), (Some(3.0), Some(0.0)));
    assert_eq!(gateway.sum("waybill_ready", &[]), Some(1.0));
    let level = |level| gateway.sum("waybill_durability", &[("level", level)]);
    assert_eq!(["memory", "process", "fsync", "replicated"].map(level), [0.0, 1.0, 0.0, 0.0].map(Some));
    let lags = gateway.sum("waybill_watch_lag_seconds_count", &[("rpc_method", WATCH_ORDER)]);
    // Of 3 orders that may have been faster than their watchers, and of one that waited for payments.
    assert!(lags.is_some_and(|lags| (2.0..=11.0).contains(&lags)), "{lags:?}");
    eventually("the messages of the log", async || {
        let messages = waybill.scrape().await.sum("waybill_stream_messages", &[("stream", "ORDERS")]);
        (messages == Some(waybill.messages().await.len() as f64)).then_some(())
    })
    .await;

    let mut steps = Vec::new();
    for step in STEPS {
        steps.push(waybill.scrape_of(step).await);
    }
    let [inventory, payment, fulfilment] = &steps[..] else { panic!("three steps") };
    let ended =
        |scrape: &Scrape, status| scrape.sum("waybill_order_duration_seconds_count", &[("status", status)]);
    assert_eq!(ended(fulfilment, "FULFILLED"), Some(12.0));
    assert_eq!((ended(inventory, "REJECTED"), ended(payment, "REJECTED")), (Some(1.0), Some(1.0)));
    assert_eq!(ended(&gateway, "CANCELLED"), Some(1.0));
    let attempts = |scrape: &Scrape, outcome| {
        scrape.sum("waybill_step_attempt_duration_seconds_count", &[("outcome", outcome)])
    };
    assert_eq!(attempts(fulfilment, "done"), Some(12.0));
    assert_eq!((attempts(inventory, "parked"), attempts(inventory, "unexpected")), (Some(1.0), Some(1.0)));
    assert!(attempts(payment, "unavailable").is_some_and(|attempts| attempts >= 5.0));
    assert_eq!(inventory.sum("waybill_dead_letters_total", &[("step", "inventory")]), Some(1.0));
    assert_eq!(fulfilment.sum("waybill_step_workers", &[]), Some(10.0));

    is_documented(&[gateway], "The gateway");
    is_documented(&steps, "The processors");
}

#[tokio::test]
async fn a_call_that_fails_counts_for_whoever_is_at_fault() {
    const UNDECODABLE: usize = 20;
    const HASTY: usize = 10;
    let gateway = vec![("REQUEST_TIMEOUT", "1s".to_owned())];
    let mut waybill = Deployment::start_with(Options { replicas: 0, gateway, ..Options::default() }).await;
    let order = || order_of("ada", "", vec![item("widget", 1)]);
    waybill.place(order()).await.unwrap();

    // Bytes that are no message.
    let mut grpc = Grpc::new(waybill.channel());
    for _ in 0..UNDECODABLE {
        grpc.ready().await.unwrap();
        let path = PathAndQuery::from_static("/orders.v1.OrderService/CreateOrder");
        let codec = ProstCodec::<i32, CreateOrderResponse>::default();
        let status = grpc.unary(Request::new(1), path, codec).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert_eq!(status.get_details_error_info().unwrap().reason, "MALFORMED_REQUEST");
        let told: Vec<_> = status.metadata().keys().map(|key| format!("{key:?}")).collect();
        assert!(told.iter().all(|key| !key.contains("waybill")), "{told:?}");
    }
    // Deadlines that nobody meets, whatever becomes of the orders: they have to be there when the calls are counted.
    let mut raw = Raw::greet(&waybill.gateway.grpc_addr).await;
    let message = grpc_message(&order().encode_to_vec());
    for stream_id in stream_ids().take(HASTY) {
        let headers = [call_headers("CreateOrder"), header("grpc-timeout", "1n")].concat();
        assert!(raw.write(&frame(HEADERS, END_HEADERS, stream_id, &headers)).await);
        assert!(raw.write(&frame(DATA, END_STREAM, stream_id, &message)).await);
    }
    raw.answers(HASTY).await;
    // A message that never comes.
    let mut silent = Raw::greet(&waybill.gateway.grpc_addr).await;
    assert!(silent.write(&frame(HEADERS, END_HEADERS, 1, &call_headers("CreateOrder"))).await);
    silent.answers(1).await;
    // A broker that does not answer, and one that is not there.
    waybill.broker.pause();
    assert_eq!(waybill.place(order()).await.unwrap_err().code(), Code::DeadlineExceeded);
    waybill.broker.resume();
    waybill.broker.kill();
    eventually("a refusal", async || {
        waybill.place(order()).await.is_err_and(|status| status.code() == Code::Unavailable).then_some(())
    })
    .await;

    let scrape = waybill.scrape().await;
    let calls = |code, fault| {
        let labels = [("rpc_method", CREATE), ("rpc_response_status_code", code), ("fault", fault)];
        scrape.sum(CALLS, &labels).unwrap_or_default() as usize
    };
    assert_eq!(calls("INVALID_ARGUMENT", "theirs"), UNDECODABLE);
    assert_eq!((calls("INTERNAL", "ours"), calls("INTERNAL", "theirs")), (0, 0));
    let in_time = calls("OK", "none") - 1;
    assert_eq!(calls("DEADLINE_EXCEEDED", "theirs") + in_time, HASTY + 1, "with the one that never came");
    assert!(calls("DEADLINE_EXCEEDED", "ours") >= 1);
    assert!(calls("UNAVAILABLE", "ours") >= 1);
    assert_eq!(calls("UNAVAILABLE", "theirs"), 0);
    let refused = |reason, fault| {
        let labels = [("reason", reason), ("fault", fault)];
        scrape.sum("waybill_calls_refused_total", &labels).unwrap_or_default() as usize
    };
    assert_eq!(refused("MALFORMED_REQUEST", "theirs"), UNDECODABLE);
    assert_eq!(refused("TIMED_OUT", "theirs"), 1);
    assert_eq!(refused("OUTCOME_UNKNOWN", "theirs") + in_time, HASTY);
    assert_eq!(refused("OUTCOME_UNKNOWN", "ours"), calls("DEADLINE_EXCEEDED", "ours"));
}

/// The same numbers come to a collector, by either protocol, the last ones when the program ends; and they are of the same
/// process as its spans.
#[tokio::test]
async fn metrics_are_sent_to_a_collector_as_well() {
    for collector in [Collector::start().await, Collector::start_http().await] {
        let environment = collector.environment();
        let mut waybill = Deployment::start_with(Options { environment, ..Options::default() }).await;
        let order = waybill.place(order_of("customer", "a", vec![item("widget", 1)])).await.unwrap();
        waybill.finished(&order.order_id).await;
        let create = [("rpc.method", CREATE), ("rpc.response.status_code", "OK")];
        let calls = eventually("the call", async || {
            collector.latest("waybill-gateway", "rpc.server.call.duration", &create)
        })
        .await;
        assert_eq!((calls.value, calls.unit.as_str()), (1.0, "s"));
        let is_call = |span: &Span| span.name == CREATE;
        assert_eq!(collector.span("the call", is_call).await.instance, calls.instance);
        let shipped = [("step", "fulfilment"), ("outcome", "done")];
        let attempts = || collector.latest("waybill-fulfilment", "waybill.step.attempt.duration", &shipped);
        assert_eq!(eventually("the attempt", async || attempts()).await.value, 1.0);
        let payment = [("step", "payment")];
        let breaker = || collector.latest("waybill-payment", "waybill.step.breaker.state", &payment);
        assert_eq!(eventually("the breaker", async || breaker()).await.value, 0.0);
        assert!(waybill.processor("fulfilment").stop().await.success());
    }
}

/// What is counted in the last moment is sent when the program ends, however long the interval is.
#[tokio::test]
async fn what_was_counted_last_is_sent_at_the_end() {
    let collector = Collector::start().await;
    let mut environment = collector.environment();
    environment.push(("OTEL_METRIC_EXPORT_INTERVAL", "3600000".to_owned()));
    let options = Options { environment, replicas: 0, ..Options::default() };
    let mut waybill = Deployment::start_with(options).await;
    waybill.place(order_of("customer", "a", vec![item("widget", 1)])).await.unwrap();
    let calls = || collector.latest("waybill-gateway", "rpc.server.call.duration", &[("rpc.method", CREATE)]);
    assert_eq!(calls(), None);
    assert!(waybill.gateway.process.stop().await.success());
    assert_eq!(calls().unwrap().value, 1.0);
}

#[tokio::test]
async fn a_processor_says_whether_it_works() {
    let mut waybill = Deployment::start_with(Options::default()).await;
    for step in STEPS {
        eventually("readiness", async || (waybill.http_of(step, "/readyz").await.0 == 200).then_some(()))
            .await;
        assert_eq!(waybill.http_of(step, "/livez").await.0, 200);
        assert_eq!(waybill.http_of(step, "/health").await.0, 200);
    }
    assert_eq!(waybill.scrape_of("payment").await.sum("waybill_broker_connected", &[]), Some(1.0));

    // The broker is away: nothing old is told.
    eventually("a backlog", async || waybill.scrape_of("payment").await.sum("waybill_step_pending", &[]))
        .await;
    waybill.broker.kill();
    eventually("no readiness", async || {
        let (status, said) = waybill.http_of("payment", "/readyz").await;
        (status == 503 && said.contains("not connected")).then_some(())
    })
    .await;
    assert_eq!(waybill.http_of("payment", "/health").await.0, 503);
    assert_eq!(waybill.http_of("payment", "/livez").await.0, 200);
    let away = waybill.scrape_of("payment").await;
    assert_eq!(away.sum("waybill_broker_connected", &[]), Some(0.0));
    for metric in ["waybill_step_pending", "waybill_step_ack_pending", AGE] {
        assert_eq!(away.sum(metric, &[]), None, "{metric}");
    }
    eventually("a gateway that knows nothing of the stream", async || {
        let scrape = waybill.scrape().await;
        let unknown = scrape.sum("waybill_stream_bytes", &[("stream", "ORDERS")]).is_none();
        (unknown && scrape.sum("waybill_ready", &[]) == Some(0.0)).then_some(())
    })
    .await;
    waybill.broker.start().await;
    eventually("readiness again", async || {
        (waybill.http_of("payment", "/readyz").await.0 == 200).then_some(())
    })
    .await;
    let back = waybill.scrape_of("payment").await;
    assert_eq!(back.sum("waybill_broker_reconnects_total", &[]), Some(1.0));
}

/// It is not sent away with a message in hand; until it is gone it says so.
#[tokio::test]
async fn a_processor_that_drains_says_so() {
    let processors = vec![("PAYMENT_TIMEOUT", "30s".to_owned())];
    let options = Options { payment_sandbox: true, processors, ..Options::default() };
    let mut waybill = Deployment::start_with(options).await;
    waybill.sandbox().fail("", Fault::LostReply, 1).await;
    waybill.place(order_of("customer", "a", vec![item("widget", 1)])).await.unwrap();
    eventually("work", async || {
        let scrape = waybill.scrape_of("payment").await;
        (scrape.sum("waybill_step_in_flight", &[]) == Some(1.0)).then_some(())
    })
    .await;
    waybill.processor("payment").signal(Signal::SIGTERM);
    eventually("that it drains", async || {
        let (status, said) = waybill.http_of("payment", "/readyz").await;
        (status == 503 && said == "draining\n").then_some(())
    })
    .await;
    let drained = waybill.scrape_of("payment").await;
    assert_eq!((drained.sum(AGE, &[]), drained.sum("waybill_step_in_flight", &[])), (None, Some(1.0)));
}

/// One order that waits for its next attempt is the oldest, however many newer ones pass.
#[tokio::test]
async fn an_order_that_is_tried_again_counts_as_unprocessed() {
    let options = Options { payment_sandbox: true, ..Options::default() };
    let mut waybill = Deployment::start_with(options).await;
    waybill.sandbox().fail("unlucky", Fault::Outage, 0).await;
    let unlucky = waybill.place(order_of("unlucky", "a", vec![item("widget", 1)])).await.unwrap();
    let reserved = waybill.reached(&unlucky.order_id, OrderStatus::Reserved).await;
    let stored = waybill.messages().await.into_iter().find(|message| message.sequence.0 == reserved.revision);
    let stored: Timestamp = stored.unwrap().headers.get("Nats-Time-Stamp").unwrap().as_str().parse().unwrap();
    let stored = SystemTime::try_from(stored).unwrap();
    let others = Load::start(waybill.channel(), widgets(30)).all().await;
    waybill.statuses(&ids(&others)).await;
    eventually("the age of that order", async || {
        let before = stored.elapsed().unwrap().as_secs_f64();
        let scrape = waybill.scrape_of("payment").await;
        let age = scrape.sum(AGE, &[])?;
        let after = stored.elapsed().unwrap().as_secs_f64();
        // All the others are done with.
        let alone = scrape.sum("waybill_step_ack_pending", &[]) == Some(1.0);
        (alone && (before..=after).contains(&age)).then_some(())
    })
    .await;
    waybill.sandbox().recover().await;
    waybill.finished(&unlucky.order_id).await;
}
