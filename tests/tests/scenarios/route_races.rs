//! Cancels race each step of a route of five, of which two are not built in: one without and one with compensation.

use futures::{StreamExt, stream};
use harness::{Deployment, Options, randomness};
use proto::orders::v1::{Order, OrderEvent, OrderStatus};

use crate::accounting::{STOCK, ids, widgets};
use crate::books::{Problems, check_effects, check_history, check_money, check_stock, histories};
use crate::cancel_races::{RACES_AT_ONCE, Raced, check_answer, check_line, check_refused, race};
use crate::events::{after, kind};
use backbone::log::subjects::EventKind;

const ROUTES: &str = "
routes:
  guarded:
    - inventory
    - screening
    - payment
    - {name: packing, compensates: true}
    - {name: loading, compensates: true, status: FULFILLED}
";
const STEPS: [&str; 5] = ["inventory", "screening", "payment", "packing", "loading"];
const COMPENSATE: [&str; 4] = ["inventory", "payment", "packing", "loading"];

#[tokio::test]
async fn of_a_cancel_and_any_step_of_five_exactly_one_wins() {
    race_each_step(200).await;
}

#[tokio::test]
#[ignore = "takes some minutes: make soak"]
async fn of_a_thousand_cancels_and_any_step_of_five_exactly_one_wins_each_time() {
    race_each_step(1_000).await;
}

async fn race_each_step(orders: usize) {
    let options = Options {
        routes: Some(ROUTES.to_owned()),
        steps: STEPS.to_vec(),
        payment_sandbox: true,
        ..Options::default()
    };
    let mut waybill = Deployment::start_with(options).await;
    let client = waybill.client().await;
    let (mut all, mut random) = (Vec::new(), randomness());
    for (requests, step) in widgets(STEPS.len() * orders).chunks(orders).zip(STEPS) {
        all.extend(race(&client, requests.to_vec(), step, &mut random).await);
    }
    let placed: Vec<_> = all.iter().map(|raced| raced.order.clone()).collect();
    let ends = stream::iter(&placed).map(|order| waybill.finished(&order.order_id));
    let ends: Vec<_> = ends.buffered(RACES_AT_ONCE).collect().await;
    // In the order in which they hand orders on: a step that is idle then stays so.
    for step in STEPS {
        waybill.idle(step).await;
    }

    let histories = histories(&waybill, &ids(&placed)).await;
    let mut problems = Problems::default();
    for Raced { order, answer, repeated } in &all {
        let events = &histories[&order.order_id];
        if let Err(problem) = check_history(events) {
            problems.add(&order.order_id, problem);
        }
        check_line(events);
        match answer {
            Ok(cancelled) => check_cancelled(cancelled, *repeated, events),
            Err(refusal) => {
                assert_eq!(way(events), ["", "inventory", "screening", "payment", "packing", "loading"]);
                assert_eq!(after(events.last().unwrap()).status(), OrderStatus::Fulfilled, "{refusal:?}");
                check_refused(order, refusal);
            }
        }
    }
    let accounts = waybill.sandbox().accounts();
    let totals = check_money(&ends, &accounts, &mut problems);
    check_stock(&waybill, &[("widget", STOCK)], &totals, &mut problems).await;
    check_effects(&waybill, &ends, &mut problems).await;
    let cancelled = ends.iter().filter(|end| end.status() == OrderStatus::Cancelled).count();
    eprintln!("{} orders, {cancelled} cancelled, {totals:?}", ends.len());
    assert_eq!((ends.len(), waybill.histories().await.len()), (STEPS.len() * orders, STEPS.len() * orders));
    assert!(waybill.open_letters().await.is_empty());
    problems.none(&waybill, &histories);
}

/// Who wrote each event: nobody but the steps has a name.
fn way(events: &[OrderEvent]) -> Vec<&str> {
    events.iter().map(|event| event.step.as_str()).collect()
}

/// It went some of its way, then no further; what compensates of that, and of the step whose turn it was, did so once, one
/// step after the other.
fn check_cancelled(cancelled: &Order, repeated: bool, events: &[OrderEvent]) {
    let at = events.iter().position(|event| kind(event) == EventKind::Cancelled).expect("a cancel");
    check_answer(cancelled, repeated, &events[at..]);
    assert_eq!(cancelled.status(), OrderStatus::Cancelled);
    let completed = at - 1;
    assert!(completed < STEPS.len(), "{events:?}");
    assert_eq!(way(&events[1..at]), STEPS[..completed], "{events:?}");
    let begun = &STEPS[..=completed];
    let owed: Vec<_> = COMPENSATE.into_iter().filter(|step| begun.contains(step)).collect();
    assert_eq!(after(&events[at]).compensation_pending, owed);
    assert_eq!(way(&events[at + 1..]), owed, "{events:?}");
}
