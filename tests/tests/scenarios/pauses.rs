//! A process that stands still for longer than the broker waits for it, and then goes on as if nothing had been.

use harness::{Deployment, Load, Options, eventually};
use proto::payments::v1::{Behaviour, SetBehaviourRequest};

use crate::accounting::{each_is_carried_out_once, ids, widgets};

const ORDERS: usize = 200;

/// Two processes of each step, of which the first of `step` stands still in the middle, until all orders are finished.
async fn one_stands_still(step: &'static str) {
    let mut waybill =
        Deployment::start_with(Options { replicas: 2, payment_sandbox: true, ..Options::default() }).await;
    // So slow that some calls are always under way.
    let latency = Some(prost_types::Duration { seconds: 0, nanos: 50_000_000 });
    let behaviour = Some(Behaviour { latency, ..Behaviour::default() });
    let slow = SetBehaviourRequest { customer_id: String::new(), behaviour };
    waybill.sandbox().control().set_behaviour(slow).await.unwrap();
    let mut load = Load::start(waybill.channel(), widgets(ORDERS));
    load.acknowledged(ORDERS / 2).await;
    let mut consumer = waybill.consumer(step).await;
    eventually("work under way", async || (consumer.info().await.ok()?.num_ack_pending > 0).then_some(()))
        .await;
    waybill.processors[step][0].pause();
    let orders = load.all().await;
    waybill.statuses(&ids(&orders)).await;
    waybill.processors[step][0].resume();
    // It goes on where it stood, with what others have done meanwhile.
    let status = waybill.processors.get_mut(step).unwrap()[0].stop().await;
    assert!(status.success(), "{status}");
    waybill.idle(step).await;
    each_is_carried_out_once(&waybill, &orders).await;
    let ledger = waybill.sandbox().ledger("").await;
    assert_eq!((ledger.captures, ledger.refunds), (ORDERS as i64, 0));
    assert!(waybill.letters_kept().await.is_empty());
}

#[tokio::test]
async fn an_inventory_that_stood_still_reserves_nothing_twice() {
    one_stands_still("inventory").await;
}

#[tokio::test]
async fn a_payment_that_stood_still_charges_nobody_twice() {
    one_stands_still("payment").await;
}

#[tokio::test]
async fn a_fulfilment_that_stood_still_ships_nothing_twice() {
    one_stands_still("fulfilment").await;
}
