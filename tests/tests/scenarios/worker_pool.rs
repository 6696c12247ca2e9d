//! A process takes no more orders than it can work on: the others wait in the stream.

use std::collections::HashMap;

use harness::{Deployment, Load, Options, eventually};
use proto::orders::v1::OrderStatus;

use crate::accounting::{ids, widgets};

const WORKERS: usize = 3;
const ORDERS: usize = 50;

#[tokio::test]
async fn a_process_that_stands_still_holds_no_more_orders_than_it_has_workers() {
    let processors = vec![("WORKER_POOL_SIZE", WORKERS.to_string()), ("ACK_WAIT", "1h".to_owned())];
    let waybill = Deployment::start_with(Options { processors, ..Options::default() }).await;
    let mut consumer = waybill.consumer("payment").await;
    eventually("payment at work", async || (consumer.info().await.ok()?.num_waiting == 1).then_some(()))
        .await;
    waybill.processors["payment"][0].pause();
    let orders = Load::start(waybill.channel(), widgets(ORDERS)).all().await;
    eventually("orders that wait for payment", async || {
        let info = consumer.info().await.ok()?;
        (info.num_ack_pending == WORKERS && info.num_pending == (ORDERS - WORKERS) as u64).then_some(())
    })
    .await;
    waybill.processors["payment"][0].resume();
    let fulfilled = HashMap::from([(OrderStatus::Fulfilled, ORDERS)]);
    assert_eq!(waybill.statuses(&ids(&orders)).await, fulfilled);
}

#[tokio::test]
async fn one_worker_is_enough() {
    let processors = vec![("WORKER_POOL_SIZE", "1".to_owned())];
    let waybill = Deployment::start_with(Options { processors, ..Options::default() }).await;
    let orders = Load::start(waybill.channel(), widgets(100)).all().await;
    let fulfilled = HashMap::from([(OrderStatus::Fulfilled, 100)]);
    assert_eq!(waybill.statuses(&ids(&orders)).await, fulfilled);
}
