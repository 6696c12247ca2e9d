//! Stock that operators change while orders do: no unit appears or vanishes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use harness::{Deployment, Options, eventually, item, order_of};
use processor::inventory::{BUCKET, stock_key};
use proto::inventory::v1::{
    AddStockRequest, GetStockRequest, ListStockRequest, RemoveStockRequest, SetStockRequest, Stock,
};
use proto::orders::v1::OrderStatus;
use proto::orders::v1::order_service_client::OrderServiceClient;
use tonic::{Code, Status};
use tonic_types::StatusExt;

async fn with_stock(stock: Vec<(&'static str, u64)>) -> Deployment {
    let waybill = Deployment::start_with(Options { stock, ..Options::default() }).await;
    let jetstream = waybill.jetstream().await;
    eventually("stock", async || {
        jetstream.get_key_value(BUCKET).await.ok()?.get(stock_key("widget")).await.ok()?
    })
    .await;
    waybill
}

/// Callers that order `widget` until they are told to stop; gives the orders' ids.
fn callers(
    waybill: &Deployment,
    callers: usize,
    stop: &Arc<AtomicBool>,
) -> Vec<tokio::task::JoinHandle<Vec<String>>> {
    let caller = |number: usize| {
        let (mut client, stop) = (OrderServiceClient::new(waybill.channel()), stop.clone());
        async move {
            let mut ids = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let request = order_of(&format!("customer-{number}"), "", vec![item("widget", 1)]);
                ids.push(client.create_order(request).await.unwrap().into_inner().order.unwrap().order_id);
            }
            ids
        }
    };
    (0..callers).map(|number| tokio::spawn(caller(number))).collect()
}

/// How many of the orders were fulfilled, each of one unit.
async fn sold(waybill: &Deployment, callers: Vec<tokio::task::JoinHandle<Vec<String>>>) -> u64 {
    let mut sold = 0;
    for caller in callers {
        let ends = waybill.statuses(&caller.await.unwrap()).await;
        sold += ends.get(&OrderStatus::Fulfilled).copied().unwrap_or(0) as u64;
    }
    sold
}

async fn get(waybill: &Deployment, sku: &str) -> Stock {
    let request = GetStockRequest { sku: sku.to_owned() };
    waybill.stock().get_stock(request).await.unwrap().into_inner().stock.unwrap()
}

async fn remove(waybill: &Deployment, request_id: &str, sku: &str, units: i64) -> Result<Stock, Status> {
    let request = RemoveStockRequest { request_id: request_id.to_owned(), sku: sku.to_owned(), units };
    Ok(waybill.stock().remove_stock(request).await?.into_inner().stock.unwrap())
}

async fn set(waybill: &Deployment, request_id: &str, units: i64, revision: u64) -> Result<Stock, Status> {
    let request = SetStockRequest {
        request_id: request_id.to_owned(),
        sku: "widget".to_owned(),
        available_units: units,
        expected_revision: revision,
    };
    Ok(waybill.stock().set_stock(request).await?.into_inner().stock.unwrap())
}

/// Whether a change is known to be made. Else a repeat makes it or tells: a change of a SKU in great demand may not get its
/// turn within the deadline.
fn is_made<T>(change: Result<T, Status>) -> bool {
    change.map_or_else(
        |status| {
            assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Unavailable), "{status:?}");
            false
        },
        |_| true,
    )
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

#[tokio::test]
async fn three_deliveries_while_two_callers_order_leave_the_stock_exact() {
    let waybill = with_stock(vec![("widget", 100)]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let callers = callers(&waybill, 2, &stop);
    for delivery in ["monday", "tuesday", "wednesday"] {
        let before = waybill.available("widget").await;
        // Some are sold in between.
        eventually("an order", async || {
            (waybill.available("widget").await < before || before == 0).then_some(())
        })
        .await;
        let first = waybill.add_stock(delivery, "widget", 50).await.unwrap();
        let again = waybill.add_stock(delivery, "widget", 50).await.unwrap();
        assert_eq!((first.repeated, again.repeated), (false, true));
        assert_eq!(again.stock, first.stock, "a repeat answers as the first did");
    }
    stop.store(true, Ordering::Relaxed);
    let sold = sold(&waybill, callers).await;
    let left = waybill.available("widget").await;
    assert_eq!(sold + left, 250, "{sold} sold, {left} left");
}

#[tokio::test]
async fn changes_of_several_operators_while_orders_go_on_all_count() {
    let waybill = with_stock(vec![("widget", 1_000_000)]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let ordering = callers(&waybill, 2, &stop);
    let operator = |number: i64| {
        let mut stock = waybill.stock();
        async move {
            let mut balance = 0;
            for n in 0..10 {
                let request_id = format!("operator-{number}-{n}");
                let sku = "widget".to_owned();
                if n % 2 == 0 {
                    let units = 3 + number;
                    let request = AddStockRequest { request_id, sku, units };
                    while !is_made(stock.add_stock(request.clone()).await) {}
                    balance += units;
                } else {
                    let request = RemoveStockRequest { request_id, sku, units: 2 };
                    while !is_made(stock.remove_stock(request.clone()).await) {}
                    balance -= 2;
                }
            }
            balance
        }
    };
    let operators: Vec<_> = (0..4).map(|number| tokio::spawn(operator(number))).collect();
    let mut balance = 0;
    for operator in operators {
        balance += operator.await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let sold = sold(&waybill, ordering).await;
    let left = waybill.available("widget").await;
    assert_eq!(i64::try_from(sold + left).unwrap(), 1_000_000 + balance, "{sold} sold, {left} left");
}

#[tokio::test]
async fn a_request_is_made_once_whatever_happens_after_it() {
    let mut waybill = with_stock(vec![("widget", 10)]).await;
    let first = waybill.add_stock("delivery", "widget", 5).await.unwrap();
    remove(&waybill, "breakage", "widget", 1).await.unwrap();
    waybill.restart_gateway().await;
    let again = waybill.add_stock("delivery", "widget", 5).await.unwrap();
    assert_eq!((again.stock, again.repeated), (first.stock, true));
    assert_eq!(waybill.available("widget").await, 14);
    for (units, sku) in [(6, "widget"), (5, "gadget")] {
        let refused = waybill.add_stock("delivery", sku, units).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::AlreadyExists, "REQUEST_ID_REUSED"));
    }
    let refused = remove(&waybill, "delivery", "widget", 5).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert_eq!(waybill.available("widget").await, 14);
}

#[tokio::test]
async fn stock_never_goes_below_what_is_there_and_is_set_only_by_who_has_seen_it() {
    let waybill = with_stock(vec![("widget", 10)]).await;
    let refused = remove(&waybill, "too-many", "widget", 11).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "INSUFFICIENT_STOCK"));
    assert_eq!(refused.get_details_error_info().unwrap().metadata["available_units"], "10");
    assert_eq!(remove(&waybill, "all", "widget", 10).await.unwrap().available_units, 0);

    let seen = get(&waybill, "widget").await;
    waybill.add_stock("delivery", "widget", 7).await.unwrap();
    let refused = set(&waybill, "count", 3, seen.revision).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Aborted, "STOCK_CHANGED"));
    let seen = get(&waybill, "widget").await;
    assert_eq!(refused.get_details_error_info().unwrap().metadata["revision"], seen.revision.to_string());
    let after = set(&waybill, "count", 3, seen.revision).await.unwrap();
    assert_eq!(set(&waybill, "count", 3, seen.revision).await.unwrap(), after, "a repeat");
    assert_eq!((get(&waybill, "widget").await.available_units, waybill.available("widget").await), (3, 3));

    // What somebody has written by hand, and cannot be read, is mended by setting it.
    let damaged = waybill.inventory().await.put(stock_key("widget"), "oops".into()).await.unwrap();
    let refused = waybill.add_stock("more", "widget", 1).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "STOCK_UNREADABLE"));
    let seen = get(&waybill, "widget").await;
    assert_eq!((seen.unreadable, seen.revision), (true, damaged));
    set(&waybill, "mended", 8, damaged).await.unwrap();
    assert_eq!(waybill.available("widget").await, 8);
}

#[tokio::test]
async fn bad_input_is_named() {
    let waybill = with_stock(vec![("widget", 10)]).await;
    let fields = |status: Status| {
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        let violations = status.get_details_bad_request().unwrap().field_violations;
        violations.into_iter().map(|violation| violation.field).collect::<Vec<_>>()
    };
    assert_eq!(fields(waybill.add_stock("", "no sku", 0).await.unwrap_err()), ["request_id", "sku", "units"]);
    assert_eq!(fields(waybill.add_stock("most", "widget", 1_000_000_000_000).await.unwrap_err()), ["units"]);
    assert_eq!(fields(set(&waybill, "count", -1, 1).await.unwrap_err()), ["available_units"]);
    let refused = waybill.stock().get_stock(GetStockRequest::default()).await.unwrap_err();
    assert_eq!(fields(refused), ["sku"]);
    let missing = GetStockRequest { sku: "nothing".to_owned() };
    assert_eq!(waybill.stock().get_stock(missing).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(waybill.available("widget").await, 10);
}

#[tokio::test]
async fn stock_is_listed_by_pages_with_what_unfinished_orders_hold() {
    let mut waybill = with_stock(vec![("a", 5), ("b", 5), ("widget", 20)]).await;
    let done = waybill.place(order_of("customer", "", vec![item("widget", 4)])).await.unwrap();
    waybill.finished(&done.order_id).await;
    waybill.kill_processors("payment");
    let held = waybill.place(order_of("customer", "", vec![item("widget", 3), item("a", 1)])).await.unwrap();
    waybill.reached(&held.order_id, OrderStatus::Reserved).await;
    waybill.add_stock("new", "c", 1).await.unwrap();

    let mut request = ListStockRequest { page_size: 3, ..ListStockRequest::default() };
    let first = waybill.stock().list_stock(request.clone()).await.unwrap().into_inner();
    request.page_token = first.next_page_token.clone();
    let last = waybill.stock().list_stock(request).await.unwrap().into_inner();
    let line = |stock: &Stock| (stock.sku.clone(), stock.available_units, stock.reserved_units);
    let lines: Vec<_> = first.stock.iter().chain(&last.stock).map(line).collect();
    let expected = [("a", 4, 1), ("b", 5, 0), ("c", 1, 0), ("widget", 13, 3)];
    assert_eq!(lines, expected.map(|(sku, available, reserved)| (sku.to_owned(), available, reserved)));
    assert_eq!((first.stock.len(), last.next_page_token.as_str()), (3, ""));
    assert!(!first.reserved_incomplete);
    let widget = get(&waybill, "widget").await;
    assert_eq!((widget.available_units, widget.reserved_units), (13, 3));
    assert_eq!(widget.revision, last.stock[0].revision);
}
