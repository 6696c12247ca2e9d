//! An order that a step cannot carry further is parked where an operator finds it, with all that was tried; and it
//! holds up nobody.

use async_nats::HeaderMap;
use backbone::broker::streams::{DEAD_LETTERS, ORDERS};
use backbone::log::subjects::EventKind;
use harness::{Deployment, Load, Options, eventually, every_one, item, order_of, these};
use processor::inventory::{BUCKET, stock_key};
use proto::operations::v1::{
    DeadLetter, DeadLetterReason, DeadLetterState, ListDeadLettersRequest, RedriveDeadLettersRequest,
    RedriveOutcome,
};
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Order, OrderStatus};
use proto::payments::v1::Fault;
use serde_json::Value;

use crate::accounting::{STOCK, WHOLE_WAY, ids, widgets};
use crate::events::{kind, kinds};

/// A deployment whose steps give up after so many attempts, and in which no gadgets can be reserved.
pub(crate) async fn with_damage(attempts_max: u8) -> Deployment {
    with_damage_and(attempts_max, Options::default()).await
}

/// The same with other options.
pub(crate) async fn with_damage_and(attempts_max: u8, mut options: Options) -> Deployment {
    options.processors.push(("MAX_ATTEMPTS", attempts_max.to_string()));
    let waybill = Deployment::start_with(options).await;
    waybill.idle("inventory").await;
    break_gadgets(&waybill).await;
    waybill
}

/// From now on no gadgets can be reserved.
pub(crate) async fn break_gadgets(waybill: &Deployment) {
    set_gadgets(waybill, "damaged").await;
}

/// Mends what [`break_gadgets`] has broken.
pub(crate) async fn mend(waybill: &Deployment) {
    set_gadgets(waybill, &STOCK.to_string()).await;
}

async fn set_gadgets(waybill: &Deployment, value: &str) {
    let value = value.as_bytes().to_vec();
    eventually("the bucket", async || {
        let bucket = waybill.jetstream().await.get_key_value(BUCKET).await.ok()?;
        bucket.put(stock_key("gadget"), value.clone().into()).await.ok()
    })
    .await;
}

/// Places an order that meets the damage.
pub(crate) async fn place_poison(waybill: &Deployment, request_id: &str) -> Order {
    waybill.place(order_of("customer", request_id, vec![item("gadget", 1)])).await.unwrap()
}

/// The order that meets the damage, once it is parked.
pub(crate) async fn parked(waybill: &Deployment, request_id: &str) -> Order {
    let order = place_poison(waybill, request_id).await;
    waybill.reached(&order.order_id, OrderStatus::Failed).await
}

#[tokio::test]
async fn a_poison_order_is_parked_with_all_that_was_tried_while_others_pass() {
    let waybill = with_damage(3).await;
    let order = place_poison(&waybill, "poison").await;
    let mut watcher = waybill.watch(&order.order_id, 0).await.unwrap();
    let created = watcher.event().await;
    let others = Load::start(waybill.channel(), widgets(20)).all().await;
    assert_eq!(waybill.statuses(&ids(&others)).await.get(&OrderStatus::Fulfilled), Some(&20));

    let failed = watcher.event().await;
    let order = waybill.get(&order.order_id).await.unwrap();
    assert_eq!((order.status(), order.parked_status()), (OrderStatus::Failed, OrderStatus::Accepted));
    assert_eq!(order.reason, "RETRIES_EXHAUSTED");
    let Some(Detail::Failed(detail)) = &failed.detail else { panic!("{failed:?}") };
    assert_eq!(
        (failed.step.as_str(), detail.attempts, &detail.dead_letter_id),
        ("inventory", 3, &order.dead_letter_id)
    );
    assert!(detail.message.contains("stock.gadget"), "{}", detail.message);

    let letter = waybill.letter(&order.dead_letter_id).await.unwrap();
    let original = waybill.messages().await.into_iter().find(|message| message.sequence.0 == letter.sequence);
    let original = original.unwrap();
    assert_eq!(letter.dead_letter_id, format!("inventory-{}", original.sequence));
    assert_eq!(
        (letter.state(), letter.reason()),
        (DeadLetterState::Open, DeadLetterReason::RetriesExhausted)
    );
    assert_eq!((&letter.order_id, letter.subject.as_str()), (&order.order_id, original.subject.as_str()));
    assert_eq!(letter.payload, original.payload);
    let ce_type = letter.headers.iter().find(|header| header.name == "ce-type").unwrap();
    assert_eq!(ce_type.value, "orders.v1.OrderCreated");
    assert_eq!(letter.trace_id, created.trace_id);
    assert_eq!(letter.attempts.len(), 3);
    assert!(letter.attempts.iter().all(|attempt| attempt.error.contains("stock.gadget")), "{letter:?}");
    let times =
        |attempt: &proto::operations::v1::Attempt| attempt.time.map(|time| (time.seconds, time.nanos));
    assert!(letter.attempts.iter().is_sorted_by_key(times), "{letter:?}");
    // Nobody comes back to it.
    waybill.idle("inventory").await;
    assert_eq!(waybill.history(&order.order_id).await, [EventKind::Created, EventKind::Failed]);
}

/// The record of what was tried, as long as there is no letter.
async fn attempts(waybill: &Deployment) -> Option<DeadLetter> {
    let kept = waybill.letters_kept().await.into_iter();
    kept.map(|(_, letter)| letter).find(|letter| letter.state() == DeadLetterState::Unspecified)
}

#[tokio::test]
async fn attempts_are_counted_over_the_death_of_the_step() {
    let mut waybill = with_damage(5).await;
    let order = place_poison(&waybill, "poison").await;
    let before =
        eventually("attempts", async || attempts(&waybill).await.filter(|record| record.attempts.len() >= 2))
            .await;
    waybill.kill_processors("inventory");
    waybill.start_processor("inventory");

    let order = waybill.reached(&order.order_id, OrderStatus::Failed).await;
    let letter = waybill.letter(&order.dead_letter_id).await.unwrap();
    assert_eq!(letter.attempts.len(), 5);
    assert_eq!(letter.attempts[..2], before.attempts[..2]);
    let tried_again =
        waybill.processor("inventory").output().matches("attempt failed, order retried").count();
    assert!(tried_again <= 2, "{tried_again} attempts after the two before, and one to give up");
}

#[tokio::test]
async fn an_outage_uses_up_no_attempts() {
    outage_of_the_bucket(&[]).await;
}

#[tokio::test]
async fn an_outage_uses_up_no_attempts_however_short_they_are() {
    outage_of_the_bucket(&[SHORT]).await;
}

/// The least that may be set.
const SHORT: (&str, &str) = ("ATTEMPT_TIMEOUT", "1s");

fn one_attempt(settings: &[(&'static str, &str)]) -> Options {
    let mut options = Options::default();
    options.processors.push(("MAX_ATTEMPTS", "1".to_owned()));
    options.processors.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
    options
}

/// The log line of a failed attempt: its reason, and whether it counts.
fn in_vain(fields: &Value) -> Option<(String, bool)> {
    let again = fields["message"] == "attempt failed, order retried";
    again.then(|| Some((fields["reason"].as_str()?.to_owned(), fields["counts"].as_bool()?)))?
}

async fn outage_of_the_bucket(settings: &[(&'static str, &str)]) {
    let mut waybill = Deployment::start_with(one_attempt(settings)).await;
    waybill.idle("inventory").await;
    waybill.jetstream().await.delete_stream(format!("KV_{BUCKET}")).await.unwrap();
    let orders = Load::start(waybill.channel(), widgets(10)).all().await;
    let (reason, counts) = waybill.processor("inventory").logged("the outage", in_vain).await;
    assert!(reason.contains("not available") && !counts, "{reason}");
    assert!(waybill.letters_kept().await.is_empty());

    waybill.kill_processors("inventory");
    waybill.broker.provision_with(&[]).await;
    waybill.add_stock("after the loss", "widget", 10).await.unwrap();
    waybill.start_processor("inventory");
    assert_eq!(waybill.statuses(&ids(&orders)).await.get(&OrderStatus::Fulfilled), Some(&10));
    assert!(waybill.letters_kept().await.is_empty());
}

#[tokio::test]
async fn an_outage_of_the_log_uses_up_no_short_attempt() {
    let options = Options { wired: Some("fulfilment"), ..one_attempt(&[SHORT]) };
    let mut waybill = Deployment::start_with(options).await;
    let mut held = waybill.wire().hold("append fulfilled");
    let order = waybill.place(order_of("customer", "request", vec![item("widget", 1)])).await.unwrap();
    held.reached().await;
    let (reason, counts) = waybill.processor("fulfilment").logged("the outage", in_vain).await;
    held.release();
    assert!(!counts, "{reason}");
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
    assert!(waybill.letters_kept().await.is_empty());
}

/// Both hold the message: the broker redelivers it when the acknowledgement of the first takes too long.
#[tokio::test]
async fn an_order_that_two_replicas_park_at_once_keeps_its_letter() {
    let mut options = Options { wired: Some("inventory"), ..Options::default() };
    options.processors.push(("ACK_WAIT", "500ms".to_owned()));
    let mut waybill = with_damage_and(1, options).await;
    let mut held = waybill.wire().hold("append failed");
    let order = waybill.place(order_of("customer", "", vec![item("gadget", 1)])).await.unwrap();
    held.reached().await;
    waybill.start_processor_at("inventory", waybill.broker.address());
    let parked = waybill.reached(&order.order_id, OrderStatus::Failed).await;
    held.release();
    waybill.idle("inventory").await;
    assert_eq!(waybill.open_letters().await, [parked.dead_letter_id]);
    mend(&waybill).await;
    waybill.redrive(every_one()).await.unwrap();
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
}

#[tokio::test]
async fn a_payment_service_that_stands_still_uses_up_no_short_attempt() {
    let mut waybill =
        Deployment::start_with(Options { payment_sandbox: true, ..one_attempt(&[SHORT]) }).await;
    waybill.sandbox().process.pause();
    let order = waybill.place(order_of("customer", "request", vec![item("widget", 1)])).await.unwrap();
    let (reason, counts) = waybill.processor("payment").logged("the outage", in_vain).await;
    waybill.sandbox().process.resume();
    assert!(!counts, "{reason}");
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
    assert!(waybill.letters_kept().await.is_empty());
}

/// More drains than there may be attempts of which nothing is heard.
#[tokio::test]
async fn an_order_that_is_given_back_again_and_again_is_not_parked() {
    const DRAINS: i64 = 15;
    let mut options = Options { payment_sandbox: true, ..Options::default() };
    options.processors.extend([("MAX_ATTEMPTS", "1".to_owned()), ("DRAIN_TIMEOUT", "0s".to_owned())]);
    let mut waybill = Deployment::start_with(options).await;
    waybill.sandbox().fail("", Fault::LostReply, 0).await;
    let order = waybill.place(order_of("customer", "request", vec![item("widget", 1)])).await.unwrap();
    for calls in 1..=DRAINS {
        eventually("a call that waits", async || {
            (waybill.sandbox().ledger("").await.capture_calls >= calls).then_some(())
        })
        .await;
        assert!(waybill.processor("payment").stop().await.success());
        waybill.restart_processor("payment");
    }
    waybill.sandbox().recover().await;
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
    waybill.idle("payment").await;
    assert_eq!(waybill.history(&order.order_id).await, WHOLE_WAY);
    assert!(waybill.letters_kept().await.is_empty(), "{:?}", waybill.letters_kept().await);
}

#[tokio::test]
async fn a_message_that_cannot_be_decoded_is_kept_byte_for_byte() {
    let waybill = Deployment::start().await;
    let (jetstream, bytes) = (waybill.jetstream().await, (0..=255).collect::<Vec<u8>>());
    let mut headers = HeaderMap::new();
    headers.append("who", "somebody");
    headers.append("who", "else");
    let ack = jetstream
        .publish_with_headers("ORDER.0.junk.junk.junk.inventory", headers, bytes.clone().into())
        .await
        .unwrap();
    let sequence = ack.await.unwrap().sequence;

    let id = format!("inventory-{sequence}");
    let letter = eventually("the letter", async || waybill.letter(&id).await.ok()).await;
    assert_eq!((letter.state(), letter.reason()), (DeadLetterState::Open, DeadLetterReason::Undecodable));
    assert_eq!((letter.subject.as_str(), letter.sequence), ("ORDER.0.junk.junk.junk.inventory", sequence));
    assert_eq!(letter.payload, bytes);
    let values: Vec<_> = letter.headers.iter().map(|header| header.value.as_str()).collect();
    assert_eq!(values, ["somebody", "else"]);
    assert_eq!(letter.attempts.len(), 1);
    assert!(letter.attempts[0].error.contains("subject"), "{letter:?}");
    waybill.idle("inventory").await;
}

#[tokio::test]
async fn a_message_too_large_for_a_letter_is_named_and_stays_in_the_log() {
    let waybill = Deployment::start().await;
    let jetstream = waybill.jetstream().await;
    let payload = vec![7; jetstream.client().server_info().max_payload];
    let ack = jetstream.publish("ORDER.0.junk.junk.junk.inventory", payload.into()).await.unwrap();
    let id = format!("inventory-{}", ack.await.unwrap().sequence);
    let letter = eventually("the letter", async || waybill.letter(&id).await.ok()).await;
    assert!(letter.content_omitted && letter.payload.is_empty(), "{letter:?}");
    waybill.idle("inventory").await;
}

#[tokio::test]
async fn a_parked_order_can_be_cancelled_and_gives_back_what_it_held() {
    let waybill = with_damage(1).await;
    let order = parked(&waybill, "poison").await;
    let watcher = waybill.watch(&order.order_id, 0).await.unwrap();
    mend(&waybill).await;
    let cancelled = waybill.cancel(&order.order_id).await.unwrap();
    assert_eq!((cancelled.status(), cancelled.dead_letter_id.as_str()), (OrderStatus::Cancelled, ""));
    use EventKind::{Cancelled, Created, Failed, Released};
    assert_eq!(kinds(&watcher.rest().await), [Created, Failed, Cancelled, Released]);
    assert_eq!(waybill.available("gadget").await, STOCK);
}

#[tokio::test]
async fn what_is_owed_is_tried_and_parked_like_all_else() {
    let waybill = with_damage(1).await;
    let order = parked(&waybill, "poison").await;
    mend(&waybill).await;
    // A reservation that cannot be read stands in the way of the release.
    let bucket = waybill.inventory().await;
    let key = processor::inventory::reservation_key(&order.order_id);
    bucket.put(&key, "damaged".into()).await.unwrap();
    let mut watcher = waybill.watch(&order.order_id, order.revision).await.unwrap();
    waybill.cancel(&order.order_id).await.unwrap();
    assert_eq!(kind(&watcher.event().await), EventKind::Cancelled);
    assert_eq!(kind(&watcher.event().await), EventKind::Failed);
    let failed = waybill.get(&order.order_id).await.unwrap();
    assert_eq!((failed.status(), failed.parked_status()), (OrderStatus::Failed, OrderStatus::Cancelled));
    assert_eq!(failed.reason, "CLIENT_REQUEST");
    assert_eq!(waybill.cancel(&order.order_id).await.unwrap(), failed, "it is cancelled already");

    bucket.delete(&key).await.unwrap();
    let canary = RedriveDeadLettersRequest { canary: true, ..these(&[&failed.dead_letter_id]) };
    let answers = waybill.redrive(canary).await.unwrap();
    // It was called off before, so this is the end that was to come.
    let outcomes = [RedriveOutcome::Redriven, RedriveOutcome::CanaryPassed];
    assert_eq!(answers, outcomes.map(|outcome| (failed.dead_letter_id.clone(), outcome)));
    assert_eq!(kinds(&watcher.rest().await), [EventKind::Redriven, EventKind::Released]);
    let order = waybill.finished(&order.order_id).await;
    assert_eq!((order.status(), order.reason.as_str()), (OrderStatus::Cancelled, "CLIENT_REQUEST"));
}

#[tokio::test]
async fn dead_letters_are_kept_as_safely_as_orders() {
    let waybill = Deployment::start().await;
    let stream = waybill.jetstream().await.get_stream(DEAD_LETTERS).await.unwrap();
    let config = &stream.cached_info().config;
    assert!(config.max_age.is_zero() && config.allow_direct && config.allow_message_ttl);
    assert_eq!(config.max_messages_per_subject, 1);
}

#[tokio::test]
async fn a_step_that_gets_all_its_messages_again_parks_nothing_again() {
    let mut waybill = with_damage(1).await;
    let first = parked(&waybill, "first").await;
    let second = parked(&waybill, "second").await;
    waybill.redrive(these(&[&second.dead_letter_id])).await.unwrap();
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
    waybill.broker.provision().await;
    waybill.start_processor("inventory");
    waybill.idle("inventory").await;
    let delivered = waybill.consumer("inventory").await.cached_info().delivered.consumer_sequence;
    assert!(delivered > 0, "nothing came again");
    for order in [&first, &second] {
        assert_eq!(waybill.get(&order.order_id).await.unwrap(), *order);
    }
    assert_eq!(waybill.letters_kept().await, kept);

    mend(&waybill).await;
    waybill.redrive(every_one()).await.unwrap();
    for order in [first, second] {
        assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
        let history = waybill.history(&order.order_id).await;
        assert_eq!(history.iter().filter(|kind| **kind == EventKind::Reserved).count(), 1);
    }
}

#[tokio::test]
async fn dead_letters_that_somebody_deleted_while_all_runs_have_their_place_again() {
    let mut waybill = with_damage(1).await;
    let lost = parked(&waybill, "lost").await;
    waybill.jetstream().await.delete_stream(DEAD_LETTERS).await.unwrap();
    let order = place_poison(&waybill, "poison").await;
    let order = waybill.reached(&order.order_id, OrderStatus::Failed).await;
    let said = |fields: &Value| {
        fields["message"].as_str().filter(|text| text.contains("DEAD_LETTERS was deleted")).map(str::to_owned)
    };
    waybill.processor("inventory").logged("the loss", said).await;
    assert_eq!(waybill.open_letters().await, std::slice::from_ref(&order.dead_letter_id));
    mend(&waybill).await;
    waybill.redrive(every_one()).await.unwrap();
    assert_eq!(waybill.finished(&order.order_id).await.status(), OrderStatus::Fulfilled);
    waybill.cancel(&lost.order_id).await.unwrap();
    assert_eq!(waybill.finished(&lost.order_id).await.status(), OrderStatus::Cancelled);

    // And an operator who looks is enough.
    waybill.jetstream().await.delete_stream(DEAD_LETTERS).await.unwrap();
    eventually("an empty list", async || {
        let letters = waybill.operations().list_dead_letters(ListDeadLettersRequest::default()).await.ok()?;
        letters.into_inner().dead_letters.is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_letter_for_which_there_is_no_room_waits_and_holds_up_nobody() {
    let mut waybill = with_damage(1).await;
    let first = parked(&waybill, "first").await;
    let room_for = async |max_messages: i64| {
        let jetstream = waybill.jetstream().await;
        let config = jetstream.get_stream(DEAD_LETTERS).await.unwrap().cached_info().config.clone();
        let config = async_nats::jetstream::stream::Config { max_messages, ..config };
        jetstream.update_stream(config).await.unwrap();
    };
    room_for(1).await;
    let second = place_poison(&waybill, "second").await;
    let other = waybill.place(order_of("customer", "other", vec![item("widget", 1)])).await.unwrap();
    assert_eq!(waybill.finished(&other.order_id).await.status(), OrderStatus::Fulfilled);
    room_for(-1).await;
    let second = waybill.reached(&second.order_id, OrderStatus::Failed).await;
    assert_eq!(waybill.open_letters().await, [first.dead_letter_id, second.dead_letter_id]);
    let said = |fields: &Value| {
        let waits = fields["message"] == "dead letter or its order not stored, retrying";
        (waits && fields["error"].as_str()?.contains("no storage space")).then_some(())
    };
    waybill.processor("inventory").logged("a letter that waits", said).await;
}
