use super::*;
use async_nats::HeaderMap;
use bytes::Bytes;
use proptest::prelude::*;
use proptest::sample::select;
use prost_types::Timestamp;
use proto::orders::v1::{OrderCarried, OrderCreated, OrderFailed, OrderItem, Route, RouteStep};
use std::time::UNIX_EPOCH;

use crate::log::event::{Draft, Writer};
use crate::log::ids::{CustomerKey, OrderKey};
use crate::log::lifecycle;

const HOUR: Duration = Duration::from_secs(3600);

fn at(hours: u32) -> SystemTime {
    UNIX_EPOCH + 1_000_000 * HOUR + HOUR * hours
}

#[test]
fn events_are_due_at_half_of_the_retention_or_earlier_if_that_is_set() {
    let half = Schedule::of(10 * HOUR, None);
    assert!(!half.is_due(at(0), at(4)) && half.is_due(at(0), at(5)) && half.is_due(at(0), at(60)));
    let earlier = Schedule::of(10 * HOUR, Some(2 * HOUR));
    assert!(!earlier.is_due(at(0), at(1)) && earlier.is_due(at(0), at(2)));
    let no_later = Schedule::of(10 * HOUR, Some(9 * HOUR));
    assert_eq!(no_later, half);
    let never = Schedule::of(Duration::ZERO, Some(HOUR));
    assert!(!never.is_due(at(0), at(900_000)));
    // The broker's clock is ahead.
    assert!(!half.is_due(at(9), at(1)));
}

#[test]
fn a_longer_retention_applies_to_later_events_and_a_shorter_one_at_once() {
    let (short, long) = (Schedule::of(10 * HOUR, None), Schedule::of(100 * HOUR, None));
    let longer = short.changed(long, at(100));
    for (stored, due) in [(99, 104), (100, 105), (101, 151)] {
        assert!(!longer.is_due(at(stored), at(due - 1)), "{stored}");
        assert!(longer.is_due(at(stored), at(due)), "{stored}");
    }
    assert_eq!(longer.changed(long, at(101)), longer, "said again, it changes nothing");
    let never = short.changed(Schedule::of(Duration::ZERO, None), at(100));
    assert!(never.is_due(at(99), at(104)) && !never.is_due(at(101), at(900)));
    let shorter = long.changed(short, at(100));
    assert!(shorter.is_due(at(95), at(100)));
    // After a second increase, events stored before the first are still due at the first age.
    let twice = longer.changed(Schedule::of(Duration::ZERO, None), at(101));
    assert!(twice.is_due(at(99), at(104)));
}

/// One thing that is tried on one of a few orders.
fn tried() -> impl Strategy<Value = (usize, EventKind)> {
    (0usize..4, select(&EventKind::ALL[..]))
}

fn detail(kind: EventKind, created: Revision, since: Revision) -> Detail {
    match kind {
        EventKind::Created => Detail::Created(OrderCreated::default()),
        EventKind::Reserved => Detail::Reserved(Default::default()),
        EventKind::Paid => Detail::Paid(Default::default()),
        EventKind::Fulfilled => Detail::Fulfilled(Default::default()),
        EventKind::Rejected => Detail::Rejected(Default::default()),
        EventKind::Cancelled => Detail::Cancelled(Default::default()),
        EventKind::Released => Detail::Released(Default::default()),
        EventKind::Refunded => Detail::Refunded(Default::default()),
        EventKind::Failed => {
            Detail::Failed(OrderFailed { dead_letter_id: "step-1".into(), ..OrderFailed::default() })
        }
        EventKind::Redriven => Detail::Redriven(Default::default()),
        EventKind::Carried => {
            let (created_revision, since_revision) = (created.0, since.0);
            Detail::Carried(OrderCarried { created_revision, since_revision })
        }
        EventKind::Completed => Detail::Completed(Default::default()),
        EventKind::Compensated => Detail::Compensated(Default::default()),
        EventKind::Deferred => Detail::Deferred(Default::default()),
        EventKind::Resumed => Detail::Resumed(Default::default()),
    }
}

fn route() -> Route {
    let step = |name: &str| RouteStep { name: name.into(), compensates: true, ..RouteStep::default() };
    Route { name: "usual".into(), steps: ["a", "b", "c"].map(step).into() }
}

/// An order as it stands in a log that a test makes up.
struct Life {
    id: OrderId,
    order: Order,
    created: Revision,
    /// Its latest event by which it can be due, and its latest of all.
    due: Revision,
    last: Revision,
    carried: Option<Revision>,
}

/// A log of orders to which all happened of what was tried that may.
fn log(tried: Vec<(usize, EventKind)>) -> (Vec<Stored>, Vec<Life>) {
    let now = Timestamp { seconds: 1_000, nanos: 0 };
    let (mut log, mut lives) = (Vec::new(), Vec::<Life>::new());
    let mut store = |id: &OrderId, mut order: Order, detail: Detail| {
        let writer = Writer { source: "test", step: "" };
        let draft = Draft::new(id, Revision(1), &mut order, &Bytes::new(), detail, writer);
        let sequence = Revision(log.len() as u64 + 1);
        let (subject, payload) = (draft.subject.clone().into(), draft.payload.clone());
        log.push(Stored { subject, sequence, headers: HeaderMap::new(), payload });
        sequence
    };
    for (number, kind) in tried {
        if number >= lives.len() {
            let id = OrderId { customer: CustomerKey::of("", "c"), order: OrderKey::unique() };
            let unit_price = Some(proto::orders::v1::Money { currency_code: "EUR".into(), minor_units: 1 });
            let items =
                vec![OrderItem { sku: "widget".into(), quantity: 1, unit_price, ..Default::default() }];
            let created = OrderCreated { order_id: id.to_string(), items, ..OrderCreated::default() };
            let order = lifecycle::create(&created, route(), now).unwrap();
            let due = store(&id, order.clone(), Detail::Created(created));
            lives.push(Life { id, order, created: due, due, last: due, carried: None });
            continue;
        }
        let life = &mut lives[number];
        let detail = detail(kind, life.created, life.last);
        let step = life.order.current_step.clone();
        let Ok(after) = lifecycle::apply(&life.order, &step, &detail, now) else { continue };
        life.order = after.clone();
        life.last = store(&life.id, after, detail);
        life.carried = (kind == EventKind::Carried).then_some(life.last);
        if kind == EventKind::Carried {
            life.due = life.last;
        }
    }
    (log, lives)
}

proptest! {
    /// However the log is divided into pieces, each unfinished order is found by its latest event that can be due,
    /// under its first revision, and is due to be carried. No order that ended before the end of its piece is examined.
    #[test]
    fn every_unfinished_order_is_found_and_few_others(
        tried in proptest::collection::vec(tried(), 0..200),
        piece in 1usize..50,
    ) {
        let (log, lives) = log(tried);
        let mut found = Vec::new();
        for piece in log.chunks(piece) {
            let mut window = Window::default();
            piece.iter().for_each(|message| window.observe(message));
            let candidates = window.candidates();
            prop_assert!(candidates.is_sorted_by_key(|candidate| candidate.due));
            let end = piece.last().unwrap().sequence;
            for candidate in &candidates {
                let life = lives.iter().find(|life| life.id == candidate.id).unwrap();
                prop_assert_eq!(life.created, candidate.created);
                prop_assert!(!is_finished(&life.order) || life.last > end, "an end that was seen");
            }
            found.extend(candidates);
        }
        for life in &lives {
            let by_latest = found.iter().find(|candidate| candidate.id == life.id && candidate.due == life.due);
            if !is_finished(&life.order) {
                let candidate = by_latest.expect("an unfinished order that was not found");
                prop_assert!(must_be_carried(&life.order, life.carried, candidate.due));
            }
            for candidate in found.iter().filter(|candidate| candidate.id == life.id) {
                let has_to = must_be_carried(&life.order, life.carried, candidate.due);
                prop_assert!(!has_to || !is_finished(&life.order));
                // An order that has been carried since is not carried again for an older event.
                prop_assert!(!has_to || life.carried.is_none_or(|carried| carried == candidate.due));
            }
        }
    }
}

#[test]
fn large_orders_are_read_in_smaller_groups() {
    let candidate = |bytes| Candidate {
        id: OrderId { customer: CustomerKey::of("", "c"), order: OrderKey::unique() },
        created: Revision(1),
        due: Revision(1),
        bytes,
    };
    let sizes = |bytes: &[usize]| -> Vec<usize> {
        let candidates: Vec<_> = bytes.iter().copied().map(candidate).collect();
        groups(&candidates, 3, 100).map(<[Candidate]>::len).collect()
    };
    assert_eq!(sizes(&[]), [0; 0]);
    assert_eq!(sizes(&[1; 7]), [3, 3, 1]);
    assert_eq!(sizes(&[50, 50, 1, 500, 99, 1, 1]), [2, 2, 2, 1]);
}
