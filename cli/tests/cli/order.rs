//! `waybill order` against a gateway that answers as the test wants.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use proto::orders::v1::OrderStatus;
use tokio::net::TcpListener;
use tokio::process::Command;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::shop::{self, Script, order};
use crate::stage::{output_of, stderr, stdout};

fn waybill_order(addr: SocketAddr) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_waybill"));
    command.args(["order", "--gateway", &format!("http://{addr}")]);
    command
}

#[tokio::test]
async fn place_sends_the_items_and_shows_the_order() {
    let create = Box::new(|_: &_, _| Ok(order(OrderStatus::Accepted, 7)));
    let (addr, seen) = shop::open(Script { create, ..Script::default() }).await;
    let output = output_of(waybill_order(addr).args([
        "place",
        "--customer",
        "ada",
        "--item",
        "widget:2:1250",
        "--item",
        "gadget:1:4999",
        "--request-id",
        "r-1",
    ]))
    .await;

    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("order     customer-order\n"));
    assert!(stdout(&output).contains("status    ACCEPTED\n"));
    let seen = seen.creates.lock().unwrap();
    let request = &seen[0];
    assert_eq!((request.customer_id.as_str(), request.request_id.as_str()), ("ada", "r-1"));
    let items: Vec<_> = request.items.iter().map(|item| (item.sku.as_str(), item.quantity)).collect();
    assert_eq!(items, [("widget", 2), ("gadget", 1)]);
    let price = request.items[1].unit_price.as_ref().unwrap();
    assert_eq!((price.currency_code.as_str(), price.minor_units), ("EUR", 4999));
}

#[tokio::test]
async fn place_with_watch_follows_the_order_to_its_end() {
    let create = Box::new(|_: &_, _| Ok(order(OrderStatus::Accepted, 7)));
    let watch =
        Box::new(|_: &_, _| vec![Ok(order(OrderStatus::Accepted, 7)), Ok(order(OrderStatus::Fulfilled, 9))]);
    let (addr, _) = shop::open(Script { create, watch, ..Script::default() }).await;
    let output =
        output_of(waybill_order(addr).args(["place", "--customer", "a", "--item", "w:1:1", "--watch"])).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("revision 9 "));
    assert!(stdout(&output).trim_end().ends_with("FULFILLED"));
}

#[tokio::test]
async fn a_refusal_shows_its_code_and_every_detail() {
    let get = Box::new(|_: &_, _| {
        let mut details = ErrorDetails::new();
        details
            .add_bad_request_violation("order_id", "must be 43 characters")
            .set_error_info("MALFORMED", "waybill", HashMap::new())
            .set_retry_info(Some(Duration::from_millis(250)));
        Err(Status::with_error_details(Code::InvalidArgument, "1 invalid field", details))
    });
    let (addr, _) = shop::open(Script { get, ..Script::default() }).await;
    let output = output_of(waybill_order(addr).args(["get", "nonsense"])).await;
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(&output), "");
    assert_eq!(
        stderr(&output),
        "error: INVALID_ARGUMENT: 1 invalid field\n  order_id: must be 43 characters\n  reason: MALFORMED\n  \
         try again in 250ms\n"
    );
}

#[tokio::test]
async fn a_watch_that_breaks_takes_up_after_the_last_revision() {
    let watch = Box::new(|_: &_, before| match before {
        0 => vec![Ok(order(OrderStatus::Accepted, 7)), Err(Status::unavailable("draining"))],
        _ => vec![Ok(order(OrderStatus::Fulfilled, 9))],
    });
    let (addr, seen) = shop::open(Script { watch, ..Script::default() }).await;
    let output =
        output_of(waybill_order(addr).args(["watch", "customer-order", "--after-revision", "3"])).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output).lines().count(), 2);
    let revisions: Vec<_> = seen.watches.lock().unwrap().iter().map(|watch| watch.after_revision).collect();
    assert_eq!(revisions, [3, 7]);
}

#[tokio::test]
async fn a_watch_without_progress_gives_up() {
    let watch = Box::new(|_: &_, _| {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(1)));
        vec![Err(Status::with_error_details(Code::Unavailable, "draining", details))]
    });
    let (addr, seen) = shop::open(Script { watch, ..Script::default() }).await;
    let output = output_of(waybill_order(addr).args(["watch", "customer-order"])).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("UNAVAILABLE: draining"));
    assert_eq!(seen.watches.lock().unwrap().len(), 11);
}

#[tokio::test]
async fn a_gateway_that_is_not_there_is_said_not_to_be_there() {
    let addr = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let output = output_of(waybill_order(addr).args(["get", "customer-order"])).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cannot reach a gateway") && stderr(&output).contains("waybill dev"));
}
