//! Servers of a cluster die, or stand still as if the network had cut them off: no order that was acknowledged is
//! lost, and none is carried out twice.

use harness::{Cluster, Deployment, Load, Options, SERVERS};

use crate::accounting::{each_is_carried_out_once, widgets};

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

/// One of the three is taken away, orders go on, and it is given back, under load.
async fn each_server_in_turn(
    take: impl Fn(&mut Cluster, &mut Deployment, usize),
    give_back: impl Fn(&mut Cluster, &mut Deployment, usize),
) {
    let gateway = vec![("DURABILITY", "strict".to_owned())];
    let options = Options { gateway, servers: SERVERS, ..Options::default() };
    let mut waybill = Deployment::start_without_broker(options).await;
    let mut cluster = Cluster::start(&mut waybill);
    waybill.ready().await;
    cluster.is_whole(&waybill).await;
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
