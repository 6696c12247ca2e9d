//! A server comes back, stays behind the order log, and leads the consumers of the steps. It delivers nothing that it does
//! not have, so the steps let another one lead.

use backbone::broker::streams::ORDERS;
use harness::{Cluster, Deployment, Load, Options, SERVERS};
use proto::orders::v1::OrderStatus;

use crate::accounting::{ids, widgets};

const STEPS: [&str; 3] = ["inventory", "payment", "fulfilment"];
/// The server that stays behind; the first leads the log.
const BEHIND: usize = 2;
/// Orders that are taken while it leads the consumers.
const ORDERS_WAITING: usize = 200;

/// A cluster of which one server is behind the order log, and stays so.
async fn start(options: Options) -> (Deployment, Cluster) {
    let mut waybill = Deployment::start_without_broker(Options { servers: SERVERS, ..options }).await;
    let mut cluster = Cluster::start(&mut waybill);
    waybill.ready().await;
    waybill.steps_are_open().await;
    cluster.is_whole(&waybill).await;
    cluster.lead(&waybill, ORDERS, 0).await;
    let before = Load::start(waybill.channel(), widgets(1)).all().await;
    assert_eq!(waybill.finished(&before[0].order_id).await.status(), OrderStatus::Fulfilled);

    cluster.server(&mut waybill, BEHIND).kill();
    cluster.forget(&waybill).await;
    cluster.start_server_behind(&mut waybill, BEHIND).await;
    (waybill, cluster)
}

/// The server that is behind leads the consumers of all steps, one after the other finds out, and all orders finish
/// in time.
async fn orders_finish(options: Options) {
    let (mut waybill, cluster) = start(options).await;
    for step in STEPS {
        cluster.lead_consumer(&waybill, ORDERS, step, BEHIND).await;
    }
    let orders = Load::start(waybill.channel(), widgets(1 + ORDERS_WAITING).split_off(1)).all().await;
    let statuses = waybill.statuses(&ids(&orders)).await;
    assert_eq!(statuses.get(&OrderStatus::Fulfilled), Some(&ORDERS_WAITING), "{statuses:?}");
    assert!(cluster.stays_behind(&waybill, BEHIND), "it has caught up, and this shows nothing");

    for step in STEPS {
        let said = waybill.logged_about("consumer leader lags behind the log, stepped down");
        let said: Vec<_> = said.iter().filter(|line| line.contains(&format!(r#""step":"{step}""#))).collect();
        let names_both = |line: &&&String| {
            line.contains(&format!(r#""leader":"n{BEHIND}""#)) && line.contains(r#""successor":"n0""#)
        };
        assert!(said.len() == 1 && said.iter().all(|line| names_both(&line)), "{step}: {said:#?}");
        let scrape = waybill.scrape_of(step).await;
        let step_downs = scrape.sum("waybill_step_consumer_step_downs_total", &[("outcome", "done")]);
        assert_eq!(step_downs, Some(1.0), "{step}");
    }
}

#[tokio::test]
async fn orders_finish_though_a_server_that_is_behind_leads_the_consumers() {
    orders_finish(Options { least_privilege: false, ..Options::default() }).await;
}

#[tokio::test]
async fn a_step_may_let_another_server_lead_its_own_consumer() {
    orders_finish(Options { least_privilege: true, ..Options::default() }).await;
}
