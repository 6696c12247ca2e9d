//! Servers of a cluster die, or stand still as if the network had cut them off: no order that was acknowledged is
//! lost, and none is carried out twice.

use backbone::broker::streams;
use harness::{Cluster, Deployment, Load, Options, SERVERS, eventually, item, order_of};
use proto::orders::v1::{Order, OrderStatus};
use serde_json::{Value, json};

use crate::accounting::{each_is_carried_out_once, ids, widgets};

/// Orders under way while one server is taken away and given back.
const ORDERS: usize = 400;

#[tokio::test]
async fn orders_survive_the_death_of_each_server_in_turn() {
    each_server_in_turn(
        |cluster, waybill, n| cluster.server(waybill, n).kill(),
        |cluster, waybill, n| cluster.start_server(waybill, n),
    )
    .await;
}

#[tokio::test]
async fn orders_survive_each_server_standing_still_in_turn() {
    each_server_in_turn(
        |cluster, waybill, n| cluster.server(waybill, n).pause(),
        |cluster, waybill, n| cluster.server(waybill, n).resume(),
    )
    .await;
}

#[tokio::test]
async fn what_a_new_leader_of_a_consumer_takes_for_done_is_brought_all_the_same() {
    let (mut waybill, _cluster) = start(Vec::new()).await;
    // Its consumer is there, and has a leader.
    let mut orders = Load::start(waybill.channel(), widgets(1)).all().await;
    assert_eq!(waybill.finished(&orders[0].order_id).await.status(), OrderStatus::Fulfilled);
    let resume = |waybill: &mut Deployment| waybill.processor("payment").resume();
    orders.extend(passed_over(&mut waybill, 1, resume).await);
    // Now nobody is left who has seen the former leader; but one of them has recorded how far it had come.
    let leader = payments_leader(&waybill).await;
    let stream = waybill.jetstream().await.get_stream(streams::DEAD_LETTERS).await.unwrap();
    eventually("record of the floor", async || {
        let record = stream.get_last_raw_message_by_subject("DEAD_LETTER.floor.payment").await.ok()?;
        let record: Value = serde_json::from_slice(&record.payload).unwrap();
        (record["leader"]["server"] == leader).then_some(())
    })
    .await;
    let restart = |waybill: &mut Deployment| waybill.restart_processor("payment");
    orders.extend(passed_over(&mut waybill, 21, restart).await);
    each_is_carried_out_once(&waybill, &orders).await;
}

/// Orders that payment's consumer passes over while payment stands still, and then has another leader; payment comes
/// back and has to see to them. The first are the `from`th.
async fn passed_over(
    waybill: &mut Deployment,
    from: usize,
    come_back: impl FnOnce(&mut Deployment),
) -> Vec<Order> {
    waybill.processor("payment").pause();
    let jetstream = waybill.jetstream().await;
    let ask = async |request: &str, with: Value| {
        let subject = format!("CONSUMER.{request}.{}.payment", streams::ORDERS);
        let answer = jetstream.request::<_, _, Value>(subject, &with).await;
        answer.unwrap_or_else(|error| panic!("{request}: {error}"))
    };
    let answer = ask("RESET", json!({"seq": 1_000_000})).await;
    assert_eq!(answer["reset_seq"], 1_000_000, "{answer}");
    let orders = Load::start(waybill.channel(), widgets(from + 20).split_off(from)).all().await;
    for order in ids(&orders) {
        waybill.reached(&order, OrderStatus::Reserved).await;
    }
    let former = payments_leader(waybill).await;
    let answer = ask("LEADER.STEPDOWN", json!({})).await;
    assert_eq!(answer["success"], true, "{answer}");
    eventually("another leader", async || (payments_leader(waybill).await != former).then_some(())).await;
    come_back(waybill);
    for order in ids(&orders) {
        assert_eq!(waybill.finished(&order).await.status(), OrderStatus::Fulfilled);
    }
    orders
}

async fn payments_leader(waybill: &Deployment) -> String {
    let stream = waybill.jetstream().await.get_stream(streams::ORDERS).await.unwrap();
    eventually("leader", async || stream.consumer_info("payment").await.ok()?.cluster?.leader).await
}

/// A cluster, and what keeps its orders in it.
async fn start(gateway: Vec<(&'static str, String)>) -> (Deployment, Cluster) {
    let options = Options { gateway, servers: SERVERS, ..Options::default() };
    let mut waybill = Deployment::start_without_broker(options).await;
    let cluster = Cluster::start(&mut waybill);
    waybill.ready().await;
    cluster.is_whole(&waybill).await;
    (waybill, cluster)
}

/// One of the three is taken away, orders go on, and it is given back, under load.
async fn each_server_in_turn(
    take: impl Fn(&mut Cluster, &mut Deployment, usize),
    give_back: impl Fn(&mut Cluster, &mut Deployment, usize),
) {
    let (mut waybill, mut cluster) = start(vec![("DURABILITY", "strict".to_owned())]).await;
    let mut orders = Vec::new();
    for (n, requests) in widgets(3 * ORDERS).chunks(ORDERS).enumerate() {
        let mut load = Load::start(waybill.channel(), requests.to_vec());
        load.acknowledged(ORDERS / 4).await;
        take(&mut cluster, &mut waybill, n);
        assert!(load.count() < ORDERS, "too late to matter");
        load.acknowledged(3 * ORDERS / 4).await;
        give_back(&mut cluster, &mut waybill, n);
        orders.extend(load.all().await);
        cluster.is_whole(&waybill).await;
    }
    each_is_carried_out_once(&waybill, &orders).await;
}

/// The broker that leads the consumer may be another than the one that a step asks, and does not hear, if the step asks
/// from an account of its own, that it has left.
#[tokio::test]
async fn what_was_for_a_step_that_has_left_is_for_the_next() {
    let mut options = Options { least_privilege: true, replicas: 0, servers: SERVERS, ..Options::default() };
    // What nobody got would stay away for longer than any test waits.
    options.processors.push(("ACK_WAIT", "1h".to_owned()));
    let mut waybill = Deployment::start_without_broker(options).await;
    let _cluster = Cluster::start(&mut waybill);
    waybill.ready().await;
    // Each asks the server that it happens to come to.
    for _ in 0..SERVERS {
        waybill.start_processor("inventory");
    }
    waybill.steps_are_open().await;
    for mut leaving in waybill.processors.remove("inventory").unwrap() {
        assert!(leaving.stop().await.success());
    }
    let order = waybill.place(order_of("ada", "", vec![item("widget", 1)])).await.unwrap().order_id;
    waybill.start_processor("inventory");
    waybill.reached(&order, OrderStatus::Reserved).await;
}
