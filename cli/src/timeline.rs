//! An order's history as a timeline: when each event was stored, how long after the one before it, and under which
//! trace.

use std::time::{Duration, SystemTime};

use crate::console::plain;
use crate::render::{details, event_name, route_text, short_duration, status_text, time_text, update_time};
use crate::watch::Update;

/// Width of the bars, in characters.
const BAR_CHARS: usize = 32;

/// The events of one order, oldest first, one line each; a line of its own wherever another trace begins.
pub(crate) fn timeline(events: &[Update]) -> String {
    let times: Vec<_> = events.iter().map(|event| update_time(&event.order)).collect();
    let (begun, ended) = (times.first().copied().flatten(), times.last().copied().flatten());
    let whole = since(ended, begun);
    let mut lines = Vec::new();
    if let (Some(first), Some(last)) = (events.first(), events.last()) {
        lines.push(format!("order   {}", plain(&first.order.order_id)));
        lines.push(format!("route   {}", route_text(&last.order)));
        lines.push(format!("placed  {}", time_text(begun)));
        let step = plain(&last.order.current_step);
        let at = if step.is_empty() { String::new() } else { format!(" at {step}") };
        let (status, whole) = (status_text(&last.order), short_duration(whole));
        lines.push(format!("now     {status}{at}, last event {whole} later"));
    }
    let (mut before, mut trace_id) = (begun, "");
    for (event, time) in events.iter().zip(times) {
        if event.trace_id != trace_id {
            trace_id = &event.trace_id;
            let named = if trace_id.is_empty() { "unknown" } else { trace_id };
            lines.push(format!("\ntrace   {}", plain(named)));
        }
        let (at, took) = (since(time, begun), since(time, before));
        let line = format!(
            "{:>10}  +{:>9}  {}  {:<9}  {}",
            short_duration(at),
            short_duration(took),
            bar(at.saturating_sub(took), at, whole),
            event_name(event.detail.as_ref()),
            details(event),
        );
        lines.push(line.trim_end().to_owned());
        before = time;
    }
    lines.join("\n")
}

/// Clocks of different machines may disagree, so the later one may be the earlier.
fn since(later: Option<SystemTime>, earlier: Option<SystemTime>) -> Duration {
    let between = later.zip(earlier).and_then(|(later, earlier)| later.duration_since(earlier).ok());
    between.unwrap_or_default()
}

/// The bar of the time between two events within the whole; at least one character wide.
fn bar(from: Duration, to: Duration, whole: Duration) -> String {
    let share = |time: Duration| {
        let share = if whole.is_zero() { 0.0 } else { time.as_secs_f64() / whole.as_secs_f64() };
        ((share * BAR_CHARS as f64) as usize).min(BAR_CHARS)
    };
    let start = share(from).min(BAR_CHARS - 1);
    let end = share(to).max(start + 1);
    (0..BAR_CHARS).map(|n| if (start..end).contains(&n) { '#' } else { '.' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::orders::v1::order_event::Detail;
    use proto::orders::v1::{
        Order, OrderCreated, OrderFailed, OrderRedriven, OrderStatus, Route, RouteStep, StockReserved,
    };
    use std::time::UNIX_EPOCH;

    fn event(at_ms: u64, status: OrderStatus, trace_id: &str, detail: Detail) -> Update {
        let step = |name: &str| RouteStep { name: name.to_owned(), ..RouteStep::default() };
        let steps = ["inventory", "payment"].map(step).into();
        let order = Order {
            route: Some(Route { name: "short".to_owned(), steps }),
            order_id: "an-order".to_owned(),
            status: status.into(),
            current_step: "payment".to_owned(),
            update_time: Some((UNIX_EPOCH + Duration::from_millis(at_ms)).into()),
            ..Order::default()
        };
        Update { order, detail: Some(detail), step: "inventory".to_owned(), trace_id: trace_id.to_owned() }
    }

    #[test]
    fn gaps_attempts_and_traces_are_seen_at_a_glance() {
        let failed =
            OrderFailed { attempts: 3, message: "no stock record".to_owned(), ..OrderFailed::default() };
        let redriven = OrderRedriven { operator: "ops".to_owned(), ..OrderRedriven::default() };
        let events = [
            event(1_000, OrderStatus::Accepted, "t1", Detail::Created(OrderCreated::default())),
            event(2_000, OrderStatus::Failed, "t1", Detail::Failed(failed)),
            event(4_950, OrderStatus::Accepted, "t2", Detail::Redriven(redriven)),
            event(5_000, OrderStatus::Reserved, "t2", Detail::Reserved(StockReserved::default())),
        ];
        let expected = "\
order   an-order
route   short: inventory, payment
placed  1970-01-01T00:00:01.000Z
now     RESERVED at payment, last event 4.00 s later

trace   t1
    0.0 ms  +   0.0 ms  #...............................  created
    1.00 s  +   1.00 s  ########........................  failed     inventory after 3 attempts: no stock record

trace   t2
    3.95 s  +   2.95 s  ........#######################.  redriven   by ops
    4.00 s  +  50.0 ms  ...............................#  reserved";
        assert_eq!(timeline(&events), expected);
    }

    #[test]
    fn unknown_and_decreasing_times_are_shown() {
        let mut events = [
            event(2_000, OrderStatus::Accepted, "", Detail::Created(OrderCreated::default())),
            event(1_000, OrderStatus::Reserved, "", Detail::Reserved(StockReserved::default())),
        ];
        assert!(timeline(&events).contains("RESERVED at payment, last event 0.0 ms later"));
        events[0].order.update_time = None;
        assert!(timeline(&events).contains("placed  unknown"));
        assert_eq!(timeline(&[]), "");
    }
}
