//! Several processes of one step share its work and never do it twice.

use std::collections::HashMap;

use backbone::log::subjects::EventKind;
use harness::{Deployment, Load, Options, eventually, item, order_of};
use proto::orders::v1::OrderStatus;

use crate::accounting::{each_is_carried_out_once, ids, widgets};

/// Orders that a processor works on at the same time.
const WORKERS: usize = 10;

fn two_of_each() -> Options {
    let processors = vec![
        ("ACK_WAIT", "2s".to_owned()),
        ("WORKER_POOL_SIZE", WORKERS.to_string()),
        ("RUST_LOG", "info,async_nats=warn,processor=debug".to_owned()),
    ];
    Options { replicas: 2, processors, ..Options::default() }
}

/// Waits until every process asks for work.
async fn all_at_work(waybill: &Deployment) {
    for step in waybill.processors.keys() {
        let mut consumer = waybill.consumer(step).await;
        eventually(&format!("both processes of {step}"), async || {
            (consumer.info().await.ok()?.num_waiting == 2).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn replicas_share_the_orders_of_one_hot_sku() {
    let waybill = Deployment::start_with(two_of_each()).await;
    all_at_work(&waybill).await;
    let orders = Load::start(waybill.channel(), widgets(500)).all().await;
    each_is_carried_out_once(&waybill, &orders).await;
    for (step, processes) in &waybill.processors {
        for process in processes {
            let done = process.output().matches(r#""message":"event appended""#).count();
            assert!(done > 0, "one {step} did nothing");
        }
    }
}

#[tokio::test]
async fn scarce_stock_is_sold_to_the_last_unit_and_not_beyond() {
    let options = Options { stock: vec![("widget", 50)], ..two_of_each() };
    let waybill = Deployment::start_with(options).await;
    let orders = Load::start(waybill.channel(), widgets(200)).all().await;
    let statuses = waybill.statuses(&ids(&orders)).await;
    assert_eq!(statuses, HashMap::from([(OrderStatus::Fulfilled, 50), (OrderStatus::Rejected, 150)]));
    assert_eq!((waybill.available("widget").await, waybill.held("widget").await), (0, 50));
}

#[tokio::test]
async fn replicas_release_what_declined_orders_held_exactly_once() {
    let options = Options { stock: vec![("widget", 100), ("gadget", 100)], ..two_of_each() };
    let waybill = Deployment::start_with(options).await;
    let requests = (0..100).map(|i| {
        let customer = if i % 2 == 0 { "declined-customer" } else { "customer" };
        order_of(customer, &format!("request-{i}"), vec![item("widget", 1), item("gadget", 1)])
    });
    let orders = Load::start(waybill.channel(), requests.collect()).all().await;
    let statuses = waybill.statuses(&ids(&orders)).await;
    assert_eq!(statuses, HashMap::from([(OrderStatus::Fulfilled, 50), (OrderStatus::Rejected, 50)]));
    for sku in ["widget", "gadget"] {
        assert_eq!((waybill.available(sku).await, waybill.held(sku).await), (50, 50), "{sku}");
    }
    let released = |history: &Vec<EventKind>| history.contains(&EventKind::Released);
    assert_eq!(waybill.histories().await.values().filter(|history| released(history)).count(), 50);
}

#[tokio::test]
async fn a_process_that_stood_still_wakes_up_to_work_that_others_did() {
    let mut waybill = Deployment::start_with(two_of_each()).await;
    all_at_work(&waybill).await;
    let mut load = Load::start(waybill.channel(), widgets(500));
    load.acknowledged(100).await;
    for processes in waybill.processors.values() {
        processes[0].pause();
    }
    let orders = load.all().await;
    each_is_carried_out_once(&waybill, &orders).await;

    for process in waybill.processors.values_mut().map(|processes| &mut processes[0]) {
        process.resume();
        // It ends only when what it had in hand is done.
        assert!(process.stop().await.success());
    }
    each_is_carried_out_once(&waybill, &orders).await;
}
