//! Parked orders go on once the cause is mended: each once, as fast as wanted, and no order on a hunch.

use std::time::Duration;

use backbone::dead_letters::{LetterId, StoredDeadLetter};
use backbone::log::ids::Revision;
use backbone::log::subjects::EventKind::{self, Created, Failed, Fulfilled, Paid, Redriven, Reserved};
use futures::{StreamExt, stream};
use harness::{Deployment, Load, PATIENCE, binary, every_one, item, order_of, these};
use prost::Message;
use proto::operations::v1::{
    DeadLetter, DeadLetterReason, DeadLetterState, DiscardDeadLetterRequest, RedriveDeadLettersRequest,
    RedriveOutcome,
};
use proto::orders::v1::{CreateOrderRequest, OrderEvent, OrderStatus};
use tokio::process::Command;
use tokio::time::timeout;
use tonic::Code;
use tonic_types::StatusExt;

use crate::accounting::ids;
use crate::dead_letters::{mend, parked, with_damage};

#[tokio::test]
async fn a_redriven_order_takes_up_where_it_was_parked_and_ends_well() {
    let waybill = with_damage(1).await;
    let order = parked(&waybill, "poison").await;
    mend(&waybill).await;
    let letter = order.dead_letter_id.as_str();
    let answers = waybill.redrive(these(&[letter])).await.unwrap();
    assert_eq!(answers, [(letter.to_owned(), RedriveOutcome::Redriven)]);

    let order = waybill.finished(&order.order_id).await;
    assert_eq!(
        (order.status(), order.reason.as_str(), order.dead_letter_id.as_str()),
        (OrderStatus::Fulfilled, "", "")
    );
    let way = [Created, Failed, Redriven, Reserved, Paid, Fulfilled];
    assert_eq!(waybill.history(&order.order_id).await, way);
    let kept = waybill.letter(letter).await.unwrap();
    assert_eq!(kept.state(), DeadLetterState::Redriven);
    assert_eq!(kept.resolution.unwrap().operator, "anonymous");

    let again = waybill.redrive(these(&[letter])).await.unwrap();
    assert_eq!(again, [(letter.to_owned(), RedriveOutcome::AlreadyResolved)]);
    assert_eq!(waybill.redrive(every_one()).await.unwrap(), []);
    for step in ["inventory", "payment", "fulfilment"] {
        waybill.idle(step).await;
    }
    assert_eq!(waybill.history(&order.order_id).await, way);
    assert_eq!(waybill.held("gadget").await, 1);
}

#[tokio::test]
async fn an_order_that_fails_again_gets_a_letter_that_names_the_one_before() {
    let waybill = with_damage(1).await;
    let first = parked(&waybill, "poison").await;
    let answers = waybill.redrive(every_one()).await.unwrap();
    assert_eq!(
        answers,
        [(first.dead_letter_id.clone(), RedriveOutcome::Redriven)],
        "not twice by one request"
    );
    let second = harness::eventually("another failure", async || {
        let order = waybill.get(&first.order_id).await.ok()?;
        (order.status() == OrderStatus::Failed && order.dead_letter_id != first.dead_letter_id)
            .then_some(order)
    })
    .await;
    let letter = waybill.letter(&second.dead_letter_id).await.unwrap();
    assert_eq!(letter.previous_dead_letter_id, first.dead_letter_id);
    let before = waybill.letter(&first.dead_letter_id).await.unwrap();
    assert_eq!((before.state(), &before.fingerprint), (DeadLetterState::Redriven, &letter.fingerprint));
    assert_eq!(waybill.open_letters().await, [second.dead_letter_id]);
}

/// Requests for one gadget each.
fn gadgets(count: usize) -> Vec<CreateOrderRequest> {
    let request =
        |i| order_of(&format!("customer-{}", i % 7), &format!("poison-{i}"), vec![item("gadget", 1)]);
    (0..count).map(request).collect()
}

#[tokio::test]
async fn five_hundred_orders_are_redriven_at_the_rate_that_was_asked_for() {
    five_hundred_are_redriven_by(async |waybill, dry_run| {
        let request = RedriveDeadLettersRequest { dry_run, rate_per_second: RATE, ..every_one() };
        let answers = waybill.redrive(request).await.unwrap();
        let count = |outcome| answers.iter().filter(|(_, other)| *other == outcome).count();
        let (would_be, were) = (count(RedriveOutcome::WouldRedrive), count(RedriveOutcome::Redriven));
        assert_eq!(answers.len(), would_be + were, "{answers:?}");
        (would_be, were)
    })
    .await;
}

#[tokio::test]
async fn five_hundred_orders_are_redriven_by_the_command_line() {
    five_hundred_are_redriven_by(async |waybill, dry_run| {
        let mut command = Command::new(binary("waybill"));
        let address = format!("http://{}", waybill.gateway.operations_addr);
        command.args(["dead-letter", "--operations", &address, "redrive", "--all"]).kill_on_drop(true);
        command.args(["--rate", &RATE.to_string()]).args(dry_run.then_some("--dry-run"));
        let output = timeout(PATIENCE, command.output()).await.expect("a redrive that ends").unwrap();
        let (listed, said) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert!(output.status.success(), "{said}");
        let count =
            |words: &str| said.trim().strip_suffix(words).map_or(0, |count| count.trim().parse().unwrap());
        let (would_be, were) = match dry_run {
            true => (count("would be redriven"), 0),
            false => (0, count("redriven")),
        };
        assert!(would_be + were > 0 || said.contains("no open dead letter matches"), "{said}");
        assert_eq!(listed.lines().count(), would_be + were, "{listed}");
        (would_be, were)
    })
    .await;
}

const RATE: i32 = 50;

/// Parks so many orders and mends the cause. `redrive` redrives all, at the rate, or says which would be; it tells how
/// many would be, and how many were.
async fn five_hundred_are_redriven_by(redrive: impl AsyncFn(&Deployment, bool) -> (usize, usize)) {
    const ORDERS: usize = 500;
    let waybill = with_damage(1).await;
    let orders = ids(&Load::start(waybill.channel(), gadgets(ORDERS)).all().await);
    let failing = stream::iter(&orders).map(|order_id| waybill.reached(order_id, OrderStatus::Failed));
    let failed: Vec<_> = failing.buffer_unordered(16).collect().await;
    waybill.idle("inventory").await;
    let (messages, letters) = (waybill.subjects().await.len(), waybill.letters_kept().await);

    assert_eq!(redrive(&waybill, true).await, (ORDERS, 0));
    assert_eq!((waybill.subjects().await.len(), waybill.letters_kept().await), (messages, letters));

    mend(&waybill).await;
    assert_eq!(redrive(&waybill, false).await, (0, ORDERS));
    assert_eq!(waybill.statuses(&orders).await.get(&OrderStatus::Fulfilled), Some(&ORDERS));
    let times = times_of_redrives(&waybill).await;
    let at_once = most_within(Duration::from_secs(1), &times);
    eprintln!(
        "{} redriven within {:?}, {at_once} in a second at most",
        times.len(),
        times[ORDERS - 1] - times[0]
    );
    // One second has both of its ends, and what was redriven late does not hold up the next.
    assert!(at_once <= RATE as usize + 2, "{at_once} in a second: {times:?}");

    assert_eq!(redrive(&waybill, false).await, (0, 0));
    let named: Vec<_> = failed.iter().map(|order| order.dead_letter_id.as_str()).collect();
    let again = waybill.redrive(these(&named)).await.unwrap();
    assert!(again.iter().all(|(_, outcome)| *outcome == RedriveOutcome::AlreadyResolved));
    let histories = waybill.histories().await;
    for order_id in &orders {
        let times = |kind: EventKind| histories[order_id].iter().filter(|other| **other == kind).count();
        assert_eq!((times(Redriven), times(Fulfilled)), (1, 1));
    }
    assert_eq!(waybill.held("gadget").await, ORDERS as u64);
}

/// When orders were redriven, by the events in the log, as times since 1970.
async fn times_of_redrives(waybill: &Deployment) -> Vec<Duration> {
    let redriven = waybill.messages().await.into_iter().filter(|it| it.subject.contains(".redriven."));
    let time = |event: OrderEvent| {
        let time = event.order.unwrap().update_time.unwrap();
        Duration::new(time.seconds.try_into().unwrap(), time.nanos.try_into().unwrap())
    };
    redriven.map(|message| time(OrderEvent::decode(message.payload).unwrap())).collect()
}

/// How many of these times, which are in order, lie within one such window at most.
fn most_within(window: Duration, times: &[Duration]) -> usize {
    let from =
        |from: &Duration| times.iter().filter(|time| **time >= *from && **time <= *from + window).count();
    times.iter().map(from).max().unwrap_or(0)
}

#[tokio::test]
async fn a_canary_that_fails_again_is_the_only_one() {
    let waybill = with_damage(1).await;
    let mut orders = Vec::new();
    for request_id in ["one", "two", "three"] {
        orders.push(parked(&waybill, request_id).await);
    }
    let letters: Vec<_> = orders.iter().map(|order| order.dead_letter_id.clone()).collect();
    let canary = RedriveDeadLettersRequest { canary: true, ..every_one() };
    let answers = waybill.redrive(canary.clone()).await.unwrap();
    let outcomes = [RedriveOutcome::Redriven, RedriveOutcome::CanaryFailed];
    assert_eq!(answers, outcomes.map(|outcome| (letters[0].clone(), outcome)));
    for order in &orders[1..] {
        assert_eq!(waybill.get(&order.order_id).await.unwrap(), *order);
    }

    mend(&waybill).await;
    let answers = waybill.redrive(canary).await.unwrap();
    let outcomes: Vec<_> = answers.into_iter().map(|(_, outcome)| outcome).collect();
    use RedriveOutcome as O;
    assert_eq!(outcomes, [O::Redriven, O::CanaryPassed, O::Redriven, O::Redriven]);
    assert_eq!(waybill.statuses(&ids(&orders)).await.get(&OrderStatus::Fulfilled), Some(&3));
}

#[tokio::test]
async fn a_canary_that_is_cancelled_meanwhile_shows_nothing_and_the_next_one_goes_first() {
    let mut waybill = with_damage(1).await;
    let mut orders = Vec::new();
    for request_id in ["one", "two", "three"] {
        orders.push(parked(&waybill, request_id).await);
    }
    mend(&waybill).await;
    waybill.kill_processors("inventory");
    let canary = RedriveDeadLettersRequest { canary: true, ..every_one() };
    let redriving = waybill.redrive(canary);
    let cancelled = async {
        waybill.reached(&orders[0].order_id, OrderStatus::Accepted).await;
        waybill.cancel(&orders[0].order_id).await.unwrap();
        // Not before: it would be reserved.
        waybill.another_processor("inventory")
    };
    let (answers, _inventory) = tokio::join!(redriving, cancelled);
    let outcomes: Vec<_> = answers.unwrap().into_iter().map(|(_, outcome)| outcome).collect();
    use RedriveOutcome as O;
    assert_eq!(outcomes, [O::Redriven, O::OrderWentOn, O::Redriven, O::CanaryPassed, O::Redriven]);
    let ends = waybill.statuses(&ids(&orders)).await;
    assert_eq!((ends.get(&OrderStatus::Cancelled), ends.get(&OrderStatus::Fulfilled)), (Some(&1), Some(&2)));
}

#[tokio::test]
async fn a_limit_and_the_names_of_letters_are_kept_to() {
    let waybill = with_damage(1).await;
    let first = parked(&waybill, "first").await;
    let second = parked(&waybill, "second").await;
    mend(&waybill).await;
    let answers = waybill.redrive(RedriveDeadLettersRequest { limit: 1, ..every_one() }).await.unwrap();
    assert_eq!(answers, [(first.dead_letter_id, RedriveOutcome::Redriven)]);
    assert_eq!(waybill.get(&second.order_id).await.unwrap(), second);
    let refused = waybill.redrive(these(&[&second.dead_letter_id, "inventory-9999"])).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert_eq!(refused.get_details_resource_info().unwrap().resource_name, "inventory-9999");
    assert_eq!(waybill.get(&second.order_id).await.unwrap(), second);
}

#[tokio::test]
async fn a_letter_whose_order_was_cancelled_is_closed_and_not_redriven() {
    let waybill = with_damage(1).await;
    let order = parked(&waybill, "poison").await;
    mend(&waybill).await;
    waybill.cancel(&order.order_id).await.unwrap();
    waybill.finished(&order.order_id).await;
    let letter = order.dead_letter_id;
    let dry = waybill.redrive(RedriveDeadLettersRequest { dry_run: true, ..every_one() }).await.unwrap();
    assert_eq!(dry, [(letter.clone(), RedriveOutcome::OrderWentOn)]);
    assert_eq!(waybill.letter(&letter).await.unwrap().state(), DeadLetterState::Open);
    assert_eq!(waybill.redrive(every_one()).await.unwrap(), dry);
    let kept = waybill.letter(&letter).await.unwrap();
    assert_eq!(kept.state(), DeadLetterState::Discarded);
    assert!(kept.resolution.unwrap().reason.contains("CANCELLED"));
    assert_eq!(waybill.get(&order.order_id).await.unwrap().status(), OrderStatus::Cancelled);
}

/// An order that is finished, and a letter about an attempt at it when it was not.
async fn letter_of_a_finished_order(waybill: &Deployment) -> (LetterId, StoredDeadLetter) {
    let order = waybill.place(order_of("customer", "request", vec![item("widget", 1)])).await.unwrap();
    waybill.finished(&order.order_id).await;
    let id = LetterId::new("inventory", Revision(order.revision)).unwrap();
    let letter = DeadLetter {
        state: DeadLetterState::Open.into(),
        reason: DeadLetterReason::RetriesExhausted.into(),
        order_id: order.order_id.clone(),
        order_revision: order.revision,
        ..DeadLetter::default()
    };
    let kept = waybill.dead_letters().await.put(&id, letter).await.unwrap();
    assert_eq!(waybill.open_letters().await, [id.to_string()]);
    (id, kept)
}

#[tokio::test]
async fn a_letter_whose_order_was_finished_by_another_worker_is_closed() {
    let waybill = Deployment::start().await;
    let (id, _) = letter_of_a_finished_order(&waybill).await;
    let dry = waybill.redrive(RedriveDeadLettersRequest { dry_run: true, ..every_one() }).await.unwrap();
    assert_eq!(dry, [(id.to_string(), RedriveOutcome::OrderWentOn)]);
    assert_eq!(waybill.open_letters().await, [id.to_string()]);
    assert_eq!(waybill.redrive(every_one()).await.unwrap(), dry);
    assert!(waybill.open_letters().await.is_empty());
    let kept = waybill.letter(&id.to_string()).await.unwrap();
    assert_eq!(kept.state(), DeadLetterState::Discarded);
    assert!(kept.resolution.unwrap().reason.contains("FULFILLED"));
}

#[tokio::test]
async fn a_withdrawn_letter_whose_step_died_before_it_was_off_the_list_leaves_the_list() {
    let waybill = Deployment::start().await;
    let (id, kept) = letter_of_a_finished_order(&waybill).await;
    let withdrawn = DeadLetter { state: DeadLetterState::Unspecified.into(), ..kept.letter };
    let subject = format!("DEAD_LETTER.attempts.{}.{}", id.step(), id.sequence());
    let jetstream = waybill.jetstream().await;
    jetstream.publish(subject, withdrawn.encode_to_vec().into()).await.unwrap().await.unwrap();
    assert_eq!(waybill.open_letters().await, [id.to_string()]);
    let answers = waybill.redrive(every_one()).await.unwrap();
    assert_eq!(answers, [(id.to_string(), RedriveOutcome::NotRedrivable)]);
    assert!(waybill.open_letters().await.is_empty());
}

/// Publishes what no step can decode; gives the letter's id.
async fn undecodable(waybill: &Deployment) -> String {
    let jetstream = waybill.jetstream().await;
    let ack = jetstream.publish("ORDER.0.junk.junk.junk.inventory", "junk".into()).await.unwrap();
    let id = format!("inventory-{}", ack.await.unwrap().sequence);
    harness::eventually("the letter", async || waybill.letter(&id).await.ok()).await;
    id
}

#[tokio::test]
async fn a_message_that_cannot_be_decoded_is_not_redriven_but_discarded() {
    let waybill = with_damage(1).await;
    let order = parked(&waybill, "poison").await;
    mend(&waybill).await;
    let id = undecodable(&waybill).await;
    let refused = waybill.redrive(these(&[&order.dead_letter_id, &id])).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(refused.get_details_error_info().unwrap().reason, "NOT_REDRIVABLE");
    let violations = refused.get_details_precondition_failure().unwrap().violations;
    assert_eq!(violations.len(), 1);
    assert_eq!(violations[0].subject, id);
    assert!(violations[0].description.contains("discard"), "{violations:?}");
    assert_eq!(waybill.get(&order.order_id).await.unwrap(), order, "all or none");
    let answers = waybill.redrive(every_one()).await.unwrap();
    let outcomes: Vec<_> = answers.into_iter().map(|(_, outcome)| outcome).collect();
    assert_eq!(outcomes, [RedriveOutcome::Redriven, RedriveOutcome::NotRedrivable]);
    assert_eq!(waybill.open_letters().await, std::slice::from_ref(&id));

    let discard =
        |reason: &str| DiscardDeadLetterRequest { dead_letter_id: id.clone(), reason: reason.to_owned() };
    let mut operations = waybill.operations();
    let refused = operations.discard_dead_letter(discard("")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    for reason in ["a test of ours", "again"] {
        let letter = operations.discard_dead_letter(discard(reason)).await.unwrap().into_inner().dead_letter;
        assert_eq!(letter.unwrap().resolution.unwrap().reason, "a test of ours");
    }
    assert!(waybill.open_letters().await.is_empty());
    let kept = waybill.letter(&id).await.unwrap();
    assert_eq!((kept.state(), kept.payload.as_slice()), (DeadLetterState::Discarded, &b"junk"[..]));
    let redriven = DiscardDeadLetterRequest { dead_letter_id: order.dead_letter_id, reason: "x".to_owned() };
    let refused = operations.discard_dead_letter(redriven).await.unwrap_err();
    assert_eq!(refused.get_details_error_info().unwrap().reason, "ALREADY_REDRIVEN");
}

#[tokio::test]
async fn a_redrive_that_reaches_its_deadline_does_not_deny_what_it_has_done() {
    let waybill = with_damage(1).await;
    let mut orders = Vec::new();
    for request_id in ["one", "two", "three"] {
        orders.push(parked(&waybill, request_id).await);
    }
    mend(&waybill).await;
    // The second letter is due when the time is over.
    let mut request = tonic::Request::new(RedriveDeadLettersRequest { rate_per_second: 1, ..every_one() });
    request.metadata_mut().insert("grpc-timeout", "900m".parse().unwrap());
    let mut stream = waybill.operations().redrive_dead_letters(request).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!(first.outcome(), RedriveOutcome::Redriven);
    let ended = stream.message().await.unwrap_err();
    assert_eq!(ended.code(), Code::DeadlineExceeded);
    assert_eq!(ended.get_details_error_info().unwrap().reason, "TIMED_OUT");
    assert!(ended.message().contains("answered dead letters are done"), "{ended:?}");
    waybill.redrive(every_one()).await.unwrap();
    assert_eq!(waybill.statuses(&ids(&orders)).await.get(&OrderStatus::Fulfilled), Some(&3));
}

#[tokio::test]
async fn two_operators_and_a_gateway_that_dies_redrive_each_order_once() {
    const ORDERS: usize = 100;
    let mut waybill = with_damage(1).await;
    let orders = ids(&Load::start(waybill.channel(), gadgets(ORDERS)).all().await);
    let failing = stream::iter(&orders).map(|order_id| waybill.reached(order_id, OrderStatus::Failed));
    failing.buffer_unordered(16).collect::<Vec<_>>().await;
    waybill.idle("inventory").await;
    mend(&waybill).await;

    let another = waybill.another_gateway().await;
    let request = RedriveDeadLettersRequest { rate_per_second: 200, ..every_one() };
    let mut of_another =
        another.operations().redrive_dead_letters(request.clone()).await.unwrap().into_inner();
    let theirs = tokio::spawn(async move {
        let mut answers = Vec::new();
        while let Some(answer) = of_another.message().await.unwrap() {
            answers.push(answer.outcome());
        }
        answers
    });
    let mut ours = waybill.operations().redrive_dead_letters(request).await.unwrap().into_inner();
    for _ in 0..ORDERS / 4 {
        ours.message().await.unwrap().unwrap();
    }
    waybill.gateway.process.kill();
    let theirs = theirs.await.unwrap();
    assert_eq!(theirs.len(), ORDERS);
    let good = |outcome: &RedriveOutcome| {
        matches!(outcome, RedriveOutcome::Redriven | RedriveOutcome::AlreadyResolved)
    };
    assert!(theirs.iter().all(good), "{theirs:?}");

    waybill.restart_gateway().await;
    let left = waybill.redrive(every_one()).await.unwrap();
    assert!(left.iter().all(|(_, outcome)| *outcome == RedriveOutcome::AlreadyResolved), "{left:?}");
    assert!(waybill.open_letters().await.is_empty());
    assert_eq!(waybill.statuses(&orders).await.get(&OrderStatus::Fulfilled), Some(&ORDERS));
    let histories = waybill.histories().await;
    for order_id in &orders {
        let redriven = histories[order_id].iter().filter(|kind| **kind == Redriven).count();
        assert_eq!(redriven, 1, "{:?}", histories[order_id]);
    }
}
