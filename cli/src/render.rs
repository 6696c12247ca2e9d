//! Orders and their events as lines of text.

use std::time::{Duration, SystemTime};

use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Money, Order, OrderItem, OrderStatus, PostalAddress};

use crate::console::plain;
use crate::watch::Update;

/// An order, one field a line. Optional fields are left out if they are empty.
pub(crate) fn order(order: &Order) -> String {
    let mut lines = vec![
        format!("order     {}", plain(&order.order_id)),
        format!("customer  {}", plain(&order.customer_id)),
        format!("status    {}", status_text(order)),
        format!("route     {}", route_text(order)),
    ];
    if !order.current_step.is_empty() {
        lines.push(format!("step      {}", plain(&order.current_step)));
    }
    lines.extend(order.items.iter().map(item_text));
    let total = order.total.clone().unwrap_or_default();
    lines.push(format!("total     {} {} (minor units)", total.minor_units, plain(&total.currency_code)));
    let address = order.shipping_address.as_ref().map(address_text).unwrap_or_default();
    for (name, text) in [
        ("tenant    ", &order.tenant),
        ("reference ", &order.reference),
        ("note      ", &order.note),
        ("ship to   ", &address),
    ] {
        if !text.is_empty() {
            lines.push(format!("{name}{}", plain(text)));
        }
    }
    let entries = order.metadata.iter();
    lines.extend(entries.map(|(key, value)| format!("metadata  {}", plain(&format!("{key}={value}")))));
    lines.push(format!("revision  {}", order.revision));
    lines.push(format!("created   {}", time_text(create_time(order))));
    lines.push(format!("updated   {}", time_text(update_time(order))));
    lines.join("\n")
}

fn item_text(item: &OrderItem) -> String {
    let price = item.unit_price.clone().unwrap_or_default();
    let mut parts = vec![format!("{} {} at {}", item.quantity, item.sku, price.minor_units)];
    parts.extend(Some(item.name.clone()).filter(|name| !name.is_empty()));
    parts.extend(item.metadata.iter().map(|(key, value)| format!("{key}={value}")));
    format!("item      {}", plain(&parts.join(", ")))
}

/// An address on one line, from specific to general.
fn address_text(address: &PostalAddress) -> String {
    let lines = address.recipients.iter().chain([&address.organization]).chain(&address.address_lines);
    let places = [
        &address.sublocality,
        &address.locality,
        &address.administrative_area,
        &address.postal_code,
        &address.sorting_code,
        &address.region_code,
    ];
    let parts: Vec<&str> = lines.chain(places).map(String::as_str).filter(|part| !part.is_empty()).collect();
    parts.join(", ")
}

/// What the columns of orders on one line each are.
pub(crate) fn order_heading() -> String {
    format!("{:<24}  {:<43}  STATUS", "CREATED", "ORDER")
}

/// An order, on one line.
pub(crate) fn order_line(order: &Order) -> String {
    format!("{}  {}  {}", time_text(create_time(order)), plain(&order.order_id), status_text(order))
}

/// An event, on one line.
pub(crate) fn update(update: &Update) -> String {
    let order = &update.order;
    let mut line = format!(
        "{}  revision {}  {:<9}  {}",
        time_text(update_time(order)),
        order.revision,
        event_name(update.detail.as_ref()),
        status_text(order),
    );
    let details = details(update);
    if !details.is_empty() {
        line = format!("{line}  {details}");
    }
    if !update.trace_id.is_empty() {
        line = format!("{line}  trace {}", plain(&update.trace_id));
    }
    line
}

/// The status, its reason, and the compensation still owed.
pub(crate) fn status_text(order: &Order) -> String {
    let mut text = status_name(order.status()).to_owned();
    if !order.reason.is_empty() {
        text = format!("{text} ({})", plain(&order.reason));
    }
    if order.status() == OrderStatus::Failed {
        let (parked_as, letter) = (status_name(order.parked_status()), plain(&order.dead_letter_id));
        text = format!("{text}, parked as {parked_as}, dead letter {letter}");
    }
    if let Some(deferral) = &order.deferral {
        let until = time_text(deferral.until.and_then(|until| until.try_into().ok()));
        text = format!("{text}, deferred until {until} ({})", plain(&deferral.reason));
    }
    if !order.compensation_pending.is_empty() {
        text = format!("{text}, {} to compensate", plain(&order.compensation_pending.join(", ")));
    }
    text
}

/// The route's name and its steps.
pub(crate) fn route_text(order: &Order) -> String {
    let Some(route) = &order.route else { return "unknown".to_owned() };
    let steps: Vec<_> = route.steps.iter().map(|step| step.name.as_str()).collect();
    plain(&format!("{}: {}", route.name, steps.join(", ")))
}

/// The status as the contract spells it, without the enum's prefix.
pub(crate) fn status_name(status: OrderStatus) -> &'static str {
    let name = status.as_str_name();
    name.strip_prefix("ORDER_STATUS_").unwrap_or(name)
}

/// The event's kind, in the word of its subject.
pub(crate) fn event_name(detail: Option<&Detail>) -> &'static str {
    match detail {
        Some(Detail::Created(_)) => "created",
        Some(Detail::Reserved(_)) => "reserved",
        Some(Detail::Paid(_)) => "paid",
        Some(Detail::Fulfilled(_)) => "fulfilled",
        Some(Detail::Rejected(_)) => "rejected",
        Some(Detail::Cancelled(_)) => "cancelled",
        Some(Detail::Released(_)) => "released",
        Some(Detail::Refunded(_)) => "refunded",
        Some(Detail::Failed(_)) => "failed",
        Some(Detail::Redriven(_)) => "redriven",
        Some(Detail::Carried(_)) => "carried",
        Some(Detail::Completed(_)) => "completed",
        Some(Detail::Compensated(_)) => "compensated",
        Some(Detail::Deferred(_)) => "deferred",
        Some(Detail::Resumed(_)) => "resumed",
        None => "unknown",
    }
}

/// When the latest event was written.
pub(crate) fn update_time(order: &Order) -> Option<SystemTime> {
    order.update_time.and_then(|time| time.try_into().ok())
}

/// A short time, precise enough to compare: `1.2 ms`, `3.45 s`.
pub(crate) fn short_duration(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{:.1} ms", duration.as_secs_f64() * 1e3)
    } else {
        format!("{:.2} s", duration.as_secs_f64())
    }
}

/// The event's details beyond its kind, in one line.
pub(crate) fn details(update: &Update) -> String {
    let text = update.detail.as_ref().map(|detail| detail_text(&update.step, detail));
    plain(&text.unwrap_or_default())
}

fn detail_text(step: &str, detail: &Detail) -> String {
    match detail {
        Detail::Compensated(_) => step.to_owned(),
        Detail::Completed(completed) => {
            let attributes = completed.attributes.iter().map(|(key, value)| format!(" {key}={value}"));
            format!("{step}{}", attributes.collect::<String>())
        }
        Detail::Deferred(deferred) => {
            let until = time_text(deferred.until.and_then(|until| until.try_into().ok()));
            format!("{step} until {until}: {} {}", deferred.reason, deferred.message)
        }
        Detail::Resumed(_) => "the time of the deferral has come".to_owned(),
        Detail::Created(_) | Detail::Reserved(_) | Detail::Released(_) => String::new(),
        Detail::Paid(paid) if paid.payment_id.is_empty() => "nothing to pay".to_owned(),
        Detail::Paid(paid) => format!("payment {}", paid.payment_id),
        Detail::Fulfilled(fulfilled) => format!("shipment {}", fulfilled.shipment_id),
        Detail::Rejected(rejected) => format!("{step}: {}", rejected.message),
        Detail::Cancelled(cancelled) => cancelled.message.clone(),
        Detail::Refunded(refunded) if refunded.refund_id.is_empty() => "nothing to refund".to_owned(),
        Detail::Refunded(refunded) => match &refunded.amount {
            Some(Money { currency_code, minor_units }) => {
                format!("refund {} of {minor_units} {currency_code} (minor units)", refunded.refund_id)
            }
            None => format!("refund {}", refunded.refund_id),
        },
        Detail::Failed(failed) => {
            format!("{step} after {} attempts: {}", failed.attempts, failed.message)
        }
        Detail::Redriven(redriven) => format!("by {}", redriven.operator),
        Detail::Carried(_) => "unfinished, appended again before its events expire".to_owned(),
    }
}

fn create_time(order: &Order) -> Option<SystemTime> {
    order.create_time.and_then(|time| time.try_into().ok())
}

/// A time that may be out of range.
pub(crate) fn time_text(time: Option<SystemTime>) -> String {
    time.map_or_else(|| "unknown".to_owned(), |time| humantime::format_rfc3339_millis(time).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::orders::v1::PaymentRefunded;

    #[test]
    fn a_rejected_order_says_why_and_what_it_owes() {
        let order = Order {
            status: OrderStatus::Rejected.into(),
            reason: "CARD_DECLINED".to_owned(),
            compensation_pending: vec!["inventory".to_owned()],
            ..Order::default()
        };
        assert_eq!(status_text(&order), "REJECTED (CARD_DECLINED), inventory to compensate");
    }

    #[test]
    fn an_order_shows_what_its_client_said() {
        let text = |text: &str| text.to_owned();
        let shown = super::order(&Order {
            tenant: text("shop-1"),
            reference: text("PO-17"),
            note: text("ring twice"),
            payment_method: text("tok_1"),
            metadata: [(text("channel"), text("web"))].into(),
            shipping_address: Some(PostalAddress {
                region_code: text("CH"),
                postal_code: text("8001"),
                locality: text("Z\u{fc}rich"),
                address_lines: vec![text("Street 1")],
                recipients: vec![text("Ada")],
                ..PostalAddress::default()
            }),
            items: vec![OrderItem {
                sku: text("widget"),
                quantity: 2,
                name: text("Blue widget"),
                metadata: [(text("color"), text("blue\n"))].into(),
                ..OrderItem::default()
            }],
            ..Order::default()
        });
        for line in [
            "item      2 widget at 0, Blue widget, color=blue\\n",
            "tenant    shop-1",
            "reference PO-17",
            "note      ring twice",
            "ship to   Ada, Street 1, Z\u{fc}rich, 8001, CH",
            "metadata  channel=web",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line} in {shown}");
        }
        assert!(!shown.contains("tok_1"));
    }

    #[test]
    fn a_refund_says_how_much_it_was() {
        let amount = Some(Money { currency_code: "EUR".to_owned(), minor_units: 700 });
        let refunded = PaymentRefunded { refund_id: "r-1".to_owned(), amount };
        assert_eq!(
            detail_text("payment", &Detail::Refunded(refunded)),
            "refund r-1 of 700 EUR (minor units)"
        );
        assert_eq!(
            detail_text("payment", &Detail::Refunded(PaymentRefunded::default())),
            "nothing to refund"
        );
    }

    #[test]
    fn durations_keep_what_matters() {
        assert_eq!(short_duration(Duration::from_micros(1234)), "1.2 ms");
        assert_eq!(short_duration(Duration::from_millis(3456)), "3.46 s");
    }
}
