use super::super::store::Versioned;
use super::*;
use proptest::prelude::*;

fn units(lines: &[(&str, u64)]) -> Units {
    lines.iter().map(|(sku, units)| ((*sku).to_owned(), *units)).collect()
}

fn records(values: &[(&str, &str)]) -> Records {
    let record = |value: &str| Versioned { value: value.into(), revision: Revision(7) };
    values.iter().map(|(key, value)| ((*key).to_owned(), record(value))).collect()
}

fn remembered(stock: &[(&str, u64)]) -> Ledger {
    let entry = |value| Entry { value, revision: Revision(3), changed: false };
    Ledger::remembered(stock.iter().map(|(sku, units)| ((*sku).to_owned(), entry(*units))).collect())
}

#[test]
fn an_order_gets_all_of_its_units_or_none() {
    let mut ledger = Ledger::read(records(&[("stock.a", "5"), ("stock.b", "1")]));
    let answer = ledger.decide("o1", &Wish::Reserve(units(&[("a", 2), ("b", 2), ("c", 1)]))).unwrap();
    assert_eq!(answer, Answer::OutOfStock("b: 2 wanted, 1 available; c: 1 wanted, 0 available".to_owned()));
    assert!(ledger.stock.values().all(|entry| !entry.changed));
    assert_eq!(ledger.decide("o2", &Wish::Reserve(units(&[("a", 5)]))), Ok(Answer::Held));
    assert_eq!(ledger.stock["a"], Entry { value: 0, revision: Revision(7), changed: true });
}

#[test]
fn orders_of_one_batch_share_what_is_left() {
    let mut ledger = Ledger::read(records(&[("stock.a", "3")]));
    let two = Wish::Reserve(units(&[("a", 2)]));
    assert_eq!(ledger.decide("o1", &two), Ok(Answer::Held));
    assert_eq!(ledger.decide("o1", &two), Ok(Answer::Held), "a repeat takes nothing");
    assert!(matches!(ledger.decide("o2", &two), Ok(Answer::OutOfStock(_))));
    assert_eq!(ledger.decide("o1", &Wish::Release), Ok(Answer::Released(units(&[("a", 2)]))));
    assert_eq!(ledger.decide("o2", &two), Ok(Answer::Held));
}

#[test]
fn nobody_is_refused_or_released_on_the_strength_of_a_memory() {
    let mut ledger = remembered(&[("a", 1)]);
    assert_eq!(ledger.decide("o1", &Wish::Reserve(units(&[("a", 2)]))), Err(Unsure));
    assert_eq!(ledger.decide("o1", &Wish::Reserve(units(&[("b", 1)]))), Err(Unsure));
    assert_eq!(ledger.decide("o1", &Wish::Release), Err(Unsure));
    assert_eq!(ledger.decide("o1", &Wish::Reserve(units(&[("a", 1)]))), Ok(Answer::Held));
}

#[test]
fn a_reservation_that_comes_after_its_release_is_refused() {
    let mut ledger = Ledger::read(records(&[("stock.a", "3")]));
    assert_eq!(ledger.decide("o1", &Wish::Release), Ok(Answer::Released(Units::new())));
    assert_eq!(ledger.decide("o1", &Wish::Reserve(units(&[("a", 1)]))), Ok(Answer::Released(Units::new())));
    assert_eq!(ledger.stock["a"].value, 3);
}

#[test]
fn a_damaged_record_stops_only_the_orders_that_need_it() {
    let mut ledger = Ledger::read(records(&[("stock.a", "many"), ("stock.b", "3"), ("reservation.o2", "?")]));
    assert!(matches!(
        ledger.decide("o1", &Wish::Reserve(units(&[("a", 1), ("b", 1)]))),
        Ok(Answer::Damaged(_))
    ));
    assert!(matches!(ledger.decide("o2", &Wish::Release), Ok(Answer::Damaged(_))));
    assert_eq!(ledger.decide("o3", &Wish::Reserve(units(&[("b", 3)]))), Ok(Answer::Held));
}

proptest! {
    /// Whatever is wished, in whatever order and however often: what is available and what is held add up to
    /// what there was.
    #[test]
    fn no_unit_is_lost_or_taken_twice(
        wishes in proptest::collection::vec((0..6u8, prop_oneof![
            proptest::collection::btree_map("[abc]", 1..5u64, 1..4).prop_map(Wish::Reserve),
            Just(Wish::Release),
        ]), 0..60),
    ) {
        let mut ledger = Ledger::read(records(&[("stock.a", "10"), ("stock.b", "7"), ("stock.c", "1")]));
        for (order, wish) in wishes {
            ledger.decide(&order.to_string(), &wish).unwrap();
            let mut sum: u64 = ledger.stock.values().map(|entry| entry.value).sum();
            for entry in ledger.reservations.values() {
                if let Some(Reservation::Held { units }) = &entry.value {
                    sum += units.values().sum::<u64>();
                }
            }
            prop_assert_eq!(sum, 18);
        }
    }
}
