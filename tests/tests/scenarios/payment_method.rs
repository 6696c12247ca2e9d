//! The payment method of an order is in the log, and only the payment service gets it.

use harness::{Deployment, Options, PAYMENT_METHOD, full_order_of, item};
use prost::Message;
use proto::operations::v1::DeadLetterState;
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{
    CreateOrderRequest, ListOrderEventsRequest, ListOrdersRequest, Order, OrderEvent, OrderStatus,
    WatchOrdersRequest,
};

use crate::dead_letters::break_gadgets;
use crate::events::after;

const NOTE: &str = "beware of the leopard";

fn request(request_id: &str, sku: &str) -> CreateOrderRequest {
    full_order_of("customer", request_id, vec![item(sku, 1)])
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// The whole order but for the payment method.
fn check_order(order: &Order, request: &CreateOrderRequest) {
    assert_eq!(order.payment_method, "");
    assert_eq!((&order.items, &order.metadata), (&request.items, &request.metadata));
    assert_eq!(order.shipping_address, request.shipping_address);
    assert_eq!((&order.note, &order.reference), (&request.note, &request.reference));
}

fn check_event(event: &OrderEvent, request: &CreateOrderRequest) {
    check_order(after(event), request);
    assert!(!has(&event.encode_to_vec(), PAYMENT_METHOD), "{event:?}");
    if let Some(Detail::Created(created)) = &event.detail {
        assert_eq!((&created.note, &created.metadata), (&request.note, &request.metadata));
    }
}

#[tokio::test]
async fn every_answer_has_the_whole_order_but_for_the_payment_method() {
    let waybill = Deployment::start_with(Options { replicas: 0, ..Options::default() }).await;
    let mut client = waybill.client().await;
    let request = request("request", "widget");
    let placed = waybill.place(request.clone()).await.unwrap();
    check_order(&placed, &request);
    // A retry, which is compared with the stored order.
    check_order(&waybill.place(request.clone()).await.unwrap(), &request);
    check_order(&waybill.get(&placed.order_id).await.unwrap(), &request);
    let all = WatchOrdersRequest { customer_id: "customer".to_owned(), after_revision: 0 };
    let mut of_customer = client.watch_orders(all).await.unwrap().into_inner();
    let mut of_order = waybill.watch(&placed.order_id, 0).await.unwrap();
    // One event from the log, one as it happens.
    for _ in 0..2 {
        check_event(&of_order.event().await, &request);
        check_event(&of_customer.message().await.unwrap().unwrap().event.unwrap(), &request);
        check_order(&waybill.cancel(&placed.order_id).await.unwrap(), &request);
    }
    let list = ListOrdersRequest { customer_id: "customer".to_owned(), ..Default::default() };
    let listed = client.list_orders(list).await.unwrap().into_inner().orders;
    assert_eq!(listed.len(), 1);
    check_order(&listed[0], &request);
    let events = ListOrderEventsRequest { order_id: placed.order_id.clone(), ..Default::default() };
    let events = client.list_order_events(events).await.unwrap().into_inner().events;
    assert_eq!(events.len(), 2);
    events.iter().for_each(|event| check_event(event, &request));

    for message in waybill.messages().await {
        assert!(has(&message.payload, PAYMENT_METHOD), "the log keeps it for the payment step");
        assert!(!format!("{:?}", message.headers).contains(PAYMENT_METHOD));
        assert!(!message.subject.contains(PAYMENT_METHOD));
    }
}

/// `waybill-test-step` fails with an order that has one.
#[tokio::test]
async fn the_payment_service_gets_it_and_other_steps_do_not() {
    let routes = "routes: {packed: [inventory, {name: packing, compensates: true}, payment, fulfilment]}";
    let mut waybill = Deployment::start_with(Options {
        routes: Some(routes.to_owned()),
        steps: vec!["inventory", "packing", "payment", "fulfilment"],
        payment_sandbox: true,
        processors: vec![("MAX_ATTEMPTS", "1".to_owned())],
        ..Options::default()
    })
    .await;
    let order = waybill.place(request("request", "widget")).await.unwrap();
    let order = waybill.finished(&order.order_id).await;
    assert_eq!(order.status(), OrderStatus::Fulfilled);
    let records = waybill.sandbox().records();
    assert!(records[0].contains(PAYMENT_METHOD), "{records:?}");
    for message in waybill.messages().await {
        assert!(
            has(&message.payload, PAYMENT_METHOD),
            "a step that does not see it keeps it: {}",
            message.subject
        );
    }
    assert!(waybill.letters_kept().await.is_empty());
}

#[tokio::test]
async fn a_dead_letter_shows_the_message_without_it() {
    let mut options = Options::default();
    options.processors.push(("MAX_ATTEMPTS", "1".to_owned()));
    let waybill = Deployment::start_with(options).await;
    waybill.idle("inventory").await;
    break_gadgets(&waybill).await;
    let order = waybill.place(request("poison", "gadget")).await.unwrap();
    let failed = waybill.reached(&order.order_id, OrderStatus::Failed).await;
    let letter = waybill.letter(&failed.dead_letter_id).await.unwrap();
    let event = OrderEvent::decode(letter.payload.as_slice()).unwrap();
    check_event(&event, &request("poison", "gadget"));

    // An event that is torn is a letter byte for byte, but for this.
    let stored = waybill.messages().await.remove(0).payload;
    let torn = stored.slice(..stored.len() - 3);
    let jetstream = waybill.jetstream().await;
    jetstream.publish("ORDER.0.junk.junk.junk.inventory", torn).await.unwrap().await.unwrap();
    harness::eventually("a letter of the torn event", async || {
        (waybill.open_letters().await.len() == 2).then_some(())
    })
    .await;
    for (subject, letter) in waybill.letters_kept().await {
        let is_letter = letter.state() != DeadLetterState::Unspecified;
        assert_eq!(has(&letter.payload, NOTE), is_letter, "{subject}");
        assert!(!has(&letter.encode_to_vec(), PAYMENT_METHOD), "{subject}");
    }
    for letter in waybill.listed_letters().await.dead_letters {
        for text in harness::PERSONAL {
            assert!(!has(&letter.encode_to_vec(), text), "{text} in a list");
        }
    }
}
