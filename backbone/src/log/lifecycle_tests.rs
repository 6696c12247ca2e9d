use super::*;
use proptest::prelude::*;
use proptest::sample::select;
use proto::orders::v1::{
    OrderCancelled, OrderCarried, OrderFailed, OrderFulfilled, OrderRedriven, OrderRejected, PaymentCaptured,
    PaymentRefunded, StockReleased, StockReserved,
};

const NOW: Timestamp = Timestamp { seconds: 1_000, nanos: 0 };

fn detail(kind: EventKind) -> Detail {
    match kind {
        EventKind::Created => Detail::Created(created()),
        EventKind::Reserved => Detail::Reserved(StockReserved::default()),
        EventKind::Paid => Detail::Paid(PaymentCaptured::default()),
        EventKind::Fulfilled => Detail::Fulfilled(OrderFulfilled::default()),
        EventKind::Rejected => Detail::Rejected(OrderRejected { reason: "NO".into(), ..Default::default() }),
        EventKind::Cancelled => Detail::Cancelled(OrderCancelled::default()),
        EventKind::Released => Detail::Released(StockReleased::default()),
        EventKind::Refunded => Detail::Refunded(PaymentRefunded::default()),
        EventKind::Failed => Detail::Failed(OrderFailed {
            reason: "BROKEN".into(),
            dead_letter_id: "step-7".into(),
            ..Default::default()
        }),
        EventKind::Redriven => Detail::Redriven(OrderRedriven::default()),
        EventKind::Carried => Detail::Carried(OrderCarried::default()),
    }
}

fn item(quantity: i32, minor_units: i64) -> OrderItem {
    let unit_price = Some(Money { currency_code: "EUR".into(), minor_units });
    OrderItem { sku: "widget".into(), quantity, unit_price }
}

fn created() -> OrderCreated {
    OrderCreated {
        order_id: "o".into(),
        customer_id: "c".into(),
        items: vec![item(2, 350)],
        ..Default::default()
    }
}

/// The order after `kinds`, all of which must be allowed.
fn after(kinds: &[EventKind]) -> Order {
    kinds
        .iter()
        .fold(create(&created(), NOW).unwrap(), |order, kind| apply(&order, &detail(*kind), NOW).unwrap())
}

/// What may happen to the order. That it is carried has rules of its own.
fn allowed(order: &Order) -> Vec<&'static str> {
    EventKind::ALL
        .into_iter()
        .filter(|kind| *kind != EventKind::Carried)
        .filter(|kind| apply(order, &detail(*kind), NOW).is_ok())
        .map(EventKind::as_str)
        .collect()
}

#[test]
fn the_whole_table() {
    use EventKind::{Cancelled, Failed, Fulfilled, Paid, Redriven, Refunded, Rejected, Released, Reserved};
    use OrderStatus as S;
    use Undo::{Refund, Release};
    type Row = (&'static [EventKind], S, &'static [Undo], &'static [&'static str]);
    let rows: &[Row] = &[
        (&[], S::Accepted, &[], &["reserved", "rejected", "cancelled", "failed"]),
        (&[Reserved], S::Reserved, &[], &["paid", "rejected", "cancelled", "failed"]),
        (&[Reserved, Paid], S::Paid, &[], &["fulfilled", "cancelled", "failed"]),
        (&[Reserved, Paid, Fulfilled], S::Fulfilled, &[], &[]),
        (&[Rejected], S::Rejected, &[], &[]),
        (&[Reserved, Rejected], S::Rejected, &[Release], &["released", "failed"]),
        (&[Reserved, Rejected, Released], S::Rejected, &[], &[]),
        (&[Cancelled], S::Cancelled, &[Release], &["released", "failed"]),
        (&[Cancelled, Released], S::Cancelled, &[], &[]),
        (&[Reserved, Cancelled], S::Cancelled, &[Release, Refund], &["released", "refunded", "failed"]),
        (&[Reserved, Paid, Cancelled, Refunded], S::Cancelled, &[Release], &["released", "failed"]),
        (&[Reserved, Paid, Cancelled, Refunded, Released], S::Cancelled, &[], &[]),
        (&[Failed], S::Failed, &[], &["cancelled", "redriven"]),
        (&[Failed, Redriven], S::Accepted, &[], &["reserved", "rejected", "cancelled", "failed"]),
        (
            &[Reserved, Failed, Cancelled],
            S::Cancelled,
            &[Release, Refund],
            &["released", "refunded", "failed"],
        ),
        (&[Reserved, Rejected, Failed], S::Failed, &[Release], &["released", "redriven"]),
        (&[Reserved, Rejected, Failed, Redriven], S::Rejected, &[Release], &["released", "failed"]),
    ];
    for (path, status, owes, next) in rows {
        let order = after(path);
        assert_eq!(order.status(), *status, "after {path:?}");
        assert_eq!(order.undo_pending().collect::<Vec<_>>(), *owes, "after {path:?}");
        assert_eq!(allowed(&order), *next, "after {path:?}");
        assert_eq!(is_finished(&order), next.is_empty(), "after {path:?}");
    }
}

#[test]
fn the_table_is_a_chain_from_accepted_to_fulfilled() {
    let mut status = create(&created(), NOW).unwrap().status();
    for row in WAY {
        assert_eq!(row.status, status, "{:?}", row.event);
        status = row.next;
    }
    assert_eq!(status, OrderStatus::Fulfilled);
}

#[test]
fn a_step_consumes_exactly_its_events() {
    use EventKind::{Cancelled, Carried, Created, Fulfilled, Paid, Redriven, Rejected, Reserved};
    assert_eq!(wakes(Reserved, Some(Undo::Release)), [Created, Rejected, Cancelled, Redriven, Carried]);
    assert_eq!(wakes(Paid, Some(Undo::Refund)), [Reserved, Cancelled, Redriven, Carried]);
    assert_eq!(wakes(Fulfilled, None), [Paid, Redriven, Carried]);
}

#[test]
fn a_parked_order_that_ended_keeps_its_reason() {
    use EventKind::{Failed, Redriven, Rejected, Reserved};
    assert_eq!(after(&[Reserved, Failed]).reason, "BROKEN");
    assert_eq!(after(&[Reserved, Failed, Redriven]).reason, "");
    assert_eq!(after(&[Reserved, Rejected, Failed]).reason, "NO");
    assert_eq!(after(&[Reserved, Rejected, Failed, Redriven]).reason, "NO");
}

#[test]
fn a_total_is_the_sum_of_its_lines_or_an_error() {
    assert_eq!(total(&[item(2, 350), item(1, 1)]).unwrap().minor_units, 701);
    assert_eq!(total(&[]), Err(TotalError::Unpriced));
    assert_eq!(total(&[item(2, i64::MAX)]), Err(TotalError::Overflow));
    assert_eq!(total(&[item(1, i64::MAX), item(1, 1)]), Err(TotalError::Overflow));
    let mut other = item(1, 1);
    other.unit_price.as_mut().unwrap().currency_code = "USD".into();
    assert_eq!(total(&[item(1, 1), other]), Err(TotalError::MixedCurrencies));
}

proptest! {
    /// Whatever is tried in whatever order: what was bought, for how much, by whom never changes; time never
    /// goes back; a finished order stays as it is; only FAILED orders are parked.
    #[test]
    fn no_history_breaks_an_order(
        tried in proptest::collection::vec((select(&EventKind::ALL[..]), 0i64..2_000), 0..40),
    ) {
        let mut order = create(&created(), NOW).unwrap();
        for (kind, seconds) in tried {
            let now = Timestamp { seconds, nanos: 0 };
            match apply(&order, &detail(kind), now) {
                Err(Refused::Transition { event, status }) => {
                    prop_assert!(kind != EventKind::Carried || is_finished(&order));
                    prop_assert_eq!((event, status), (kind, order.status()));
                }
                Err(Refused::Total(_)) => prop_assert!(false, "a total is computed at creation only"),
                Ok(next) => {
                    prop_assert!(!is_finished(&order));
                    prop_assert_eq!(&next.items, &order.items);
                    prop_assert_eq!(&next.total, &order.total);
                    prop_assert_eq!(&next.order_id, &order.order_id);
                    prop_assert!(next.update_time.unwrap().seconds >= order.update_time.unwrap().seconds);
                    prop_assert_eq!(next.status() == OrderStatus::Failed, next.parked_status() != OrderStatus::Unspecified);
                    prop_assert_eq!(next.status() == OrderStatus::Failed, !next.dead_letter_id.is_empty());
                    for row in WAY {
                        prop_assert!(!waits_for(&next, row.event) || wakes(row.event, None).contains(&kind));
                    }
                    for undo in [Undo::Release, Undo::Refund] {
                        // A completed compensation is no news for the step that owes the other one.
                        let news = owes(&next, undo) && !owes(&order, undo);
                        prop_assert!(!news || wakes(kind, Some(undo)).contains(&kind));
                    }
                    if kind == EventKind::Carried {
                        prop_assert_eq!(&next, &order);
                    }
                    order = next;
                }
            }
        }
    }

    #[test]
    fn a_total_never_wraps(lines in proptest::collection::vec((1..1_000_000i32, 0..i64::MAX), 1..100)) {
        let items: Vec<_> = lines.iter().map(|(quantity, price)| item(*quantity, *price)).collect();
        let exact: i128 = lines.iter().map(|(quantity, price)| i128::from(*quantity) * i128::from(*price)).sum();
        match total(&items) {
            Ok(sum) => prop_assert_eq!(i128::from(sum.minor_units), exact),
            Err(error) => prop_assert!(error == TotalError::Overflow && exact > i128::from(i64::MAX)),
        }
    }
}

#[test]
fn an_order_parked_without_a_status_is_not_redriven_to_none() {
    let parked = Order { status: OrderStatus::Failed.into(), ..Order::default() };
    assert_eq!(allowed(&parked), [] as [&str; 0]);
}
