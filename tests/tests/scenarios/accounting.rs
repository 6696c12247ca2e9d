//! The books of a test: what was ordered against what the log and inventory say.

use backbone::log::subjects::EventKind;
use harness::{Deployment, item, order_of};
use proto::orders::v1::{CreateOrderRequest, Order, OrderStatus};

/// Units of each SKU that a deployment begins with unless a test says otherwise.
pub(crate) const STOCK: u64 = 1_000_000;

/// The whole way of an order that all goes well for.
pub(crate) const WHOLE_WAY: [EventKind; 4] =
    [EventKind::Created, EventKind::Reserved, EventKind::Paid, EventKind::Fulfilled];

/// Requests for one widget each, by a few customers.
pub(crate) fn widgets(count: usize) -> Vec<CreateOrderRequest> {
    let request =
        |i| order_of(&format!("customer-{}", i % 7), &format!("request-{i}"), vec![item("widget", 1)]);
    (0..count).map(request).collect()
}

/// The ids of orders.
pub(crate) fn ids(orders: &[Order]) -> Vec<String> {
    orders.iter().map(|order| order.order_id.clone()).collect()
}

/// Waits until all of the [`widgets`] are finished; then no order is missing, doubled or done twice, and no
/// unit of stock is lost or taken twice.
pub(crate) async fn each_is_carried_out_once(waybill: &Deployment, orders: &[Order]) {
    let statuses = waybill.statuses(&ids(orders)).await;
    assert_eq!(statuses.get(&OrderStatus::Fulfilled), Some(&orders.len()), "{statuses:?}");

    let histories = waybill.histories().await;
    assert_eq!(histories.len(), orders.len(), "orders in the log");
    for order in orders {
        assert_eq!(histories[&order.order_id], WHOLE_WAY, "order {}", order.order_id);
    }

    let held = waybill.held("widget").await;
    assert_eq!(held, orders.len() as u64, "units held");
    assert_eq!(waybill.available("widget").await, STOCK - held, "units available");
}
