//! What happens once the events of an order are no longer kept.

use harness::{Deployment, Options, eventually, item, order_of};
use proto::orders::v1::{Order, OrderStatus};
use tonic::Code;

use crate::accounting::STOCK;

/// Keeps events for as short as a test can wait, and long enough for an order to be finished.
fn short_memory() -> Options {
    let retention = ("ORDERS_RETENTION", "5s".to_owned());
    let mut options = Options::default();
    options.gateway.push(retention.clone());
    options.processors.push(retention);
    options
}

async fn finished(waybill: &Deployment, customer_id: &str, quantity: i32) -> Order {
    let request = order_of(customer_id, "request", vec![item("widget", quantity)]);
    let order = waybill.place(request).await.unwrap();
    waybill.finished(&order.order_id).await
}

#[tokio::test]
async fn a_request_id_used_again_after_its_order_is_gone_makes_a_new_order() {
    let waybill = Deployment::start_with(short_memory()).await;
    let customers =
        [("customer", OrderStatus::Fulfilled, 1), ("declined-customer", OrderStatus::Rejected, 0)];
    let mut taken = 0;
    let mut firsts = Vec::new();
    for (customer, status, takes) in customers {
        let order = finished(&waybill, customer, 10).await;
        assert_eq!(order.status(), status);
        taken += takes * 10;
        firsts.push(order);
    }
    assert_eq!(waybill.available("widget").await, STOCK - taken);

    for ((customer, status, takes), first) in customers.into_iter().zip(firsts) {
        eventually("an order that is gone", async || {
            let gone = waybill.get(&first.order_id).await.is_err_and(|error| error.code() == Code::NotFound);
            gone.then_some(())
        })
        .await;
        let second = finished(&waybill, customer, 50).await;
        assert_eq!((&second.order_id, second.status()), (&first.order_id, status));
        taken += takes * 50;
        assert_eq!(waybill.available("widget").await, STOCK - taken, "{customer}");
    }
    assert_eq!(waybill.held("widget").await, 50, "what the first order held is gone with it");
}
