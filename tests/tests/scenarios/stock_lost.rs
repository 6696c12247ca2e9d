//! The bucket INVENTORY deleted or purged under a step that remembers what was in it: nothing is sold that is not there.

use async_nats::jetstream::kv::Store;
use harness::{Deployment, eventually, item, order_of};
use processor::inventory::{BUCKET, stock_key};
use proto::orders::v1::{Order, OrderStatus};

async fn order(waybill: &Deployment, request_id: &str, quantity: i32) -> Order {
    let request = order_of("customer", request_id, vec![item("widget", quantity)]);
    let order = waybill.place(request).await.unwrap();
    waybill.finished(&order.order_id).await
}

/// The bucket, once it is there and has stock.
async fn stocked(waybill: &Deployment) -> Store {
    let jetstream = waybill.jetstream().await;
    eventually("stock", async || {
        let bucket = jetstream.get_key_value(BUCKET).await.ok()?;
        bucket.get(stock_key("gadget")).await.ok()??;
        Some(bucket)
    })
    .await
}

#[tokio::test]
async fn a_bucket_that_was_made_anew_is_not_taken_for_the_one_before() {
    let mut waybill = Deployment::start().await;
    assert_eq!(order(&waybill, "first", 1).await.status(), OrderStatus::Fulfilled);
    let before = stocked(&waybill).await.entry(stock_key("widget")).await.unwrap().unwrap();
    // It remembers the count that the first order has left.
    waybill.processor("inventory").pause();
    waybill.jetstream().await.delete_stream(format!("KV_{BUCKET}")).await.unwrap();
    waybill.broker.provision().await;
    let mut another = waybill.another_processor("inventory");
    let bucket = stocked(&waybill).await;
    another.kill();
    // As many writes as there were to the old one, so that their numbers could be mistaken.
    loop {
        let revision = bucket.put(stock_key("widget"), "5".into()).await.unwrap();
        if revision >= before.revision {
            break;
        }
    }
    waybill.processor("inventory").resume();
    let greedy = order(&waybill, "greedy", 10).await;
    assert_eq!((greedy.status(), greedy.reason.as_str()), (OrderStatus::Rejected, "OUT_OF_STOCK"));
    assert_eq!(order(&waybill, "modest", 5).await.status(), OrderStatus::Fulfilled);
    assert_eq!(waybill.available("widget").await, 0);
}

#[tokio::test]
async fn a_bucket_that_was_purged_sells_nothing_until_it_is_stocked() {
    let waybill = Deployment::start().await;
    assert_eq!(order(&waybill, "first", 1).await.status(), OrderStatus::Fulfilled);
    let stream = waybill.jetstream().await.get_stream(format!("KV_{BUCKET}")).await.unwrap();
    stream.purge().await.unwrap();
    let nothing = order(&waybill, "nothing", 1).await;
    assert_eq!((nothing.status(), nothing.reason.as_str()), (OrderStatus::Rejected, "OUT_OF_STOCK"));
    waybill.inventory().await.put(stock_key("widget"), "5".into()).await.unwrap();
    assert_eq!(order(&waybill, "greedy", 6).await.status(), OrderStatus::Rejected);
    assert_eq!(order(&waybill, "modest", 5).await.status(), OrderStatus::Fulfilled);
}
