//! The bucket INVENTORY deleted or purged under a step that remembers what was in it: nothing is sold that is not there.

use backbone::broker::streams::ORDERS;
use backbone::log::subjects::EventKind;
use harness::{Deployment, Options, eventually, http_get, item, order_of};
use processor::inventory::{BUCKET, stock_key};
use proto::inventory::v1::{ReconcileStockRequest, RemoveStockRequest, SetStockRequest};
use proto::orders::v1::{Order, OrderStatus};
use serde_json::Value;

async fn order(waybill: &Deployment, request_id: &str, quantity: i32) -> Order {
    let request = order_of("customer", request_id, vec![item("widget", quantity)]);
    let order = waybill.place(request).await.unwrap();
    waybill.finished(&order.order_id).await
}

#[tokio::test]
async fn a_bucket_that_was_made_anew_is_not_taken_for_the_one_before() {
    let mut waybill = Deployment::start().await;
    assert_eq!(order(&waybill, "first", 1).await.status(), OrderStatus::Fulfilled);
    let before = waybill.inventory().await.entry(stock_key("widget")).await.unwrap().unwrap();
    // It remembers the count that the first order has left.
    waybill.processor("inventory").pause();
    waybill.jetstream().await.delete_stream(format!("KV_{BUCKET}")).await.unwrap();
    waybill.broker.provision_with(&[]).await;
    let bucket = waybill.inventory().await;
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
async fn a_bucket_that_is_deleted_is_missed_and_made_anew_only_by_an_operator_without_units_that_were_sold() {
    let mut waybill =
        Deployment::start_with(Options { stock: vec![("widget", 5)], ..Options::default() }).await;
    assert_eq!(order(&waybill, "first", 3).await.status(), OrderStatus::Fulfilled);
    waybill.jetstream().await.delete_stream(format!("KV_{BUCKET}")).await.unwrap();
    lacks_the_bucket(&mut waybill).await;
    assert_eq!(waybill.scrape_of("inventory").await.sum("waybill_stock_bucket_missing", &[]), Some(1.0));
    assert_eq!(waybill.scrape().await.sum("waybill_stock_bucket_missing", &[]), Some(1.0));
    // Neither brings it back.
    waybill.restart_processor("inventory");
    waybill.replace_gateway().await;
    lacks_the_bucket(&mut waybill).await;
    let waiting = waybill.place(order_of("customer", "waiting", vec![item("widget", 1)])).await.unwrap();
    assert!(waybill.jetstream().await.get_key_value(BUCKET).await.is_err());

    has_stock_again(&mut waybill, 2).await;
    assert_eq!(waybill.finished(&waiting.order_id).await.status(), OrderStatus::Fulfilled);
    assert_eq!(waybill.available("widget").await, 1);
    // Nor does STOCK of those who start later put units on sale again.
    waybill.stock().remove_stock(all_of("widget", 1)).await.unwrap();
    waybill.inventory().await.delete(stock_key("widget")).await.unwrap();
    waybill.restart_processor("inventory");
    waybill.ready().await;
    let refused = order(&waybill, "sold-out", 1).await;
    assert_eq!((refused.status(), refused.reason.as_str()), (OrderStatus::Rejected, "OUT_OF_STOCK"));
}

/// A step that starts has nothing to know the bucket by but its consumer.
#[tokio::test]
async fn a_bucket_that_is_deleted_after_all_orders_have_expired_is_missed_too() {
    let mut options = Options { stock: vec![("widget", 5)], ..Options::default() };
    for settings in [&mut options.gateway, &mut options.processors] {
        settings.push(("ORDERS_RETENTION", "3s".to_owned()));
    }
    let mut waybill = Deployment::start_with(options).await;
    assert_eq!(order(&waybill, "first", 3).await.status(), OrderStatus::Fulfilled);
    let jetstream = waybill.jetstream().await;
    eventually("a log of which all has expired", async || {
        let log = jetstream.get_stream(ORDERS).await.ok()?;
        (log.cached_info().state.messages == 0).then_some(())
    })
    .await;
    waybill.kill_processors("inventory");
    jetstream.delete_stream(format!("KV_{BUCKET}")).await.unwrap();
    waybill.restart_processor("inventory");
    lacks_the_bucket(&mut waybill).await;
    has_stock_again(&mut waybill, 2).await;
    assert_eq!(order(&waybill, "second", 3).await.status(), OrderStatus::Rejected);
    assert_eq!(order(&waybill, "third", 2).await.status(), OrderStatus::Fulfilled);
}

#[tokio::test]
async fn a_store_that_is_wiped_while_all_runs_is_not_stocked_again_by_itself() {
    let mut waybill =
        Deployment::start_with(Options { stock: vec![("widget", 5)], ..Options::default() }).await;
    assert_eq!(order(&waybill, "first", 3).await.status(), OrderStatus::Fulfilled);
    // Every program looks at log and bucket once a second.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    waybill.broker.lose_data();
    waybill.broker.start().await;
    if waybill.broker.has_users() {
        // An operator has made it, and says what there is.
        waybill.ready().await;
        assert_eq!(order(&waybill, "second", 1).await.status(), OrderStatus::Rejected);
        return;
    }
    lacks_the_bucket(&mut waybill).await;
    let waiting = waybill.place(order_of("customer", "waiting", vec![item("widget", 1)])).await.unwrap();
    waybill.restart_processor("inventory");
    lacks_the_bucket(&mut waybill).await;
    assert_eq!(waybill.get(&waiting.order_id).await.unwrap().status(), OrderStatus::Accepted);
    has_stock_again(&mut waybill, 2).await;
    assert_eq!(waybill.finished(&waiting.order_id).await.status(), OrderStatus::Fulfilled);
    assert_eq!(waybill.available("widget").await, 1);
}

/// Both say that they are not ready, and name what is missing; so does the log.
async fn lacks_the_bucket(waybill: &mut Deployment) {
    let missing = "bucket INVENTORY is missing";
    eventually("a gateway that misses the bucket", async || {
        let (status, said) = waybill.http("/readyz").await;
        (status == 503 && said.contains(missing)).then_some(())
    })
    .await;
    let inventory = waybill.processor("inventory").ops_addr().await;
    eventually("a step that misses the bucket", async || {
        let (status, said) = http_get(&inventory, "/readyz").await?;
        (status == 503 && said.contains(missing)).then_some(())
    })
    .await;
    let told = |fields: &Value| fields["message"].as_str()?.contains(missing).then_some(());
    waybill.gateway.process.logged(missing, told).await;
    waybill.processor("inventory").logged(missing, told).await;
}

/// As the runbook says: inventory is stopped, so that orders wait until the stock is known.
async fn has_stock_again(waybill: &mut Deployment, units: i64) {
    waybill.kill_processors("inventory");
    waybill.broker.provision_with(&[]).await;
    let request = SetStockRequest {
        request_id: "after the loss".to_owned(),
        sku: "widget".to_owned(),
        available_units: units,
        expected_revision: 0,
    };
    waybill.stock().set_stock(request).await.unwrap();
    waybill.ready().await;
    waybill.restart_processor("inventory");
}

fn all_of(sku: &str, units: i64) -> RemoveStockRequest {
    RemoveStockRequest { request_id: "all".to_owned(), sku: sku.to_owned(), units }
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

#[tokio::test]
async fn what_lost_orders_hold_is_found_and_released_once() {
    let mut waybill =
        Deployment::start_with(Options { stock: vec![("widget", 100)], ..Options::default() }).await;
    waybill.kill_processors("payment");
    let mut lost = Vec::new();
    for _ in 0..10 {
        lost.push(waybill.place(order_of("customer", "", vec![item("widget", 2)])).await.unwrap().order_id);
    }
    for id in &lost {
        waybill.reached(id, OrderStatus::Reserved).await;
    }
    // Every program looks at the log once a second.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(waybill.available("widget").await, 80);
    waybill.jetstream().await.get_stream(ORDERS).await.unwrap().purge().await.unwrap();
    let kept = waybill.place(order_of("customer", "", vec![item("widget", 1)])).await.unwrap();
    waybill.reached(&kept.order_id, OrderStatus::Reserved).await;
    // An order may outlive its first event, and what it holds with it.
    let created = backbone::log::subjects::order_kind(EventKind::Created, &kept.order_id.parse().unwrap());
    waybill.jetstream().await.get_stream(ORDERS).await.unwrap().purge().filter(created).await.unwrap();
    shows_orphans(&mut waybill, 10.0).await;

    let older_than = Some(prost_types::Duration::default());
    let dry_run = ReconcileStockRequest { dry_run: true, older_than, ..ReconcileStockRequest::default() };
    let (found, summary) = waybill.reconcile(dry_run.clone()).await.unwrap();
    let mut ids: Vec<_> = found.iter().map(|orphan| orphan.order_id.clone()).collect();
    ids.sort();
    lost.sort();
    assert_eq!(ids, lost);
    assert!(found.iter().all(|orphan| !orphan.released && orphan.units[0].units == 2), "{found:?}");
    assert_eq!((summary.examined, summary.orphaned, summary.released), (11, 10, 0));
    assert_eq!(waybill.available("widget").await, 79);
    let young = ReconcileStockRequest { older_than: None, ..dry_run.clone() };
    assert_eq!(waybill.reconcile(young).await.unwrap().1.orphaned, 0, "10 minutes");

    let one = ReconcileStockRequest { dry_run: false, order_ids: vec![lost[0].clone()], ..dry_run.clone() };
    assert_eq!(waybill.reconcile(one).await.unwrap().1.released, 1);
    assert_eq!(waybill.available("widget").await, 81);
    let all = ReconcileStockRequest { dry_run: false, ..dry_run };
    let (one, other) = tokio::join!(waybill.reconcile(all.clone()), waybill.reconcile(all.clone()));
    assert_eq!(one.unwrap().1.released + other.unwrap().1.released, 9);
    assert_eq!(waybill.reconcile(all).await.unwrap().1.orphaned, 0);
    assert_eq!((waybill.available("widget").await, waybill.held("widget").await), (99, 1));
    shows_orphans(&mut waybill, 0.0).await;
}

async fn shows_orphans(waybill: &mut Deployment, orphans: f64) {
    let inventory = waybill.processor("inventory").ops_addr().await;
    eventually(&format!("{orphans} orphaned reservations"), async || {
        let (_, text) = http_get(&inventory, "/metrics").await?;
        let shown = harness::Scrape::read(&text).sum("waybill_stock_reservations_orphaned", &[])?;
        (shown == orphans).then_some(())
    })
    .await;
}
