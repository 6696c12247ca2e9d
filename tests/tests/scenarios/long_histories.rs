//! An order's history can grow without end, and can be read all the same.

use harness::{binary, eventually, item, order_of, these};
use proto::orders::v1::{ListOrderEventsRequest, ListOrderEventsResponse, OrderEvent, OrderStatus};
use tokio::process::Command;
use tonic::Code;
use tonic_types::StatusExt;

use crate::dead_letters::with_damage;

/// As many redrives of an order of this size as make its history larger than what clients take.
const REDRIVES: usize = 270;
const ITEMS: usize = 100;
const CLIENTS_TAKE_BYTES: usize = 4 * 1024 * 1024;

#[tokio::test]
async fn the_history_of_an_order_that_was_redriven_often_can_be_read() {
    let waybill = with_damage(1).await;
    let mut items: Vec<_> = (1..ITEMS).map(|n| item(&format!("{n:0>64}"), 1)).collect();
    items.push(item("gadget", 1));
    let order = waybill.place(order_of("customer", "", items)).await.unwrap();
    let mut order = waybill.reached(&order.order_id, OrderStatus::Failed).await;
    for _ in 0..REDRIVES {
        let letter = order.dead_letter_id.clone();
        waybill.redrive(these(&[&letter])).await.unwrap();
        order = eventually("another failure", async || {
            let order = waybill.get(&order.order_id).await.ok()?;
            let is_new = order.status() == OrderStatus::Failed && order.dead_letter_id != letter;
            is_new.then_some(order)
        })
        .await;
    }

    let mut client = waybill.client().await;
    let (mut events, mut page_token) = (Vec::<OrderEvent>::new(), String::new());
    loop {
        let order_id = order.order_id.clone();
        let request = ListOrderEventsRequest { order_id, page_size: 1000, page_token };
        let ListOrderEventsResponse { events: more, next_page_token } =
            client.list_order_events(request).await.unwrap().into_inner();
        events.extend(more);
        page_token = next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let bytes: usize = events.iter().map(prost::Message::encoded_len).sum();
    assert!(bytes > CLIENTS_TAKE_BYTES, "{bytes}: nothing is tried");
    assert_eq!(events.len(), 2 + 2 * REDRIVES);
    for two in events.windows(2) {
        assert_eq!(two[1].previous_revision, revision(&two[0]));
    }
    assert_eq!(revision(events.last().unwrap()), order.revision);

    let mut command = Command::new(binary("waybill"));
    let gateway = format!("http://{}", waybill.gateway.grpc_addr);
    command.args(["order", "--gateway", &gateway, "events", &order.order_id]).kill_on_drop(true);
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), events.len());
}

#[tokio::test]
async fn pages_of_events_are_as_long_as_was_asked_for() {
    let waybill = with_damage(1).await;
    let order = waybill.place(order_of("customer", "", vec![item("gadget", 1)])).await.unwrap();
    waybill.reached(&order.order_id, OrderStatus::Failed).await;
    let mut client = waybill.client().await;
    let request = ListOrderEventsRequest {
        order_id: order.order_id,
        page_size: 1,
        ..ListOrderEventsRequest::default()
    };
    let first = client.list_order_events(request.clone()).await.unwrap().into_inner();
    let next = ListOrderEventsRequest { page_token: first.next_page_token.clone(), ..request.clone() };
    let second = client.list_order_events(next).await.unwrap().into_inner();
    assert_eq!((first.events.len(), second.events.len(), second.next_page_token.as_str()), (1, 1, ""));
    assert_eq!(second.events[0].previous_revision, revision(&first.events[0]));

    let bad = ListOrderEventsRequest { page_size: 1001, page_token: "x".to_owned(), ..request };
    let refusal = client.list_order_events(bad).await.unwrap_err();
    assert_eq!(refusal.code(), Code::InvalidArgument);
    let violations = refusal.get_details_bad_request().unwrap().field_violations;
    let fields: Vec<_> = violations.into_iter().map(|violation| violation.field).collect();
    assert_eq!(fields, ["page_size", "page_token"]);
}

fn revision(event: &OrderEvent) -> u64 {
    event.order.as_ref().unwrap().revision
}
