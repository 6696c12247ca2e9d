use super::*;
use proptest::prelude::*;
use proptest::sample::select;
use proto::orders::v1::{
    OrderCancelled, OrderCarried, OrderFailed, OrderFulfilled, OrderRedriven, OrderRejected, PaymentCaptured,
    PaymentRefunded, PostalAddress, Shipment, StepCompensated, StepCompleted, StepDeferred, StepResumed,
    StockReleased, StockReserved,
};

const NOW: Timestamp = Timestamp { seconds: 1_000, nanos: 0 };
const LATER: Timestamp = Timestamp { seconds: 5_000, nanos: 0 };

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
        EventKind::Completed => Detail::Completed(StepCompleted::default()),
        EventKind::Compensated => Detail::Compensated(StepCompensated::default()),
        EventKind::Deferred => Detail::Deferred(StepDeferred {
            until: Some(LATER),
            reason: "WAITS".into(),
            ..Default::default()
        }),
        EventKind::Resumed => Detail::Resumed(StepResumed::default()),
    }
}

fn item(quantity: i32, minor_units: i64) -> OrderItem {
    let unit_price = Some(Money { currency_code: "EUR".into(), minor_units });
    OrderItem { sku: "widget".into(), quantity, unit_price, ..Default::default() }
}

fn created() -> OrderCreated {
    OrderCreated {
        order_id: "o".into(),
        customer_id: "c".into(),
        items: vec![item(2, 350)],
        ..Default::default()
    }
}

fn step(name: &str, compensates: bool, leads_to: OrderStatus) -> RouteStep {
    RouteStep { name: name.to_owned(), compensates, leads_to: leads_to.into() }
}

/// Four steps, one of which changes no status.
fn route() -> Route {
    let steps = vec![
        step("stock", true, OrderStatus::Reserved),
        step("fraud", false, OrderStatus::Unspecified),
        step("money", true, OrderStatus::Paid),
        step("ship", false, OrderStatus::Fulfilled),
    ];
    Route { name: "usual".to_owned(), steps }
}

#[test]
fn an_order_keeps_all_that_its_client_said_for_life() {
    let text = str::to_owned;
    let created = OrderCreated {
        metadata: [(text("channel"), text("web"))].into(),
        shipping_address: Some(PostalAddress { region_code: text("CH"), ..Default::default() }),
        payment_method: text("tok_1"),
        note: text("ring twice"),
        reference: text("PO-17"),
        tenant: text("shop-1"),
        ..created()
    };
    let mut order = create(&created, route(), NOW).unwrap();
    for (step, kind) in [
        ("stock", EventKind::Reserved),
        ("fraud", EventKind::Completed),
        ("", EventKind::Cancelled),
        ("stock", EventKind::Released),
    ] {
        assert_eq!(
            (&order.metadata, &order.shipping_address),
            (&created.metadata, &created.shipping_address)
        );
        let texts = [&order.payment_method, &order.note, &order.reference, &order.tenant];
        assert_eq!(texts, ["tok_1", "ring twice", "PO-17", "shop-1"]);
        order = apply(&order, step, &detail(kind), NOW).unwrap();
    }
}

fn new() -> Order {
    create(&created(), route(), NOW).unwrap()
}

/// The order after these events, each written by a step or by none, all of which must be allowed.
fn after(events: &[(&str, EventKind)]) -> Order {
    events.iter().fold(new(), |order, (step, kind)| apply(&order, step, &detail(*kind), NOW).unwrap())
}

/// What may happen to the order, and by which step. That it is carried has rules of its own.
fn allowed(order: &Order) -> Vec<String> {
    let mut allowed = Vec::new();
    for step in ["", "stock", "fraud", "money", "ship", "stranger"] {
        for kind in EventKind::ALL.into_iter().filter(|kind| *kind != EventKind::Carried) {
            // One of the kinds stands for all that complete, and for all that compensate.
            let stands_for = |kinds: &[EventKind]| kinds[1..].contains(&kind);
            if !stands_for(&COMPLETING)
                && !stands_for(&COMPENSATING)
                && apply(order, step, &detail(kind), NOW).is_ok()
            {
                allowed.push(format!("{step} {}", kind.as_str()).trim_start().to_owned());
            }
        }
    }
    // Anyone may park, cancel, redrive and resume.
    for anyone in ["failed", "cancelled", "redriven", "resumed"] {
        let by_anyone = allowed.iter().filter(|event| event.ends_with(anyone)).count();
        assert!(by_anyone == 0 || by_anyone == 6, "{allowed:?}");
        allowed.retain(|event| event == anyone || !event.ends_with(anyone));
    }
    allowed
}

const COMPLETING: [EventKind; 4] =
    [EventKind::Completed, EventKind::Reserved, EventKind::Paid, EventKind::Fulfilled];
const COMPENSATING: [EventKind; 3] = [EventKind::Compensated, EventKind::Released, EventKind::Refunded];

#[test]
fn the_whole_table() {
    use EventKind::{Cancelled, Compensated, Completed, Deferred, Failed, Redriven, Rejected};
    use OrderStatus as S;
    const STOCK: (&str, EventKind) = ("stock", Completed);
    const FRAUD: (&str, EventKind) = ("fraud", Completed);
    const MONEY: (&str, EventKind) = ("money", Completed);
    const SHIP: (&str, EventKind) = ("ship", Completed);
    const CANCEL: (&str, EventKind) = ("", Cancelled);
    const REDRIVE: (&str, EventKind) = ("", Redriven);
    type Row = (
        &'static [(&'static str, EventKind)],
        S,
        &'static str,
        &'static [&'static str],
        &'static [&'static str],
    );
    let rows: &[Row] = &[
        (
            &[],
            S::Accepted,
            "stock",
            &[],
            &["cancelled", "failed", "stock rejected", "stock completed", "stock deferred"],
        ),
        (
            &[STOCK],
            S::Reserved,
            "fraud",
            &[],
            &["cancelled", "failed", "fraud rejected", "fraud completed", "fraud deferred"],
        ),
        (
            &[STOCK, FRAUD],
            S::Reserved,
            "money",
            &[],
            &["cancelled", "failed", "money rejected", "money completed", "money deferred"],
        ),
        (
            &[STOCK, FRAUD, MONEY],
            S::Paid,
            "ship",
            &[],
            &["cancelled", "failed", "ship rejected", "ship completed", "ship deferred"],
        ),
        (
            &[STOCK, ("fraud", Deferred)],
            S::Reserved,
            "fraud",
            &[],
            &["cancelled", "failed", "resumed", "fraud rejected", "fraud completed", "fraud deferred"],
        ),
        (&[STOCK, FRAUD, MONEY, SHIP], S::Fulfilled, "end", &[], &[]),
        (&[("stock", Rejected)], S::Rejected, "end", &[], &[]),
        (&[STOCK, ("fraud", Rejected)], S::Rejected, "stock", &["stock"], &["failed", "stock compensated"]),
        (&[STOCK, ("fraud", Rejected), ("stock", Compensated)], S::Rejected, "end", &[], &[]),
        (
            &[STOCK, FRAUD, MONEY, ("ship", Rejected)],
            S::Rejected,
            "stock",
            &["stock", "money"],
            &["failed", "stock compensated"],
        ),
        (&[CANCEL], S::Cancelled, "stock", &["stock"], &["failed", "stock compensated"]),
        (&[STOCK, CANCEL], S::Cancelled, "stock", &["stock"], &["failed", "stock compensated"]),
        (
            &[STOCK, FRAUD, CANCEL],
            S::Cancelled,
            "stock",
            &["stock", "money"],
            &["failed", "stock compensated"],
        ),
        (
            &[STOCK, FRAUD, CANCEL, ("stock", Compensated)],
            S::Cancelled,
            "money",
            &["money"],
            &["failed", "money compensated"],
        ),
        (
            &[STOCK, FRAUD, MONEY, CANCEL, ("stock", Compensated), ("money", Compensated)],
            S::Cancelled,
            "end",
            &[],
            &[],
        ),
        (&[STOCK, ("fraud", Failed)], S::Failed, "end", &[], &["cancelled", "redriven"]),
        (
            &[STOCK, ("fraud", Failed), REDRIVE],
            S::Reserved,
            "fraud",
            &[],
            &["cancelled", "failed", "fraud rejected", "fraud completed", "fraud deferred"],
        ),
        (
            &[STOCK, ("fraud", Failed), CANCEL],
            S::Cancelled,
            "stock",
            &["stock"],
            &["failed", "stock compensated"],
        ),
        (&[CANCEL, ("stock", Failed)], S::Failed, "end", &["stock"], &["redriven", "stock compensated"]),
        (&[CANCEL, ("stock", Failed), ("stock", Compensated)], S::Failed, "end", &[], &["redriven"]),
        (&[CANCEL, ("stock", Failed), ("stock", Compensated), REDRIVE], S::Cancelled, "end", &[], &[]),
        (
            &[CANCEL, ("stock", Failed), REDRIVE],
            S::Cancelled,
            "stock",
            &["stock"],
            &["failed", "stock compensated"],
        ),
    ];
    for (path, status, next_step, owes, may) in rows {
        let order = after(path);
        assert_eq!(order.status(), *status, "after {path:?}");
        assert_eq!(next(&order), *next_step, "after {path:?}");
        assert_eq!(order.compensation_pending, *owes, "after {path:?}");
        assert_eq!(allowed(&order), *may, "after {path:?}");
        assert_eq!(is_finished(&order), may.is_empty(), "after {path:?}");
    }
}

#[test]
fn every_kind_of_completion_and_compensation_counts() {
    for kind in COMPLETING {
        assert_eq!(after(&[("stock", kind)]).current_step, "fraud", "{kind:?}");
    }
    for kind in COMPENSATING {
        let order = after(&[("stock", EventKind::Reserved), ("fraud", EventKind::Rejected), ("stock", kind)]);
        assert!(is_finished(&order), "{kind:?}");
    }
}

#[test]
fn a_called_off_order_remembers_which_steps_completed() {
    let order = after(&[
        ("stock", EventKind::Completed),
        ("fraud", EventKind::Completed),
        ("", EventKind::Cancelled),
    ]);
    assert!(has_completed(&order, "stock") && has_completed(&order, "fraud"));
    assert!(!has_completed(&order, "money"), "it may be at work");
    assert!(
        compensates(&order, "money") && !compensates(&order, "fraud") && !compensates(&order, "stranger")
    );
}

#[test]
fn a_route_without_steps_begins_no_order() {
    assert_eq!(create(&created(), Route::default(), NOW), Err(Refused::NoSteps));
}

#[test]
fn a_parked_order_that_ended_keeps_its_reason() {
    use EventKind::{Failed, Redriven, Rejected, Reserved};
    let (reserved, rejected, failed) = (("stock", Reserved), ("fraud", Rejected), ("stock", Failed));
    assert_eq!(after(&[reserved, failed]).reason, "BROKEN");
    assert_eq!(after(&[reserved, failed, ("", Redriven)]).reason, "");
    assert_eq!(after(&[reserved, rejected, failed]).reason, "NO");
    assert_eq!(after(&[reserved, rejected, failed, ("", Redriven)]).reason, "NO");
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

/// A route of 1 to 16 steps. The names are letters.
fn any_route() -> impl Strategy<Value = Route> {
    let leads_to = select(&[OrderStatus::Unspecified, OrderStatus::Reserved, OrderStatus::Paid][..]);
    proptest::collection::vec((any::<bool>(), leads_to), 1..=16).prop_map(|steps| {
        let named = ('a'..).zip(steps);
        let steps =
            named.map(|(name, (compensates, leads_to))| step(&name.to_string(), compensates, leads_to));
        Route { name: "any".to_owned(), steps: steps.collect() }
    })
}

proptest! {
    /// Whatever is tried in whatever order by whomever on whatever route: what was bought, for how much, by whom and on
    /// which route never changes; time never goes back; a finished order stays as it is; only FAILED orders are parked;
    /// each step of the route completes at most once and in its turn, and compensates at most once; whoever acts next
    /// is told by the event.
    #[test]
    fn no_history_breaks_an_order(
        route in any_route(),
        tried in proptest::collection::vec((0usize..17, select(&EventKind::ALL[..]), 0i64..2_000), 0..200),
    ) {
        let mut order = create(&created(), route.clone(), NOW).unwrap();
        let (mut done, mut undone) = (Vec::new(), Vec::new());
        for (number, kind, seconds) in tried {
            let now = Timestamp { seconds, nanos: 0 };
            // Mostly the step whose turn it is; else any, or none.
            let step = if number == 16 { order.current_step.clone() } else {
                route.steps.get(number).map(|step| step.name.clone()).unwrap_or_default()
            };
            match apply(&order, &step, &detail(kind), now) {
                Err(Refused::Transition { event, status, turn }) => {
                    prop_assert!(kind != EventKind::Carried || is_finished(&order));
                    prop_assert_eq!((event, status, &turn), (kind, order.status(), &order.current_step));
                }
                Err(error) => prop_assert!(false, "{error}"),
                Ok(after) => {
                    prop_assert!(!is_finished(&order));
                    prop_assert_eq!(&after.items, &order.items);
                    prop_assert_eq!(&after.total, &order.total);
                    prop_assert_eq!(&after.order_id, &order.order_id);
                    prop_assert_eq!(&after.route, &order.route);
                    prop_assert!(after.update_time.unwrap().seconds >= order.update_time.unwrap().seconds);
                    let is_failed = after.status() == OrderStatus::Failed;
                    prop_assert_eq!(is_failed, after.parked_status() != OrderStatus::Unspecified);
                    prop_assert_eq!(is_failed, !after.dead_letter_id.is_empty());
                    prop_assert_eq!(is_failed || is_finished(&after), next(&after) == END);
                    if COMPLETING.contains(&kind) {
                        prop_assert_eq!(&route.steps[done.len()].name, &step);
                        done.push(step.clone());
                    }
                    if COMPENSATING.contains(&kind) {
                        prop_assert!(!undone.contains(&step) && compensates(&order, &step));
                        undone.push(step.clone());
                    }
                    if after.status() == OrderStatus::Fulfilled {
                        prop_assert_eq!(done.len(), route.steps.len());
                    }
                    if is_finished(&after) && is_called_off(&after) {
                        for step in route.steps.iter().filter(|step| step.compensates && done.contains(&step.name)) {
                            prop_assert!(undone.contains(&step.name), "{} was not taken back", step.name);
                        }
                    }
                    if kind == EventKind::Carried {
                        prop_assert_eq!(&after, &order);
                    }
                    order = after;
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

#[test]
fn a_deferral_lasts_until_any_other_event() {
    use EventKind::{Cancelled, Carried, Completed, Deferred, Failed, Rejected, Resumed};
    let deferred = after(&[("stock", Deferred)]);
    let deferral = Deferral { until: Some(LATER), reason: "WAITS".into(), message: String::new() };
    assert_eq!(deferred, Order { deferral: Some(deferral.clone()), ..new() });
    assert_eq!(next(&deferred), "stock", "it is still the step's turn");
    assert_eq!(apply(&deferred, "", &detail(Resumed), NOW).unwrap(), new());
    assert_eq!(apply(&deferred, "stock", &detail(Deferred), NOW).unwrap(), deferred);
    assert_eq!(apply(&deferred, "", &detail(Carried), NOW).unwrap().deferral, Some(deferral));
    for (step, kind) in [("stock", Completed), ("stock", Rejected), ("", Cancelled), ("stock", Failed)] {
        assert_eq!(apply(&deferred, step, &detail(kind), NOW).unwrap().deferral, None, "{kind:?}");
    }
}

#[test]
fn attributes_name_their_step_and_describe_the_shipment() {
    let completed = |attributes: &[(&str, &str)]| {
        let attributes = attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        StepCompleted { attributes: attributes.collect() }
    };
    let said = |attributes| Detail::Completed(completed(attributes));
    let order = apply(&new(), "stock", &said(&[("shelf", "A7"), ("carrier", "")]), NOW).unwrap();
    let order = apply(&order, "fraud", &said(&[("score", "3")]), NOW).unwrap();
    let order = apply(&order, "money", &said(&[]), NOW).unwrap();
    let order = apply(&order, "ship", &said(&[("carrier", "DHL"), ("tracking_number", "1Z")]), NOW).unwrap();
    let attributes: Vec<_> = order.attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(
        attributes,
        ["fraud.score=3", "ship.carrier=DHL", "ship.tracking_number=1Z", "stock.carrier=", "stock.shelf=A7"]
    );
    let first = [("carrier", ""), ("shelf", "A7")];
    assert!(!contradicts(&order, "stock", &completed(&first)));
    assert!(contradicts(&order, "stock", &completed(&first[1..])));
    assert!(contradicts(&order, "stock", &completed(&[("carrier", ""), ("shelf", "A8")])));
    assert!(!contradicts(&new(), "stock", &completed(&first)), "it has not completed");
    let shipment = Shipment { carrier: "DHL".into(), tracking_number: "1Z".into(), ..Default::default() };
    assert_eq!(order.shipment, Some(shipment));
}
