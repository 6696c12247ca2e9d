//! The ways that an order can go when nothing breaks.

use backbone::log::subjects::EventKind;
use harness::{Deployment, Options, item, order_of};
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Money, OrderStatus};
use tonic::Request;

use crate::accounting::WHOLE_WAY;
use crate::events::{after, kinds, revisions};

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

#[tokio::test]
async fn an_order_is_reserved_paid_and_fulfilled_before_the_eyes_of_its_watcher() {
    let waybill = Deployment::start().await;
    let request = order_of("customer", "request", vec![item("widget", 2), item("gadget", 1)]);
    let order = waybill.place(request).await.unwrap();
    assert_eq!(order.status(), OrderStatus::Accepted);
    assert_eq!(order.total, Some(Money { currency_code: "EUR".to_owned(), minor_units: 3 * 350 }));

    let events = waybill.watch(&order.order_id, 0).await.unwrap().rest().await;
    assert_eq!(kinds(&events), WHOLE_WAY);
    let statuses: Vec<_> = events.iter().map(|event| after(event).status()).collect();
    use OrderStatus::{Accepted, Fulfilled, Paid, Reserved};
    assert_eq!(statuses, [Accepted, Reserved, Paid, Fulfilled]);

    let mut previous: Vec<_> = events.iter().map(|event| event.previous_revision).collect();
    assert_eq!(previous.remove(0), 0);
    assert_eq!(previous, revisions(&events)[..3], "each event names the one before it");
    for event in &events {
        assert_eq!(after(event).order_id, order.order_id);
        assert_eq!(after(event).total, order.total);
        assert_eq!(after(event).create_time, order.create_time);
        assert_eq!(event.trace_id, events[0].trace_id, "one trace throughout");
    }
    let times = events.iter().map(|event| after(event).update_time.map(|time| (time.seconds, time.nanos)));
    assert!(times.is_sorted(), "{events:#?}");
    assert_eq!(Some(after(&events[3])), waybill.get(&order.order_id).await.ok().as_ref());
    assert_eq!(waybill.held("widget").await, 2);
    assert_eq!(waybill.held("gadget").await, 1);
}

#[tokio::test]
async fn stored_events_are_cloudevents_in_the_callers_trace() {
    let waybill = Deployment::start().await;
    let mut request = Request::new(order_of("customer", "request", vec![item("widget", 1)]));
    let traceparent = format!("00-{TRACE_ID}-00f067aa0ba902b7-01");
    request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
    request.metadata_mut().insert("tracestate", "vendor=entry".parse().unwrap());
    let response = waybill.client().await.create_order(request).await.unwrap().into_inner();
    let order_id = response.order.unwrap().order_id;
    let events = waybill.watch(&order_id, 0).await.unwrap().rest().await;

    let messages = waybill.messages().await;
    let types = ["OrderCreated", "StockReserved", "PaymentCaptured", "OrderFulfilled"];
    let sources = ["waybill-gateway", "inventory", "payment", "fulfilment"];
    assert_eq!(messages.len(), types.len());
    for (i, message) in messages.iter().enumerate() {
        let header = |name| message.headers.get(name).map_or("", |value| value.as_str());
        assert_eq!(header("ce-specversion"), "1.0");
        assert_eq!(header("ce-id"), events[i].event_id);
        assert_eq!(header("ce-type"), format!("orders.v1.{}", types[i]));
        assert_eq!(header("ce-source"), sources[i]);
        assert!(!header("ce-time").is_empty());
        assert_eq!(header("content-type"), "application/protobuf");
        assert!(header("traceparent").starts_with(&format!("00-{TRACE_ID}-")), "{message:?}");
        assert_eq!(header("tracestate"), "vendor=entry");
        assert_eq!(events[i].trace_id, TRACE_ID);
    }
}

#[tokio::test]
async fn an_order_that_lacks_one_of_its_skus_is_rejected_and_holds_nothing() {
    let stock = vec![("widget", 10), ("gadget", 1)];
    let waybill = Deployment::start_with(Options { stock, ..Options::default() }).await;
    let request = order_of("customer", "request", vec![item("widget", 2), item("gadget", 2)]);
    let order = waybill.place(request).await.unwrap();

    let events = waybill.watch(&order.order_id, 0).await.unwrap().rest().await;
    assert_eq!(kinds(&events), [EventKind::Created, EventKind::Rejected]);
    let rejected = after(&events[1]);
    assert_eq!((rejected.status(), rejected.reason.as_str()), (OrderStatus::Rejected, "OUT_OF_STOCK"));
    let Some(Detail::Rejected(detail)) = &events[1].detail else { panic!("{events:?}") };
    assert_eq!(events[1].step, "inventory");
    assert!(detail.message.contains("gadget"), "{}", detail.message);
    assert!(!detail.message.contains("widget"), "{}", detail.message);

    assert_eq!(waybill.reservation(&order.order_id).await, None);
    assert_eq!(waybill.available("widget").await, 10);
    assert_eq!(waybill.available("gadget").await, 1);
}

#[tokio::test]
async fn an_order_for_a_sku_that_nobody_stocks_is_rejected() {
    let waybill = Deployment::start().await;
    let order = waybill.place(order_of("customer", "", vec![item("unicorn", 1)])).await.unwrap();
    let order = waybill.finished(&order.order_id).await;
    assert_eq!((order.status(), order.reason.as_str()), (OrderStatus::Rejected, "OUT_OF_STOCK"));
}

#[tokio::test]
async fn items_of_one_sku_are_added_up() {
    let options = Options { stock: vec![("widget", 3)], ..Options::default() };
    let waybill = Deployment::start_with(options).await;
    let twice = |request_id, quantity| {
        order_of("customer", request_id, vec![item("widget", quantity), item("widget", 2)])
    };
    let too_much = waybill.place(twice("too-much", 2)).await.unwrap();
    assert_eq!(waybill.finished(&too_much.order_id).await.status(), OrderStatus::Rejected);
    let enough = waybill.place(twice("enough", 1)).await.unwrap();
    assert_eq!(waybill.finished(&enough.order_id).await.status(), OrderStatus::Fulfilled);
    assert_eq!((waybill.held("widget").await, waybill.available("widget").await), (3, 0));
}

#[tokio::test]
async fn a_declined_order_gives_its_stock_back() {
    let options = Options { stock: vec![("widget", 5)], ..Options::default() };
    let waybill = Deployment::start_with(options).await;
    let order = waybill.place(order_of("declined-customer", "r", vec![item("widget", 3)])).await.unwrap();

    let events = waybill.watch(&order.order_id, 0).await.unwrap().rest().await;
    use EventKind::{Created, Rejected, Released, Reserved};
    assert_eq!(kinds(&events), [Created, Reserved, Rejected, Released]);
    let rejected = after(&events[2]);
    assert_eq!((rejected.status(), rejected.reason.as_str()), (OrderStatus::Rejected, "CARD_DECLINED"));
    assert_eq!(rejected.compensation_pending, ["inventory"], "a release is owed");
    let end = after(&events[3]);
    assert_eq!((end.status(), end.reason.as_str()), (OrderStatus::Rejected, "CARD_DECLINED"));
    let Some(Detail::Released(released)) = &events[3].detail else { panic!("{events:?}") };
    assert_eq!((released.lines[0].sku.as_str(), released.lines[0].quantity), ("widget", 3));

    assert_eq!((waybill.held("widget").await, waybill.available("widget").await), (0, 5));
}
