//! The live view of the sample orders: a line for each change, or for many orders a count each second.

use std::cell::Cell;
use std::convert::Infallible;
use std::time::Duration;

use proto::orders::v1::Order;
use tokio::time::sleep;

use crate::watch::Update;
use crate::{console, render};

/// With more orders than this, single changes are no longer shown.
const SINGLE_ORDERS_MAX: u32 = 50;
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// The tail of an order's id, enough to tell the sample orders apart.
const SHORT_ID_CHARS: usize = 8;

/// What the sample orders did so far.
#[derive(Debug)]
pub(super) struct ProgressBoard {
    wanted: u32,
    placed: Cell<u32>,
    finished: Cell<u32>,
}

impl ProgressBoard {
    /// A board for so many orders.
    pub(super) fn new(wanted: u32) -> Self {
        let board = Self { wanted, placed: Cell::new(0), finished: Cell::new(0) };
        let how = if board.shows_single_orders() { "" } else { ", too many to show each" };
        console::tell(&format!("placing {wanted} sample orders{how}"));
        board
    }

    /// The order was accepted.
    pub(super) fn placed(&self, order: &Order) {
        self.placed.update(|placed| placed + 1);
        if self.shows_single_orders() {
            let items: Vec<_> =
                order.items.iter().map(|item| format!("{} {}", item.quantity, item.sku)).collect();
            show(
                order,
                render::status_name(order.status()),
                "",
                &format!("{}: {}", order.customer_id, items.join(", ")),
            );
        }
    }

    /// The order went on from where it stood `before`.
    pub(super) fn changed(&self, before: &Order, update: &Update) {
        if !self.shows_single_orders() {
            return;
        }
        let order = &update.order;
        let (from, to) = (render::status_name(before.status()), render::status_name(order.status()));
        let change = if from == to {
            format!("{to}, {}", render::event_name(update.detail.as_ref()))
        } else {
            format!("{from} → {to}")
        };
        let reason = if from == to { "" } else { &order.reason };
        show(order, &change, &time_between(before, order), reason);
    }

    /// The order is finished.
    pub(super) fn finished(&self) {
        self.finished.update(|finished| finished + 1);
    }

    /// Shows the counts each second, where single orders are not shown.
    pub(super) async fn report_progress(&self) -> Infallible {
        loop {
            sleep(PROGRESS_INTERVAL).await;
            if !self.shows_single_orders() {
                console::tell(&format!(
                    "placed {} of {}, finished {}",
                    self.placed.get(),
                    self.wanted,
                    self.finished.get()
                ));
            }
        }
    }

    fn shows_single_orders(&self) -> bool {
        self.wanted <= SINGLE_ORDERS_MAX
    }
}

fn show(order: &Order, change: &str, time: &str, note: &str) {
    let short_id = short(&order.order_id);
    let line = format!("order {short_id}  {change:<21}  {time:>10}  {note}");
    console::tell(line.trim_end());
}

fn short(order_id: &str) -> &str {
    let start = order_id.len().saturating_sub(SHORT_ID_CHARS);
    order_id.get(start..).unwrap_or(order_id)
}

/// By the clocks of the events' writers: all of them are this machine's.
fn time_between(before: &Order, after: &Order) -> String {
    let (Some(from), Some(to)) = (render::update_time(before), render::update_time(after)) else {
        return String::new();
    };
    format!("+{}", render::short_duration(to.duration_since(from).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_id_is_the_tail_that_differs() {
        assert_eq!(short("customercustomer-orderorderorder12345678"), "12345678");
        assert_eq!(short("tiny"), "tiny");
    }
}
