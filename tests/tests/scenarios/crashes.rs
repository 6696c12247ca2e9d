//! kill -9 in the middle of the work: every order that was acknowledged is carried out, and none twice.

use harness::{Deployment, Load, Options};

use crate::accounting::{each_is_carried_out_once, widgets};

const ORDERS: usize = 1000;
/// Acknowledged orders after which something dies.
const MIDDLE: usize = 300;

#[tokio::test]
async fn orders_survive_the_death_of_the_broker() {
    let mut waybill = Deployment::start().await;
    let mut load = Load::start(waybill.channel(), widgets(ORDERS));
    load.acknowledged(MIDDLE).await;
    waybill.broker.kill();
    assert!(load.count() < ORDERS, "killed too late to matter");
    waybill.broker.start().await;
    each_is_carried_out_once(&waybill, &load.all().await).await;
}

#[tokio::test]
async fn orders_survive_the_death_of_the_gateway() {
    let mut waybill = Deployment::start().await;
    let mut load = Load::start(waybill.channel(), widgets(ORDERS));
    load.acknowledged(MIDDLE).await;
    waybill.gateway.process.kill();
    assert!(load.count() < ORDERS, "killed too late to matter");
    waybill.restart_gateway().await;
    each_is_carried_out_once(&waybill, &load.all().await).await;
}

#[tokio::test]
async fn orders_survive_the_death_of_inventory() {
    orders_survive_the_death_of("inventory").await;
}

#[tokio::test]
async fn orders_survive_the_death_of_payment() {
    orders_survive_the_death_of("payment").await;
}

#[tokio::test]
async fn orders_survive_the_death_of_fulfilment() {
    orders_survive_the_death_of("fulfilment").await;
}

async fn orders_survive_the_death_of(step: &'static str) {
    let mut waybill = Deployment::start().await;
    let mut load = Load::start(waybill.channel(), widgets(ORDERS));
    load.acknowledged(MIDDLE).await;
    waybill.kill_processors(step);
    assert!(load.count() < ORDERS, "killed too late to matter");
    waybill.start_processor(step);
    each_is_carried_out_once(&waybill, &load.all().await).await;
}

#[tokio::test]
async fn orders_left_from_a_former_run_are_finished_by_the_next() {
    let mut waybill = Deployment::start().await;
    let mut load = Load::start(waybill.channel(), widgets(ORDERS));
    load.acknowledged(MIDDLE).await;
    // Later steps first, so that orders are left at every stage.
    for step in ["fulfilment", "payment", "inventory"] {
        waybill.kill_processors(step);
    }
    let orders = load.all().await;
    waybill.gateway.process.kill();
    waybill.broker.kill();

    waybill.broker.start().await;
    waybill.restart_gateway().await;
    let unfinished = waybill.histories().await.into_values().filter(|history| history.len() < 4).count();
    assert!(unfinished > 0, "nothing was left to do");
    for step in ["inventory", "payment", "fulfilment"] {
        waybill.start_processor(step);
    }
    each_is_carried_out_once(&waybill, &orders).await;
}

#[tokio::test]
async fn orders_survive_the_death_of_everything_in_turn() {
    let mut waybill = Deployment::start_with(Options { replicas: 2, ..Options::default() }).await;
    let mut load = Load::start(waybill.channel(), widgets(ORDERS));
    for (i, step) in ["inventory", "payment", "fulfilment"].into_iter().enumerate() {
        load.acknowledged(i * ORDERS / 4).await;
        waybill.processor(step).kill();
        waybill.start_processor(step);
    }
    waybill.gateway.process.kill();
    waybill.restart_gateway().await;
    waybill.broker.kill();
    waybill.broker.start().await;
    each_is_carried_out_once(&waybill, &load.all().await).await;
}
