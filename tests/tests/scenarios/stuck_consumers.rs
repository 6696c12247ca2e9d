//! A consumer that is there and does not deliver all that it should is noticed and made right.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, FromConsumer, pull};
use backbone::broker::streams::ORDERS;
use backbone::log::subjects::{self, EventKind};
use harness::{Deployment, Load, Options, Relay, eventually, item, order_of};
use proto::orders::v1::{Order, OrderStatus};
use serde_json::Value;

use crate::accounting::{WHOLE_WAY, each_is_carried_out_once, widgets};
use crate::dead_letters::{mend, place_poison, with_damage};
use crate::redelivery::take_and_die;

async fn place(waybill: &Deployment, request_id: &str) -> Order {
    waybill.place(order_of("customer", request_id, vec![item("widget", 1)])).await.unwrap()
}

/// Waits until inventory says that it opened its consumer anew, for a reason of which this is a part.
async fn opened_anew(waybill: &mut Deployment, reason: &str) {
    let said = |fields: &Value| {
        let lost = fields["message"] == "consumer lost, reopened";
        (lost && fields["reason"].as_str()?.contains(reason)).then_some(())
    };
    waybill.processor("inventory").logged("a consumer that is opened anew", said).await;
}

#[tokio::test]
async fn a_subscription_that_the_broker_has_forgotten_is_made_anew() {
    let mut waybill = Deployment::start_with(Options { replicas: 0, ..Options::default() }).await;
    let relay = Relay::start(waybill.broker.address()).await;
    waybill.start_processor_at("inventory", relay.address());
    waybill.start_processor("payment");
    waybill.start_processor("fulfilment");
    let first = place(&waybill, "first").await;
    waybill.finished(&first.order_id).await;
    waybill.idle("inventory").await;

    relay.lose_subscription();
    // The client asks again for what its workers can take, and the broker no longer knows whom to answer.
    eventually("a broker that forgets", async || relay.is_done().then_some(())).await;
    let second = place(&waybill, "second").await;
    opened_anew(&mut waybill, "no reply from the broker to two pull requests").await;
    each_is_carried_out_once(&waybill, &[first, second]).await;
}

#[tokio::test]
async fn a_consumer_that_somebody_has_narrowed_is_widened_again() {
    let mut options = Options::default();
    options.processors.push(("ACK_WAIT", "1h".to_owned()));
    let mut waybill = Deployment::start_with(options).await;
    waybill.idle("inventory").await;
    let mut consumer = waybill.consumer("inventory").await;
    // One message is with somebody who says nothing, and one is all that may be out.
    waybill.kill_processors("inventory");
    eventually("no worker that waits", async || (consumer.info().await.ok()?.num_waiting == 0).then_some(()))
        .await;
    let held = place(&waybill, "held").await;
    take_and_die(&consumer).await;
    let config = consumer.info().await.unwrap().config.clone();
    let narrow = pull::Config {
        durable_name: Some("inventory".to_owned()),
        max_ack_pending: 1,
        ack_wait: Duration::from_secs(3600),
        filter_subjects: config.filter_subjects,
        ..pull::Config::default()
    };
    waybill.start_processor("inventory");
    eventually("a worker that waits", async || (consumer.info().await.ok()?.num_waiting > 0).then_some(()))
        .await;
    let stream = waybill.jetstream().await.get_stream(ORDERS).await.unwrap();
    stream.create_consumer(narrow).await.unwrap();
    let order = place(&waybill, "order").await;
    opened_anew(&mut waybill, "max_ack_pending is 1,").await;
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
    assert_eq!(waybill.get(&held.order_id).await.unwrap().status(), OrderStatus::Accepted);
}

/// Each of them in one way, whatever became of others.
async fn are_fulfilled(waybill: &Deployment, orders: &[Order]) {
    for order in orders {
        waybill.finished(&order.order_id).await;
        assert_eq!(waybill.history(&order.order_id).await, WHOLE_WAY);
    }
    waybill.idle("inventory").await;
    assert_eq!(waybill.held("widget").await, orders.len() as u64);
}

/// Edits a step's consumer as an operator does: all that is not edited stays.
pub(crate) async fn edit(waybill: &Deployment, step: &str, edit: impl FnOnce(&mut pull::Config)) {
    let mut consumer = waybill.consumer(step).await;
    let present = consumer.info().await.unwrap().config.clone();
    let mut config = pull::Config::try_from_consumer_config(present).unwrap();
    edit(&mut config);
    let stream = waybill.jetstream().await.get_stream(ORDERS).await.unwrap();
    stream.update_consumer(config).await.unwrap();
}

/// From now on inventory is brought nothing but cancels.
fn narrow(config: &mut pull::Config) {
    config.filter_subjects = vec![subjects::kind(EventKind::Cancelled)];
}

#[tokio::test]
async fn orders_that_an_edited_filter_has_passed_over_are_carried_out() {
    let mut waybill = Deployment::start().await;
    let first = place(&waybill, "first").await;
    waybill.finished(&first.order_id).await;
    waybill.idle("inventory").await;
    // One that has found the consumer as it should be.
    waybill.restart_processor("inventory");
    let second = place(&waybill, "second").await;
    waybill.finished(&second.order_id).await;
    waybill.idle("inventory").await;

    edit(&waybill, "inventory", narrow).await;
    let passed_over = place(&waybill, "passed-over").await;
    // What is acknowledged behind it takes the consumer past it for good.
    let cancelled = place(&waybill, "cancelled").await;
    waybill.cancel(&cancelled.order_id).await.unwrap();
    waybill.finished(&cancelled.order_id).await;
    opened_anew(&mut waybill, "filter_subjects is ORDER.*.*.*.cancelled.*,").await;
    are_fulfilled(&waybill, &[first, second, passed_over]).await;
    let consumer = waybill.consumer("inventory").await;
    let begins = &consumer.cached_info().config.deliver_policy;
    assert!(matches!(begins, DeliverPolicy::ByStartSequence { start_sequence: 2.. }), "{begins:?}");
}

#[tokio::test]
async fn an_edit_is_noticed_however_much_is_delivered() {
    let mut waybill = Deployment::start().await;
    // So that inventory hears of the cancel by its event alone.
    waybill.kill_processors("fulfilment");
    let order = place(&waybill, "order").await;
    waybill.reached(&order.order_id, OrderStatus::Paid).await;
    edit(&waybill, "inventory", |config| config.filter_subjects = vec![subjects::kind(EventKind::Created)])
        .await;
    waybill.cancel(&order.order_id).await.unwrap();
    let mut others = 0;
    eventually("the release of a cancelled order", async || {
        others += 1;
        place(&waybill, &format!("other-{others}")).await;
        let order = waybill.get(&order.order_id).await.ok()?;
        backbone::log::lifecycle::is_finished(&order).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_order_that_was_delivered_as_often_as_an_edit_allows_comes_again() {
    let mut waybill = with_damage(100).await;
    edit(&waybill, "inventory", |config| config.max_deliver = 1).await;
    let order = place_poison(&waybill, "order").await;
    let mut consumer = waybill.consumer("inventory").await;
    eventually("an order that the broker has given up", async || {
        let info = consumer.info().await.ok()?;
        (info.delivered.stream_sequence >= order.revision && info.num_ack_pending == 0).then_some(())
    })
    .await;
    mend(&waybill).await;
    opened_anew(&mut waybill, "max_deliver is 1,").await;
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
}

#[tokio::test]
async fn orders_of_which_an_edited_consumer_brings_the_headers_alone_are_not_set_aside() {
    let mut waybill = Deployment::start().await;
    edit(&waybill, "inventory", |config| config.headers_only = true).await;
    let order = place(&waybill, "order").await;
    opened_anew(&mut waybill, "headers_only is true,").await;
    are_fulfilled(&waybill, &[order]).await;
    assert!(waybill.open_letters().await.is_empty());
}

#[tokio::test]
async fn what_was_edited_or_replaced_while_the_step_was_away_is_made_right_when_it_starts() {
    let mut waybill = Deployment::start().await;
    let first = place(&waybill, "first").await;
    waybill.finished(&first.order_id).await;
    waybill.idle("inventory").await;
    waybill.kill_processors("inventory");
    edit(&waybill, "inventory", narrow).await;
    let second = place(&waybill, "second").await;
    let cancelled = place(&waybill, "cancelled").await;
    waybill.cancel(&cancelled.order_id).await.unwrap();
    take_and_die(&waybill.consumer("inventory").await).await;
    waybill.restart_processor("inventory");
    assert_eq!(waybill.finished(&cancelled.order_id).await.status(), OrderStatus::Cancelled);
    assert_eq!(waybill.finished(&second.order_id).await.status(), OrderStatus::Fulfilled);
    waybill.idle("inventory").await;

    waybill.kill_processors("inventory");
    let stream = waybill.jetstream().await.get_stream(ORDERS).await.unwrap();
    stream.delete_consumer("inventory").await.unwrap();
    let third = place(&waybill, "third").await;
    let forgetful = pull::Config {
        durable_name: Some("inventory".to_owned()),
        deliver_policy: DeliverPolicy::New,
        ack_policy: AckPolicy::None,
        ..pull::Config::default()
    };
    stream.create_consumer(forgetful).await.unwrap();
    waybill.restart_processor("inventory");
    are_fulfilled(&waybill, &[first, second, third]).await;
    let lines = waybill.logged_about("attempt failed, order retried");
    assert!(lines.is_empty(), "orders that had gone on were begun anew: {lines:?}");
}

#[tokio::test]
async fn a_consumer_that_would_be_deleted_when_idle_is_kept() {
    let mut waybill = Deployment::start().await;
    waybill.idle("inventory").await;
    edit(&waybill, "inventory", |config| config.inactive_threshold = Duration::from_secs(3600)).await;
    opened_anew(&mut waybill, "inactive_threshold is 1h,").await;
    let mut consumer = waybill.consumer("inventory").await;
    eventually("the edit undone", async || {
        consumer.info().await.ok()?.config.inactive_threshold.is_zero().then_some(())
    })
    .await;
    assert!(waybill.logged_about("may have skipped orders").is_empty());
}

#[tokio::test]
async fn replicas_that_notice_an_edit_at_the_same_time_lose_nothing() {
    let mut waybill = Deployment::start_with(Options { replicas: 3, ..Options::default() }).await;
    let mut orders = Load::start(waybill.channel(), widgets(20)).all().await;
    each_is_carried_out_once(&waybill, &orders).await;
    edit(&waybill, "inventory", narrow).await;
    for n in 0..20 {
        orders.push(place(&waybill, &format!("passed-over-{n}")).await);
    }
    // Some notice by themselves, and some by the consumer's being gone.
    for process in waybill.processors.get_mut("inventory").unwrap() {
        let said = |fields: &Value| (fields["message"] == "consumer lost, reopened").then_some(());
        process.logged("a consumer that is opened anew", said).await;
    }
    each_is_carried_out_once(&waybill, &orders).await;
    let again = waybill.logged_about("consumer may have skipped orders").len();
    assert!((1..=3).contains(&again), "recreated {again} times");
}

#[tokio::test]
async fn replicas_with_other_settings_leave_the_consumer_to_whoever_started_last() {
    let mut waybill = Deployment::start().await;
    let order = place(&waybill, "order").await;
    waybill.finished(&order.order_id).await;
    waybill.start_processor_with("inventory", &[("ACK_WAIT", "7s")]);
    let mut consumer = waybill.consumer("inventory").await;
    eventually("the later one's settings", async || {
        (consumer.info().await.ok()?.config.ack_wait == Duration::from_secs(7)).then_some(())
    })
    .await;
    // An edit that all have to notice, and so a look of each.
    edit(&waybill, "inventory", |config| config.max_ack_pending = 7).await;
    eventually("the edit undone", async || {
        (consumer.info().await.ok()?.config.max_ack_pending != 7).then_some(())
    })
    .await;
    let later = place(&waybill, "later").await;
    each_is_carried_out_once(&waybill, &[order, later]).await;
    assert!(waybill.logged_about("may have skipped orders").is_empty());
}
