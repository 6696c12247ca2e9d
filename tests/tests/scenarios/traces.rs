//! One trace shows an order's whole way, over every process that it passes, however often it is tried.

use std::collections::HashSet;

use harness::collector::{Collector, Span};
use harness::{Deployment, Options, eventually, item, order_of, these};
use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use proto::orders::v1::OrderStatus;
use proto::orders::v1::WatchOrderRequest;
use proto::payments::v1::Fault;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tonic::Request;

use crate::dead_letters::{mend, with_damage_and};
use crate::grpcurl::Grpcurl;

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
/// What the trace of an order consists of that is tried twice, parked, redriven, and paid for by the second of two processes.
const SPANS: usize = 29;

/// Deployment options under which everything is told to the collector.
fn options(collector: &Collector) -> Options {
    let mut options =
        Options { payment_sandbox: true, environment: collector.environment(), ..Options::default() };
    // The reply that is lost in these tests is not to be asked for again by the same process.
    options.processors.push(("PAYMENT_TIMEOUT", "30s".to_owned()));
    // Nor is an order to be delivered again because the machine is busy.
    options.processors.push(("ACK_WAIT", "5s".to_owned()));
    options
}

/// The spans of an order's trace, to be walked from parent to child.
struct Tree(Vec<Span>);

impl Tree {
    /// The children of a span with a name, in the order in which they began.
    fn children(&self, parent: &Span, service: &str, name: &str) -> Vec<&Span> {
        let of = |span: &&Span| span.parent == parent.span_id && span.name == name && span.service == service;
        let mut found: Vec<_> = self.0.iter().filter(of).collect();
        found.sort_by_key(|span| span.times);
        found
    }

    fn child(&self, parent: &Span, service: &str, name: &str) -> &Span {
        let found = self.children(parent, service, name);
        let [child] = found[..] else {
            panic!("{} of {service} below {}: {found:#?}\nof {:#?}", name, parent.name, self.0)
        };
        child
    }
}

#[tokio::test]
async fn one_trace_shows_an_order_through_retry_death_dead_letter_and_redrive() {
    let collector = Collector::start().await;
    let mut waybill = with_damage_and(2, options(&collector)).await;
    let mut request = Request::new(order_of("customer", "request", vec![item("gadget", 1)]));
    let traceparent = format!("00-{TRACE_ID}-{CALLER}-01");
    request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
    let created = waybill.client().await.create_order(request).await.unwrap().into_inner().order.unwrap();
    let order_id = created.order_id;
    let mut watch_request = Request::new(WatchOrderRequest { order_id: order_id.clone(), after_revision: 0 });
    watch_request.metadata_mut().insert("traceparent", traceparent.replace("4b", "5b").parse().unwrap());
    let mut watch = waybill.client().await.watch_order(watch_request).await.unwrap().into_inner();

    // Tried, tried again, and given up.
    let failed = waybill.reached(&order_id, OrderStatus::Failed).await;
    mend(&waybill).await;
    // The worker that waits for this reply dies.
    waybill.sandbox().fail("customer", Fault::LostReply, 1).await;
    waybill.redrive(these(&[&failed.dead_letter_id])).await.unwrap();
    let is_payments =
        |span: &Span| span.service == "waybill-payment" && span.name == "receive ORDER.*.*.*.reserved.*";
    let first = collector.span("payment's first delivery", is_payments).await;
    eventually("the call", async || {
        (waybill.sandbox().ledger(&order_id).await.capture_calls > 0).then_some(())
    })
    .await;
    waybill.kill_processors("payment");
    waybill.start_processor("payment");
    let order = waybill.finished(&order_id).await;
    assert_eq!(order.status(), OrderStatus::Fulfilled);
    while watch.message().await.unwrap().is_some() {}

    let is_watch = |span: &Span| span.name == "orders.v1.OrderService/WatchOrder";
    let watch = collector.span("the watch", is_watch).await;
    let is_operators = |span: &Span| span.name.ends_with("/RedriveDeadLetters");
    let operators = collector.span("the operator's call", is_operators).await;
    let is_answered =
        |span: &Span| span.name == "orders.v1.OrderService/CreateOrder" && span.trace_id == TRACE_ID;
    let server = collector.span("the server span", is_answered).await;
    // Batches of different processes come in any order.
    let tree = eventually("all spans", async || {
        let spans: Vec<_> = collector.spans().into_iter().filter(|span| span.trace_id == TRACE_ID).collect();
        (spans.len() >= SPANS).then_some(Tree(spans))
    })
    .await;

    // The call and its append.
    assert_eq!((server.kind, server.service.as_str()), (SpanKind::Server, "waybill-gateway"));
    assert_eq!(server.parent, CALLER);
    assert_eq!(server.attribute("rpc.system.name"), "grpc");
    assert_eq!(server.attribute("rpc.method"), "orders.v1.OrderService/CreateOrder");
    assert_eq!(server.attribute("rpc.response.status_code"), "OK");
    let created = tree.child(&server, "waybill-gateway", "publish ORDER.*.*.*.created.*");
    assert_eq!(created.kind, SpanKind::Producer);
    assert_eq!(created.attribute("messaging.system"), "nats");
    assert_eq!(created.attribute("messaging.operation.type"), "send");
    assert_eq!(created.attribute("waybill.outcome"), "stored");
    assert!(server.times.0 <= created.times.0 && created.times.1 <= server.times.1, "answered after the ack");
    let messages = waybill.messages().await;
    assert_eq!(created.attribute("messaging.destination.name"), messages[0].subject.as_str());
    assert_eq!(created.attribute("waybill.order.revision"), messages[0].sequence.to_string());
    assert_eq!(
        messages[0].headers.get("traceparent").unwrap().as_str(),
        format!("00-{TRACE_ID}-{}-01", created.span_id),
        "what the event carries is its producer span"
    );

    // Two attempts of inventory, the second of which is the last.
    let received = tree.children(created, "waybill-inventory", "receive ORDER.*.*.*.created.*");
    let [one, two] = received[..] else { panic!("{received:#?}") };
    assert_eq!((one.kind, one.attribute("messaging.consumer.group.name")), (SpanKind::Client, "inventory"));
    assert_eq!((one.attribute("waybill.deliveries"), two.attribute("waybill.deliveries")), ("1", "2"));
    for received in [one, two] {
        let process = tree.child(received, "waybill-inventory", "process ORDER.*.*.*.created.*");
        assert_eq!((process.kind, process.is_error), (SpanKind::Consumer, true));
        let events: Vec<_> = process.events.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(events, ["attempt", "attempt failed"]);
        assert!(process.events[1].1["waybill.attempt.error"].contains("stock.gadget"), "{process:#?}");
        assert_eq!(process.events[1].1["waybill.attempt.counts"], "true");
        assert!(tree.child(process, "waybill-inventory", "reserve INVENTORY").is_error);
    }
    let last = tree.child(two, "waybill-inventory", "process ORDER.*.*.*.created.*");
    let letter = tree.child(last, "waybill-inventory", "publish DEAD_LETTER.open.>");
    assert_eq!(letter.attribute("waybill.dead_letter.id"), failed.dead_letter_id);
    tree.child(last, "waybill-inventory", "publish ORDER.*.*.*.failed.*");

    // The redrive goes on from the letter.
    let redrive = tree.child(letter, "waybill-gateway", "redrive");
    assert_eq!(redrive.links, [letter.place(), operators.place()]);
    assert_eq!((operators.links.len(), &operators.links[0]), (1, &redrive.place()));
    tree.child(redrive, "waybill-gateway", "publish DEAD_LETTER.redriven.>");
    let redriven = tree.child(redrive, "waybill-gateway", "publish ORDER.*.*.*.redriven.*");
    assert!(
        tree.children(redriven, "waybill-payment", "receive ORDER.*.*.*.redriven.*").is_empty(),
        "a redrive wakes the one step concerned"
    );
    let received = tree.child(redriven, "waybill-inventory", "receive ORDER.*.*.*.redriven.*");
    let process = tree.child(received, "waybill-inventory", "process ORDER.*.*.*.redriven.*");
    assert!(!process.is_error);
    let reserve = tree.child(process, "waybill-inventory", "reserve INVENTORY");
    assert_eq!((reserve.kind, reserve.attribute("db.collection.name")), (SpanKind::Client, "INVENTORY"));
    let reserved = tree.child(process, "waybill-inventory", "publish ORDER.*.*.*.reserved.*");

    // What was delivered to the payment process that died, and again to the next.
    let received = tree.children(reserved, "waybill-payment", "receive ORDER.*.*.*.reserved.*");
    let [one, two] = received[..] else { panic!("{received:#?}") };
    assert_eq!((one.place(), one.parent.as_str()), (first.place(), reserved.span_id.as_str()));
    assert_ne!(one.instance, two.instance);
    assert_eq!((one.attribute("waybill.deliveries"), two.attribute("waybill.deliveries")), ("1", "2"));
    let process = tree.child(two, "waybill-payment", "process ORDER.*.*.*.reserved.*");
    let call = tree.child(process, "waybill-payment", "payments.v1.PaymentService/Capture");
    assert_eq!((call.kind, call.attribute("rpc.response.status_code")), (SpanKind::Client, "OK"));
    assert_eq!(call.attribute("server.port"), waybill.sandbox().grpc_addr.rsplit_once(':').unwrap().1);
    let served = tree.child(call, "waybill-payment-sandbox", "payments.v1.PaymentService/Capture");
    assert_eq!((served.kind, served.attribute("rpc.system.name")), (SpanKind::Server, "grpc"));
    let paid = tree.child(process, "waybill-payment", "publish ORDER.*.*.*.paid.*");

    let received = tree.child(paid, "waybill-fulfilment", "receive ORDER.*.*.*.paid.*");
    let process = tree.child(received, "waybill-fulfilment", "process ORDER.*.*.*.paid.*");
    let fulfilled = tree.child(process, "waybill-fulfilment", "publish ORDER.*.*.*.fulfilled.*");

    // Every update that the watcher got links to its append, from a trace of its own.
    assert_ne!(watch.trace_id, TRACE_ID);
    let failed = tree.child(last, "waybill-inventory", "publish ORDER.*.*.*.failed.*");
    let appends = [created, failed, redriven, reserved, paid, fulfilled];
    assert_eq!(watch.links, appends.map(Span::place));

    for span in &tree.0 {
        assert_eq!(span.attribute("waybill.order.id"), order_id, "{span:#?}");
    }
    // What is missing is what the dead had not yet told.
    let known: HashSet<_> = tree.0.iter().map(|span| span.span_id.as_str()).collect();
    let orphans = tree.0.iter().filter(|span| !known.contains(span.parent.as_str()));
    let orphans: Vec<_> = orphans.map(|span| (span.service.as_str(), span.name.as_str())).collect();
    let lost = ("waybill-payment-sandbox", "payments.v1.PaymentService/Capture");
    let root = ("waybill-gateway", "orders.v1.OrderService/CreateOrder");
    assert!(orphans.iter().all(|orphan| [lost, root].contains(orphan)), "{orphans:#?}");
}

#[tokio::test]
async fn a_trace_begun_by_grpcurl_goes_on() {
    let collector = Collector::start().await;
    let waybill = Deployment::start_with(options(&collector)).await;
    let Some(grpcurl) = Grpcurl::of(&waybill) else { return };
    let unit_price = json!({"currency_code": "EUR", "minor_units": 350});
    let items = json!([{"sku": "widget", "quantity": 2, "unit_price": unit_price}]);
    let request = json!({"customer_id": "customer", "items": items});
    let header = format!("traceparent: 00-{TRACE_ID}-{CALLER}-01");
    let method = ["orders.v1.OrderService/CreateOrder"];
    let output = grpcurl.run_with(&["-H", &header], Some(request), &method).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let is_last = |span: &Span| span.name == "publish ORDER.*.*.*.fulfilled.*";
    assert_eq!(collector.span("the last append", is_last).await.trace_id, TRACE_ID);
    let is_server = |span: &Span| span.name == method[0];
    let server = collector.span("the server span", is_server).await;
    assert_eq!((server.trace_id.as_str(), server.parent.as_str()), (TRACE_ID, CALLER));
}

#[tokio::test]
async fn spans_travel_by_http_as_well() {
    let collector = Collector::start_http().await;
    let waybill = Deployment::start_with(options(&collector)).await;
    let order = waybill.place(order_of("customer", "request", vec![item("widget", 1)])).await.unwrap();
    waybill.finished(&order.order_id).await;
    let is_last = |span: &Span| span.name == "publish ORDER.*.*.*.fulfilled.*";
    let last = collector.span("the last append", is_last).await;
    assert_eq!(last.attribute("waybill.order.id"), order.order_id);
    let is_first =
        |span: &Span| span.name == "publish ORDER.*.*.*.created.*" && span.trace_id == last.trace_id;
    assert_eq!(collector.span("the first append", is_first).await.service, "waybill-gateway");
}

#[tokio::test]
async fn of_traces_that_are_not_sampled_errors_and_dead_letters_are_kept() {
    let collector = Collector::start().await;
    let mut options = options(&collector);
    options.payment_sandbox = false;
    options.environment.push(("OTEL_TRACES_SAMPLER", "always_off".to_owned()));
    let waybill = with_damage_and(2, options).await;
    let good = waybill.place(order_of("customer", "good", vec![item("widget", 1)])).await.unwrap();
    waybill.finished(&good.order_id).await;
    let order = waybill.place(order_of("customer", "poison", vec![item("gadget", 1)])).await.unwrap();
    let failed = waybill.reached(&order.order_id, OrderStatus::Failed).await;
    mend(&waybill).await;
    waybill.redrive(these(&[&failed.dead_letter_id])).await.unwrap();
    waybill.finished(&order.order_id).await;

    let letter = collector.span("the letter", |span| span.name == "publish DEAD_LETTER.open.>").await;
    let redrive = collector.span("the redrive", |span| span.name == "redrive").await;
    let is_process = |span: &Span| span.name == "process ORDER.*.*.*.created.*";
    eventually("both attempts", async || {
        (collector.spans().iter().filter(|span| is_process(span)).count() == 2).then_some(())
    })
    .await;
    let spans = collector.spans();
    assert!(spans.iter().any(|span| is_process(span) && span.span_id == letter.parent), "{spans:#?}");
    assert_eq!((&redrive.parent, &redrive.trace_id), (&letter.span_id, &letter.trace_id));
    for span in &spans {
        let about_letter = !span.attribute("waybill.dead_letter.id").is_empty();
        assert!(span.is_error || about_letter, "neither error nor dead letter: {span:#?}");
        assert_eq!(span.trace_id, letter.trace_id, "{span:#?}");
    }
    // The log carries the trace all the same.
    let events = waybill.watch(&order.order_id, 0).await.unwrap().rest().await;
    assert!(events.iter().all(|event| event.trace_id == letter.trace_id), "{events:#?}");
}

#[tokio::test]
async fn a_new_trace_is_sampled_once_for_all() {
    let collector = Collector::start().await;
    let mut options = options(&collector);
    options.payment_sandbox = false;
    options.environment.push(("OTEL_TRACES_SAMPLER", "parentbased_traceidratio".to_owned()));
    options.environment.push(("OTEL_TRACES_SAMPLER_ARG", "0.5".to_owned()));
    let waybill = Deployment::start_with(options).await;
    let mut sampled = 0;
    for n in 0..40 {
        let order =
            waybill.place(order_of("customer", &n.to_string(), vec![item("widget", 1)])).await.unwrap();
        waybill.finished(&order.order_id).await;
    }
    for message in waybill.messages().await {
        let flags = message.headers.get("traceparent").unwrap().as_str()[53..].to_owned();
        sampled += usize::from(flags == "01");
    }
    assert!(sampled % 4 == 0 && (4..4 * 40).contains(&sampled), "{sampled} of {}", 4 * 40);
    eventually("every sampled trace", async || {
        let spans = collector.spans();
        let appends = spans.iter().filter(|span| span.name.starts_with("publish ORDER.")).count();
        (appends == sampled).then_some(())
    })
    .await;
}

/// Where nobody accepts anything, and where somebody accepts and never answers.
#[tokio::test]
async fn a_dead_collector_costs_a_line_in_the_log_and_no_more() {
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for (protocol, addr) in [("grpc", dead), ("http/protobuf", dead), ("grpc", silent.local_addr().unwrap())]
    {
        let set = |name, value: &str| (name, value.to_owned());
        let environment = vec![
            set("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://{addr}")),
            set("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            set("OTEL_TRACES_SAMPLER", "always_on"),
            set("OTEL_BSP_SCHEDULE_DELAY", "50"),
            // Nothing but the limit of the flush ends the program within the patience of this test.
            set("OTEL_EXPORTER_OTLP_TIMEOUT", "600000"),
            set("OTEL_BSP_EXPORT_TIMEOUT", "600000"),
            set("OTEL_METRIC_EXPORT_TIMEOUT", "600000"),
        ];
        let mut waybill = Deployment::start_with(Options { environment, ..Options::default() }).await;
        let fulfil = async |request_id: &str| {
            let order =
                waybill.place(order_of("customer", request_id, vec![item("widget", 1)])).await.unwrap();
            assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
        };
        fulfil("first").await;
        if addr == dead {
            let away = |fields: &Value| {
                (fields["message"].as_str()?.contains("collector unavailable, spans dropped")).then_some(())
            };
            fulfil("second").await;
            waybill.processor("payment").logged("that the collector is away", away).await;
        }
        waybill.gateway.process.signal(Signal::SIGTERM);
        waybill.processor("payment").signal(Signal::SIGTERM);
        assert!(waybill.gateway.process.ended().await.success());
        assert!(waybill.processor("payment").ended().await.success());
        let log = waybill.processor("payment").output();
        let said = |text: &str| log.matches(text).count();
        let (away, unsent) = (said("collector unavailable, spans dropped"), said("last spans not sent"));
        let expected = if addr == dead { (1, 0) } else { (0, 1) };
        assert_eq!((away, unsent), expected, "{protocol} {addr}: {log}");
        assert_eq!(said("last metrics not sent"), 1, "{protocol} {addr}: {log}");
    }
}

#[tokio::test]
async fn a_queue_that_is_full_drops_spans_and_says_how_many() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let set = |name, value: &str| (name, value.to_owned());
    let environment = vec![
        set("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://{}", silent.local_addr().unwrap())),
        set("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        set("OTEL_EXPORTER_OTLP_TIMEOUT", "600000"),
        set("OTEL_BSP_EXPORT_TIMEOUT", "600000"),
        set("OTEL_TRACES_SAMPLER", "always_on"),
        set("OTEL_BSP_MAX_QUEUE_SIZE", "1"),
    ];
    let mut waybill =
        Deployment::start_with(Options { environment, replicas: 0, ..Options::default() }).await;
    for n in 0..5 {
        waybill.place(order_of("customer", &n.to_string(), vec![item("widget", 1)])).await.unwrap();
    }
    assert!(waybill.gateway.process.stop().await.success());
    let counts = |fields: &Value| Some((fields["dropped_spans"].as_u64()?, fields["unsent_spans"].as_u64()?));
    let (dropped, unsent) = waybill.gateway.process.logged("what was not sent", counts).await;
    // A server span and an append for each order.
    assert!((1..=2).contains(&unsent) && dropped + unsent == 10, "{dropped} dropped, {unsent} not sent");
}

#[tokio::test]
async fn a_variable_that_cannot_be_used_ends_the_program_with_its_name() {
    let collector = Collector::start().await;
    for (program, arguments) in [
        ("waybill-gateway", &["--grpc-addr", "127.0.0.1:0", "--ops-addr", "127.0.0.1:0"][..]),
        ("waybill-fulfilment", &[]),
    ] {
        let mut command = tokio::process::Command::new(harness::binary(program));
        command
            .args(arguments)
            .env_clear()
            .envs(collector.environment())
            .env("OTEL_TRACES_EXPORTER", "zipkin");
        let output = command.kill_on_drop(true).output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{said}");
        assert!(said.contains("OTEL_TRACES_EXPORTER"), "{said}");
    }
}
