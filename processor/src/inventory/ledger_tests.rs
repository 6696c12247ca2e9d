use super::*;
use proptest::prelude::*;
use stock::Versioned;

/// The order that has an id for now.
fn now() -> CreationTime {
    nth(2)
}

/// The n-th of the orders that an id names one after the other.
fn nth(n: i64) -> CreationTime {
    serde_json::from_str(&n.to_string()).unwrap()
}

fn units(lines: &[(&str, u64)]) -> Units {
    lines.iter().map(|(sku, units)| ((*sku).to_owned(), *units)).collect()
}

fn records(values: &[(&str, &str)]) -> Records {
    let record = |value: &str| Versioned { value: value.into(), revision: Revision(7) };
    values.iter().map(|(key, value)| ((*key).to_owned(), record(value))).collect()
}

fn remembered(stock: &[(&str, u64)]) -> Ledger {
    let entry = |value| Entry { value, revision: Revision(3), changed: false };
    Ledger::from_cache(stock.iter().map(|(sku, units)| ((*sku).to_owned(), entry(*units))).collect())
}

#[test]
fn an_order_gets_all_of_its_units_or_none() {
    let mut ledger = Ledger::read(&records(&[("stock.a", "5"), ("stock.b", "1")]));
    let answer = ledger
        .decide("o1", now(), &ReservationRequest::Reserve(units(&[("a", 2), ("b", 2), ("c", 1)])))
        .unwrap();
    assert_eq!(answer, Answer::OutOfStock("b: 2 wanted, 1 available; c: 1 wanted, 0 available".to_owned()));
    assert!(ledger.stock.values().all(|entry| !entry.changed));
    assert_eq!(
        ledger.decide("o2", now(), &ReservationRequest::Reserve(units(&[("a", 5)]))),
        Ok(Answer::Held)
    );
    assert_eq!(ledger.stock["a"], Entry { value: 0, revision: Revision(7), changed: true });
}

#[test]
fn orders_of_one_batch_share_what_is_left() {
    let mut ledger = Ledger::read(&records(&[("stock.a", "3")]));
    let two = ReservationRequest::Reserve(units(&[("a", 2)]));
    assert_eq!(ledger.decide("o1", now(), &two), Ok(Answer::Held));
    assert_eq!(ledger.decide("o1", now(), &two), Ok(Answer::Held), "a repeat takes nothing");
    assert!(matches!(ledger.decide("o2", now(), &two), Ok(Answer::OutOfStock(_))));
    assert_eq!(
        ledger.decide("o1", now(), &ReservationRequest::Release),
        Ok(Answer::Released(units(&[("a", 2)])))
    );
    assert_eq!(ledger.decide("o2", now(), &two), Ok(Answer::Held));
}

#[test]
fn cached_stock_never_rejects_or_releases() {
    let mut ledger = remembered(&[("a", 1)]);
    assert_eq!(ledger.decide("o1", now(), &ReservationRequest::Reserve(units(&[("a", 2)]))), Err(NeedsRead));
    assert_eq!(ledger.decide("o1", now(), &ReservationRequest::Reserve(units(&[("b", 1)]))), Err(NeedsRead));
    assert_eq!(ledger.decide("o1", now(), &ReservationRequest::Release), Err(NeedsRead));
    assert_eq!(
        ledger.decide("o1", now(), &ReservationRequest::Reserve(units(&[("a", 1)]))),
        Ok(Answer::Held)
    );
}

#[test]
fn a_renewed_record_is_rewritten_unchanged() {
    for state in ["held", "released"] {
        let kept = format!(r#"{{"incarnation":2,"state":"{state}","units":{{"a":2}}}}"#);
        let mut ledger = Ledger::read(&records(&[("stock.a", "5"), ("reservation.o1", &kept)]));
        let before = ledger.reservations["o1"].value.clone();
        assert_eq!(ledger.decide("o1", now(), &ReservationRequest::Keep), Ok(Answer::Kept));
        assert_eq!((&ledger.reservations["o1"].value, ledger.reservations["o1"].changed), (&before, true));
        assert!(!ledger.stock["a"].changed);
        // A record of an earlier order with the id is left to expire.
        assert_eq!(ledger.decide("o1", nth(3), &ReservationRequest::Keep), Ok(Answer::Kept));
        assert_eq!(ledger.reservations["o1"].value, before);
    }
    let mut ledger = Ledger::read(&records(&[("stock.a", "5")]));
    assert_eq!(ledger.decide("o1", now(), &ReservationRequest::Keep), Ok(Answer::Kept));
    assert!(ledger.reservations.is_empty(), "no record is created");
    assert_eq!(remembered(&[("a", 1)]).decide("o1", now(), &ReservationRequest::Keep), Err(NeedsRead));
}

#[test]
fn a_reservation_that_comes_after_its_release_is_refused() {
    let mut ledger = Ledger::read(&records(&[("stock.a", "3")]));
    assert_eq!(ledger.decide("o1", now(), &ReservationRequest::Release), Ok(Answer::Released(Units::new())));
    assert_eq!(
        ledger.decide("o1", now(), &ReservationRequest::Reserve(units(&[("a", 1)]))),
        Ok(Answer::Released(Units::new()))
    );
    assert_eq!(ledger.stock["a"].value, 3);
}

#[test]
fn a_damaged_record_stops_only_the_orders_that_need_it() {
    let mut ledger =
        Ledger::read(&records(&[("stock.a", "many"), ("stock.b", "3"), ("reservation.o2", "?")]));
    assert!(matches!(
        ledger.decide("o1", now(), &ReservationRequest::Reserve(units(&[("a", 1), ("b", 1)]))),
        Ok(Answer::Refused(_))
    ));
    assert!(matches!(ledger.decide("o2", now(), &ReservationRequest::Release), Ok(Answer::Refused(_))));
    assert_eq!(
        ledger.decide("o3", now(), &ReservationRequest::Reserve(units(&[("b", 3)]))),
        Ok(Answer::Held)
    );
}

/// The records of an order o1 with this creation time and 2 units.
fn left_by(creation_time: CreationTime, state: ReservationState) -> Records {
    let left = Reservation { creation_time, state, units: units(&[("a", 2)]) };
    records(&[("stock.a", "10"), ("reservation.o1", &serde_json::to_string(&left).unwrap())])
}

#[test]
fn a_record_of_an_earlier_order_is_overwritten_at_its_revision() {
    for state in [ReservationState::Held, ReservationState::Released] {
        let mut ledger = Ledger::read(&left_by(nth(1), state));
        let action = ReservationRequest::Reserve(units(&[("a", 5)]));
        assert_eq!(ledger.decide("o1", nth(2), &action), Ok(Answer::Held), "{state:?}");
        assert_eq!(ledger.decide("o1", nth(2), &action), Ok(Answer::Held), "a repeat takes nothing");
        assert_eq!(ledger.stock["a"].value, 5);
        let written = &ledger.reservations["o1"];
        assert_eq!((written.revision, written.changed), (Revision(7), true));
        assert_eq!(written.value.as_ref().unwrap().creation_time, nth(2));
        assert_eq!(
            ledger.decide("o1", nth(2), &ReservationRequest::Release),
            Ok(Answer::Released(units(&[("a", 5)])))
        );
        assert_eq!(ledger.stock["a"].value, 10);
    }
}

#[test]
fn a_release_gives_back_nothing_that_an_earlier_order_held() {
    let mut ledger = Ledger::read(&left_by(nth(1), ReservationState::Held));
    assert_eq!(ledger.decide("o1", nth(2), &ReservationRequest::Release), Ok(Answer::Released(Units::new())));
    let late = ledger.decide("o1", nth(2), &ReservationRequest::Reserve(units(&[("a", 5)])));
    assert_eq!(late, Ok(Answer::Released(Units::new())), "released before reserved");
    assert_eq!(ledger.stock["a"].value, 10);
}

#[test]
fn a_record_of_a_later_order_is_left_alone() {
    for state in [ReservationState::Held, ReservationState::Released] {
        let mut ledger = Ledger::read(&left_by(nth(2), state));
        for action in [ReservationRequest::Release, ReservationRequest::Reserve(units(&[("a", 5)]))] {
            assert!(matches!(ledger.decide("o1", nth(1), &action), Ok(Answer::Refused(_))), "{action:?}");
        }
        assert_eq!(ledger.stock["a"].value, 10);
        assert!(!ledger.reservations["o1"].changed);
    }
}

proptest! {
    /// Any requests, in any order and however often: the available units, the held ones, and those of orders whose id was
    /// reused add up to the initial stock.
    #[test]
    fn no_unit_is_lost_or_taken_twice(
        actions in proptest::collection::vec((0..6u8, 0..3i64, prop_oneof![
            proptest::collection::btree_map("[abc]", 1..5u64, 1..4).prop_map(ReservationRequest::Reserve),
            Just(ReservationRequest::Release),
        ]), 0..60),
    ) {
        let mut ledger = Ledger::read(&records(&[("stock.a", "10"), ("stock.b", "7"), ("stock.c", "1")]));
        let mut gone = 0;
        for (order, n, action) in actions {
            let order_id = order.to_string();
            let before = ledger.reservations.get(&order_id).and_then(|entry| entry.value.clone());
            ledger.decide(&order_id, nth(n), &action).unwrap();
            let after = ledger.reservations.get(&order_id).and_then(|entry| entry.value.as_ref());
            if let (Some(before), Some(after)) = (before, after) {
                prop_assert!(before.creation_time <= after.creation_time);
                if before.creation_time < after.creation_time {
                    gone += held(&before);
                }
            }
            let available: u64 = ledger.stock.values().map(|entry| entry.value).sum();
            let reservations = ledger.reservations.values().filter_map(|entry| entry.value.as_ref());
            prop_assert_eq!(available + reservations.map(held).sum::<u64>() + gone, 18);
        }
    }
}

fn held(reservation: &Reservation) -> u64 {
    match reservation.state {
        ReservationState::Held => reservation.units.values().sum(),
        ReservationState::Released => 0,
    }
}
