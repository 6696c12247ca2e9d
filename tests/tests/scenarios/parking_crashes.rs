//! Giving up is done in steps: the attempts are recorded, the letter is stored, the order becomes FAILED, the message
//! is terminated. A process that dies between any two of them leaves them to the next, and nothing is done twice.

use async_nats::jetstream::Message;
use backbone::dead_letters::{Kept, LetterId};
use backbone::ids::Revision;
use backbone::log::Appended;
use backbone::stream::ORDERS;
use backbone::subjects::EventKind::{self, Cancelled, Created, Failed, Released};
use backbone::trace::TraceContext;
use futures::StreamExt;
use harness::{Deployment, Options, PATIENCE, eventually, item, order_of};
use proto::operations::v1::{Attempt, DeadLetter, DeadLetterReason, DeadLetterState};
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Order, OrderFailed, OrderStatus};
use tokio::time::{Instant, timeout};

use crate::dead_letters::{mend, parked, with_damage};

/// Inventory gives up after the first attempt, and has died with an order in its hands. Nothing is wrong with the order:
/// an attempt at it would succeed.
async fn died_with_an_order() -> (Deployment, Order, Message) {
    let mut options = Options::default();
    options.processors.push(("MAX_ATTEMPTS", "1".to_owned()));
    let mut waybill = Deployment::start_with(options).await;
    let mut consumer = waybill.consumer("inventory").await;
    waybill.kill_processors("inventory");
    // Until the broker has noticed, it would hand the order to the dead.
    eventually("no worker that waits", async || (consumer.info().await.ok()?.num_waiting == 0).then_some(()))
        .await;
    let order = waybill.place(order_of("customer", "request", vec![item("widget", 2)])).await.unwrap();
    let mut messages = consumer.fetch().max_messages(1).expires(PATIENCE).messages().await.unwrap();
    let message = timeout(PATIENCE, messages.next()).await.unwrap().unwrap().unwrap();
    (waybill, order, message)
}

/// What the dead process had stored of its attempts.
async fn record_attempts(waybill: &Deployment, order: &Order, message: &Message) -> Kept {
    let info = message.info().unwrap();
    let published = prost_types::Timestamp {
        seconds: info.published.unix_timestamp(),
        nanos: i32::try_from(info.published.nanosecond()).unwrap(),
    };
    let letter = DeadLetter {
        order_revision: order.revision,
        subject: message.subject.to_string(),
        publish_time: Some(published),
        attempts: vec![Attempt { time: Some(published), error: "of the dead".to_owned() }],
        ..DeadLetter::default()
    };
    let id = LetterId::new("inventory", Revision(info.stream_sequence)).unwrap();
    waybill.dead_letters().await.put(&id, letter).await.unwrap()
}

async fn store_letter(waybill: &Deployment, order: &Order, record: &Kept) -> Kept {
    let letter = DeadLetter {
        state: DeadLetterState::Open.into(),
        reason: DeadLetterReason::RetriesExhausted.into(),
        order_id: order.order_id.clone(),
        ..record.letter.clone()
    };
    waybill.dead_letters().await.replace(record, letter).await.unwrap()
}

async fn append_failed(waybill: &Deployment, order: &Order, letter: &Kept) {
    let log = waybill.order_log().await;
    let current = log.load(&order.order_id.parse().unwrap()).await.unwrap().unwrap();
    let failed = OrderFailed { dead_letter_id: letter.id.to_string(), ..OrderFailed::default() };
    let deadline = Instant::now() + PATIENCE;
    let appended =
        log.append(&current, Detail::Failed(failed), &TraceContext::root(), deadline).await.unwrap();
    assert!(matches!(appended, Appended::Stored(_)), "{appended:?}");
}

/// Inventory comes back, and the order is parked: once, and without another attempt.
async fn is_parked_by_the_next(mut waybill: Deployment, order: &Order) {
    waybill.start_processor("inventory");
    let failed = waybill.reached(&order.order_id, OrderStatus::Failed).await;
    waybill.idle("inventory").await;
    assert_eq!(waybill.history(&order.order_id).await, [Created, Failed]);
    let kept = waybill.letters_kept().await;
    let open = kept.iter().filter(|(_, letter)| letter.state() == DeadLetterState::Open).collect::<Vec<_>>();
    assert_eq!(open.len(), 1, "{kept:?}");
    assert_eq!(open[0].1.dead_letter_id, failed.dead_letter_id);
    assert_eq!(open[0].1.attempts.len(), 1, "no attempt beside the one of the dead");
    assert!(waybill.reservation(&order.order_id).await.is_none());

    waybill.redrive(harness::every_one()).await.unwrap();
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
}

#[tokio::test]
async fn attempts_whose_step_died_before_the_letter_make_a_letter() {
    let (waybill, order, message) = died_with_an_order().await;
    record_attempts(&waybill, &order, &message).await;
    is_parked_by_the_next(waybill, &order).await;
}

#[tokio::test]
async fn a_letter_whose_step_died_before_its_order_failed_makes_it_fail() {
    let (waybill, order, message) = died_with_an_order().await;
    let record = record_attempts(&waybill, &order, &message).await;
    store_letter(&waybill, &order, &record).await;
    is_parked_by_the_next(waybill, &order).await;
}

#[tokio::test]
async fn an_order_whose_step_died_before_the_message_was_terminated_fails_once() {
    let (waybill, order, message) = died_with_an_order().await;
    let record = record_attempts(&waybill, &order, &message).await;
    let letter = store_letter(&waybill, &order, &record).await;
    append_failed(&waybill, &order, &letter).await;
    is_parked_by_the_next(waybill, &order).await;
}

#[tokio::test]
async fn a_letter_that_is_discarded_before_its_order_failed_leaves_the_order_failed() {
    let (mut waybill, order, message) = died_with_an_order().await;
    let record = record_attempts(&waybill, &order, &message).await;
    let letter = store_letter(&waybill, &order, &record).await;
    let letters = waybill.dead_letters().await;
    letters.resolve(&letter, DeadLetterState::Discarded, "somebody", "in haste").await.unwrap();
    waybill.start_processor("inventory");
    waybill.reached(&order.order_id, OrderStatus::Failed).await;
    waybill.idle("inventory").await;
    assert!(waybill.open_letters().await.is_empty());
}

#[tokio::test]
async fn a_letter_whose_order_has_gone_on_before_it_failed_is_withdrawn() {
    let (mut waybill, order, message) = died_with_an_order().await;
    let record = record_attempts(&waybill, &order, &message).await;
    store_letter(&waybill, &order, &record).await;
    waybill.cancel(&order.order_id).await.unwrap();
    waybill.start_processor("inventory");
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Cancelled);
    waybill.idle("inventory").await;
    assert_eq!(waybill.history(&order.order_id).await, [Created, Cancelled, Released]);
    assert!(waybill.open_letters().await.is_empty());
}

#[tokio::test]
async fn a_step_that_gets_all_its_messages_again_parks_nothing_again() {
    let mut waybill = with_damage(1).await;
    let first = parked(&waybill, "first").await;
    let second = parked(&waybill, "second").await;
    waybill.redrive(harness::these(&[&second.dead_letter_id])).await.unwrap();
    let second = eventually("the second's second letter", async || {
        let order = waybill.get(&second.order_id).await.ok()?;
        (!["", &second.dead_letter_id].contains(&order.dead_letter_id.as_str())).then_some(order)
    })
    .await;
    waybill.idle("inventory").await;
    let kept = waybill.letters_kept().await;

    waybill.kill_processors("inventory");
    let stream = waybill.jetstream().await.get_stream(ORDERS).await.unwrap();
    stream.delete_consumer("inventory").await.unwrap();
    waybill.start_processor("inventory");
    waybill.idle("inventory").await;
    let delivered = waybill.consumer("inventory").await.cached_info().delivered.consumer_sequence;
    assert!(delivered > 0, "nothing came again");
    for order in [&first, &second] {
        assert_eq!(waybill.get(&order.order_id).await.unwrap(), *order);
    }
    assert_eq!(waybill.letters_kept().await, kept);

    mend(&waybill).await;
    waybill.redrive(harness::every_one()).await.unwrap();
    for order in [first, second] {
        assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
        let history = waybill.history(&order.order_id).await;
        assert_eq!(history.iter().filter(|kind| **kind == EventKind::Reserved).count(), 1);
    }
}
