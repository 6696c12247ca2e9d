//! Hundreds of small orders while everything dies, stands still or answers wrongly at random. Afterwards each order
//! has to have gone a way that the lifecycle allows, along its own route, to the end that its client may expect; money, stock
//! and the effects of test steps add up. The routes are random too.
//!
//! SEED repeats a schedule, as far as processes repeat what they do; SCHEDULES=n runs n of them.

mod random_routes;
mod trouble;
mod wishes;

use std::collections::HashMap;
use std::time::Duration;

use backbone::log::lifecycle::is_finished;
use futures::future::join_all;
use futures::{StreamExt, stream};
use harness::{Deployment, Options, eventually, every_one, randomness};
use proto::operations::v1::{DeadLetterState, DiscardDeadLetterRequest, RedriveOutcome};
use proto::orders::v1::OrderStatus;
use proto::orders::v1::order_service_client::OrderServiceClient;
use proto::payments::v1::ResetBehaviourRequest;
use rand::rngs::StdRng;
use tokio::time::Instant;
use tonic::Code;

use self::random_routes::draw_routes;
use self::trouble::Trouble;
use self::wishes::{Placed, Wish};
use crate::books::{Problems, check_effects, check_history, check_money, check_stock, histories};

/// In which all orders are placed and all faults begin.
const TROUBLE: Duration = Duration::from_secs(15);
const READS_AT_ONCE: usize = 16;
const REPLICAS: usize = 2;
/// Redrives after which every cause has to be mended.
const REDRIVES_MAX: usize = 10;

/// A SKU of which not everybody gets some.
const SCARCE: &str = "scarce";
/// A SKU that there is none of.
const UNKNOWN: &str = "unobtainable";
/// A SKU whose record is damaged now and then.
const DAMAGED: &str = "gadget";
const STOCK: [(&str, u64); 3] = [("widget", 100_000), (DAMAGED, 100_000), (SCARCE, 40)];

#[tokio::test]
async fn orders_survive_random_schedules() {
    let schedules = std::env::var("SCHEDULES").map_or(1, |count| count.parse().unwrap());
    for _ in 0..schedules {
        Box::pin(survive(randomness())).await;
    }
}

async fn survive(mut random: StdRng) {
    let processors = [
        ("ACK_WAIT", "2s"),
        ("MAX_ATTEMPTS", "3"),
        ("PAYMENT_TIMEOUT", "300ms"),
        ("DRAIN_TIMEOUT", "1s"),
        ("RUST_LOG", "info,async_nats=warn,processor=debug"),
    ];
    let routes = draw_routes(&mut random);
    let steps = routes.running();
    eprintln!("{}", routes.file);
    let options = Options {
        stock: STOCK.to_vec(),
        routes: Some(routes.file.clone()),
        steps: steps.clone(),
        replicas: REPLICAS,
        payment_sandbox: true,
        processors: processors.map(|(name, value)| (name, value.to_owned())).to_vec(),
        ..Options::default()
    };
    let mut waybill = Deployment::start_with(options).await;
    for step in &steps {
        waybill.idle(step).await;
    }
    let behaviours = trouble::draw_behaviours(&mut random);
    trouble::behave(waybill.sandbox(), &behaviours).await;
    let wishes = wishes::draw_wishes(&mut random, &routes);
    let faults = trouble::draw_faults(&mut random, &steps);

    let (start, client) = (Instant::now(), OrderServiceClient::new(waybill.channel()));
    let clients = join_all(wishes.iter().map(|wish| wish.carry_out(client.clone(), start)));
    let (placed, ()) = tokio::join!(clients, Trouble::new(&mut waybill, behaviours).make(&faults, start));
    eprintln!("{:?}: the faults are over, and every order is answered", start.elapsed());
    waybill.sandbox().control().reset_behaviour(ResetBehaviourRequest {}).await.unwrap();

    let order_ids: Vec<_> = placed.iter().map(|placed| placed.order.order_id.clone()).collect();
    let redriven = redrive_until_finished(&waybill, &order_ids).await;
    come_to_rest(&mut waybill, &steps).await;
    let statuses = check(&mut waybill, &wishes, &placed, &order_ids).await;
    eprintln!("{:?}: {statuses:?}, {redriven} redriven", start.elapsed());
}

/// Waits until every order is finished, and redrives those that are parked. Tells how many were.
async fn redrive_until_finished(waybill: &Deployment, order_ids: &[String]) -> usize {
    waybill.ready().await;
    let mut redriven = 0;
    for _ in 0..REDRIVES_MAX {
        let ends = stream::iter(order_ids).map(|order_id| {
            eventually(order_id, async || {
                let order = waybill.get(order_id).await.ok()?;
                (is_finished(&order) || order.status() == OrderStatus::Failed).then_some(order)
            })
        });
        let ends: Vec<_> = ends.buffer_unordered(READS_AT_ONCE).collect().await;
        // A letter may be there although its order is finished.
        if ends.iter().all(is_finished) && waybill.open_letters().await.is_empty() {
            return redriven;
        }
        for (letter, outcome) in waybill.redrive(every_one()).await.unwrap() {
            eprintln!("{letter}: {outcome:?}");
            redriven += usize::from(outcome == RedriveOutcome::Redriven);
            if outcome == RedriveOutcome::NotRedrivable {
                discard_if_finished(waybill, letter).await;
            }
        }
    }
    let mut problems = Problems::default();
    for letter in waybill.listed_letters().await.dead_letters {
        let kept = waybill.letter(&letter.dead_letter_id).await;
        problems.add(&letter.order_id, format!("a letter that stays: {letter:?}, in the end {kept:?}"));
    }
    problems.none(waybill, &histories(waybill, order_ids).await);
    redriven
}

/// The order had ended, and what a step tried to take back in vain may have been taken back already: the books tell.
async fn discard_if_finished(waybill: &Deployment, dead_letter_id: String) {
    let letter = waybill.letter(&dead_letter_id).await.unwrap();
    if is_finished(&waybill.get(&letter.order_id).await.unwrap()) && letter.state() == DeadLetterState::Open {
        let discard = DiscardDeadLetterRequest { dead_letter_id, reason: "the books are checked".to_owned() };
        waybill.operations().discard_dead_letter(discard).await.unwrap();
    }
}

/// Nobody works on anything any more, not even one who had stood still while others did the work.
async fn come_to_rest(waybill: &mut Deployment, steps: &[&'static str]) {
    for step in steps {
        waybill.idle(step).await;
        for process in waybill.processors.get_mut(step).unwrap() {
            let status = process.stop().await;
            assert!(status.success(), "{step}: {status}");
        }
    }
    waybill.processors.clear();
    for step in steps {
        waybill.start_processor(step);
        waybill.idle(step).await;
    }
}

async fn check(
    waybill: &mut Deployment,
    wishes: &[Wish],
    placed: &[Placed],
    order_ids: &[String],
) -> HashMap<&'static str, usize> {
    let mut problems = Problems::default();
    let histories = histories(waybill, order_ids).await;
    let (mut orders, mut statuses) = (Vec::new(), HashMap::new());
    for (wish, Placed { order, cancelled }) in wishes.iter().zip(placed) {
        let (order_id, events) = (&order.order_id, &histories[&order.order_id]);
        if let Err(problem) = check_history(events) {
            problems.add(order_id, problem);
        }
        let end = eventually(order_id, async || waybill.get(order_id).await.ok()).await;
        if events.last().and_then(|event| event.order.as_ref()) != Some(&end) {
            problems.add(order_id, format!("the history does not end with {end:?}"));
        }
        let as_expected = match cancelled {
            Some(Ok(_)) => end.status() == OrderStatus::Cancelled,
            Some(Err(status)) => status.code() == Code::FailedPrecondition && wish.may_end(&end),
            None => wish.may_end(&end),
        };
        if end.route.as_ref() != Some(&wish.route) {
            problems.add(order_id, format!("asked for {:?}, took {:?}", wish.route, end.route));
        }
        if !as_expected || !is_finished(&end) {
            problems.add(order_id, format!("{cancelled:?} of {wish:?} became {end:?}"));
        }
        *statuses.entry(end.status().as_str_name()).or_default() += 1;
        orders.push(end);
    }
    let in_the_log = waybill.histories().await.len();
    if in_the_log != placed.len() {
        problems.add("", format!("{in_the_log} orders in the log"));
    }
    let accounts = waybill.sandbox().accounts();
    let totals = check_money(&orders, &accounts, &mut problems);
    check_stock(waybill, &STOCK, &totals, &mut problems).await;
    check_effects(waybill, &orders, &mut problems).await;
    problems.none(waybill, &histories);
    statuses
}
