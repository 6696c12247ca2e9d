//! A program that is told to stop finishes what it has begun, and leaves the rest to others.

use harness::{Deployment, Load, Options};
use nix::sys::signal::Signal;
use tonic::Code;
use tonic_types::StatusExt;

use crate::accounting::{each_is_carried_out_once, widgets};
use crate::events::kind;

const ORDERS: usize = 1000;
const MIDDLE: usize = 300;
/// Orders that a processor works on at the same time.
const WORKERS: usize = 10;

/// A drain timeout that no test waits for: who uses it up fails.
fn patient(replicas: usize) -> Options {
    let drain = ("DRAIN_TIMEOUT", "1h".to_owned());
    let workers = ("WORKER_POOL_SIZE", WORKERS.to_string());
    let processors = vec![("ACK_WAIT", "2s".to_owned()), workers, drain.clone()];
    Options { replicas, gateway: vec![drain], processors, ..Options::default() }
}

#[tokio::test]
async fn a_gateway_drains_under_load_and_sends_its_watchers_away() {
    let mut waybill = Deployment::start_with(patient(1)).await;
    waybill.kill_processors("fulfilment");
    let mut load = Load::start(waybill.channel(), widgets(ORDERS));
    load.acknowledged(MIDDLE).await;

    // Orders that do not end by themselves at present.
    let mut watchers = Vec::new();
    for order_id in waybill.histories().await.into_keys().take(10) {
        let mut watcher = waybill.watch(&order_id, 0).await.unwrap();
        kind(&watcher.event().await);
        watchers.push(watcher);
    }
    let status = waybill.gateway.process.stop().await;
    assert!(status.success(), "{status}");
    for mut watcher in watchers {
        let status = loop {
            match watcher.next().await {
                Ok(event) => assert!(event.is_some(), "ended as if the order was finished"),
                Err(status) => break status,
            }
        };
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert_eq!(status.get_details_error_info().unwrap().reason, "DRAINING");
        assert!(status.get_details_retry_info().is_some());
    }

    waybill.restart_gateway().await;
    waybill.start_processor("fulfilment");
    each_is_carried_out_once(&waybill, &load.all().await).await;
}

#[tokio::test]
async fn a_gateway_stops_on_sigint_too() {
    let mut waybill = Deployment::start_with(patient(0)).await;
    waybill.gateway.process.signal(Signal::SIGINT);
    assert!(waybill.gateway.process.ended().await.success());
}

#[tokio::test]
async fn processors_that_stop_under_load_leave_the_work_to_their_replicas() {
    let mut waybill = Deployment::start_with(patient(2)).await;
    let mut load = Load::start(waybill.channel(), widgets(ORDERS));
    load.acknowledged(MIDDLE).await;
    for step in ["inventory", "payment", "fulfilment"] {
        let status = waybill.processor(step).stop().await;
        assert!(status.success(), "{step}: {status}");
    }
    each_is_carried_out_once(&waybill, &load.all().await).await;
}

#[tokio::test]
async fn a_processor_that_stops_gives_back_no_more_than_it_had_in_hand() {
    let mut waybill = Deployment::start_with(patient(1)).await;
    let mut load = Load::start(waybill.channel(), widgets(ORDERS));
    load.acknowledged(MIDDLE).await;
    let status = waybill.processor("inventory").stop().await;
    assert!(status.success(), "{status}");
    let in_hand = waybill.consumer("inventory").await.cached_info().num_ack_pending;
    assert!(in_hand <= WORKERS, "{in_hand} orders taken and given back");

    waybill.start_processor("inventory");
    each_is_carried_out_once(&waybill, &load.all().await).await;
}

#[tokio::test]
async fn processors_that_stop_on_sigint_leave_the_work_to_the_next_run() {
    let mut waybill = Deployment::start_with(patient(1)).await;
    let mut load = Load::start(waybill.channel(), widgets(ORDERS));
    load.acknowledged(MIDDLE).await;
    for step in ["inventory", "payment", "fulfilment"] {
        let process = waybill.processor(step);
        process.signal(Signal::SIGINT);
        let status = process.ended().await;
        assert!(status.success(), "{step}: {status}");
    }
    let orders = load.all().await;
    for step in ["inventory", "payment", "fulfilment"] {
        waybill.start_processor(step);
    }
    each_is_carried_out_once(&waybill, &orders).await;
}
