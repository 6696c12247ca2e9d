//! What has to have become of the orders, and what has.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use backbone::log::subjects::EventKind;
use harness::Deployment;
use proto::operations::v1::{DeadLetterState, ListDeadLettersResponse};
use proto::orders::v1::{Order, OrderEvent};
use serde_json::Value;
use tonic::Code;

use super::{Kind, Placed, SKUS};
use crate::books::{Problems, Totals, check_history, check_money, check_stock, histories};
use crate::events::{after, kinds};

pub(super) async fn check(
    waybill: &mut Deployment,
    placed: &[Placed],
    ends: &[Order],
    undecodable: &HashMap<u64, Kind>,
) {
    let mut problems = Problems::default();
    let order_ids: Vec<_> = placed.iter().map(|placed| placed.order.order_id.clone()).collect();
    let histories = histories(waybill, &order_ids).await;
    for (Placed { kind, order, cancelled }, end) in placed.iter().zip(ends) {
        let events = &histories[&order.order_id];
        if let Err(problem) = check_history(events) {
            problems.add(&order.order_id, problem);
        }
        if (end.status(), end.reason.as_str()) != kind.end(cancelled.as_ref()) {
            problems.add(&order.order_id, format!("{kind:?}, {cancelled:?}, became {end:?}"));
        }
        let too_late = cancelled.as_ref().and_then(|answer| answer.as_ref().err());
        if too_late.is_some_and(|status| status.code() != Code::FailedPrecondition) {
            problems.add(&order.order_id, format!("{cancelled:?}"));
        }
    }
    let in_the_log = waybill.histories().await.len();
    if in_the_log != placed.len() {
        problems.add("", format!("{in_the_log} orders in the log"));
    }
    let listed = waybill.listed_letters().await;
    check_letters(placed, &listed, undecodable, &mut problems);
    check_attempts(waybill, placed, &mut problems).await;
    let breakers = check_breakers(waybill, &mut problems);
    let accounts = waybill.sandbox().accounts();
    let totals = check_money(ends, &accounts, &mut problems);
    check_stock(waybill, &SKUS, &totals, &mut problems).await;
    print(waybill, placed, ends, &histories, &listed, &totals, &breakers).await;
    problems.none(waybill, &histories);
}

/// Each poison is an open letter of the right step, and nothing else is one.
fn check_letters(
    placed: &[Placed],
    listed: &ListDeadLettersResponse,
    undecodable: &HashMap<u64, Kind>,
    problems: &mut Problems,
) {
    let by_order: HashMap<_, _> =
        placed.iter().map(|placed| (placed.order.order_id.as_str(), placed.kind)).collect();
    let mut seen = HashSet::new();
    for letter in &listed.dead_letters {
        let by_sequence = undecodable.get(&letter.sequence);
        let kind = by_sequence.or_else(|| by_order.get(letter.order_id.as_str()));
        let expected = kind.and_then(|kind| kind.poison());
        let error = letter.attempts.last().map_or("", |attempt| &attempt.error);
        let named = match kind {
            Some(Kind::Damaged) => error.contains("stock.gadget"),
            Some(Kind::Nonsense) => error.contains("without an outcome"),
            _ => !error.is_empty(),
        };
        if expected != Some((letter.step.as_str(), letter.reason())) || !named {
            problems.add(&letter.order_id, format!("a letter of {kind:?}: {letter:?}"));
        }
        seen.insert((letter.order_id.as_str(), letter.sequence));
    }
    let poison = placed.iter().filter(|placed| placed.kind.poison().is_some()).count() + undecodable.len();
    if (seen.len(), listed.dead_letters.len()) != (poison, poison) {
        problems.add(
            "",
            format!("{} letters of {} messages, not {poison}", listed.dead_letters.len(), seen.len()),
        );
    }
}

/// The outage has used up no attempt. Of those that were cancelled, a capture that came too late may have.
async fn check_attempts(waybill: &Deployment, placed: &[Placed], problems: &mut Problems) {
    let unharmed =
        placed.iter().filter(|placed| placed.kind.poison().is_none() && placed.cancelled.is_none());
    let unharmed: HashSet<_> = unharmed.map(|placed| placed.order.order_id.as_str()).collect();
    for line in waybill.logged_about("attempt failed, order retried") {
        let line: Value = serde_json::from_str(&line).unwrap();
        let order_id = line["fields"]["order_id"].as_str().unwrap();
        if line["fields"]["counts"] == true && unharmed.contains(order_id) {
            problems.add(order_id, "has used up an attempt");
        }
    }
    for (subject, letter) in waybill.letters_kept().await {
        let recorded = letter.state() == DeadLetterState::Unspecified && !letter.attempts.is_empty();
        let order_key = letter.subject.split('.').nth(3).unwrap_or_default();
        if recorded && unharmed.iter().any(|order_id| order_id.ends_with(order_key)) {
            problems.add("", format!("attempts on record for a good order: {subject}"));
        }
    }
}

/// Payment's breaker opened in each replica, and closed again in one at least: the other may have been left nothing to close
/// it with, when the first was back sooner and took all that waited. Gives how often.
fn check_breakers(waybill: &Deployment, problems: &mut Problems) -> Vec<(usize, usize)> {
    let mut breakers = Vec::new();
    for process in &waybill.processors["payment"] {
        let output = process.output();
        let count = |message: &str| output.matches(message).count();
        let (opened, closed) = (
            count("dependency unavailable, circuit breaker opened"),
            count("dependency available, circuit breaker closed"),
        );
        breakers.push((opened, closed));
    }
    if breakers.iter().any(|(opened, _)| *opened == 0) || breakers.iter().all(|(_, closed)| *closed == 0) {
        problems.add("", format!("payment's breakers opened and closed {breakers:?} times"));
    }
    breakers
}

async fn print(
    waybill: &Deployment,
    placed: &[Placed],
    ends: &[Order],
    histories: &HashMap<String, Vec<OrderEvent>>,
    listed: &ListDeadLettersResponse,
    totals: &Totals,
    breakers: &[(usize, usize)],
) {
    let mut statuses = BTreeMap::<_, usize>::new();
    for end in ends {
        *statuses.entry((end.status().as_str_name(), end.reason.as_str())).or_default() += 1;
    }
    for ((status, reason), count) in statuses {
        eprintln!("{count:>6}  {status} {reason}");
    }
    let late = placed.iter().filter(|placed| matches!(placed.cancelled, Some(Err(_)))).count();
    eprintln!("{late:>6}  cancels that came too late");
    for group in &listed.groups {
        let (reason, error) = (group.reason().as_str_name(), &group.sample_error);
        eprintln!(
            "{:>6}  dead letters {} of {} {reason}: {error}",
            group.count, group.fingerprint, group.step
        );
    }
    let Totals { captures, refunds, kept, shipped, parked } = totals;
    eprintln!("{captures:>6}  captures, {refunds} refunds, {kept} minor units kept");
    for (sku, units) in SKUS {
        let available = waybill.available(sku).await;
        let (shipped, parked) = (shipped.get(sku).unwrap_or(&0), parked.get(sku).unwrap_or(&0));
        eprintln!(
            "        {sku}: {units} units before, {available} after, {shipped} shipped, {parked} held by parked orders"
        );
    }
    let mut times: Vec<_> = ends.iter().map(|end| lifetime(&histories[&end.order_id])).collect();
    times.sort();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    eprintln!("        time to the end: half {:?}, 99 % {:?}, all {:?}", at(0.5), at(0.99), at(1.0));
    let parked = histories.values().filter(|events| kinds(events).contains(&EventKind::Failed)).count();
    eprintln!("        {parked} orders parked; payment's breakers opened and closed {breakers:?} times");
}

/// How long an order took to its last event.
fn lifetime(events: &[OrderEvent]) -> Duration {
    let time = |event: &OrderEvent| {
        let time = after(event).update_time.expect("time");
        Duration::new(time.seconds.try_into().unwrap(), time.nanos.try_into().unwrap())
    };
    time(&events[events.len() - 1]) - time(&events[0])
}
