//! The outcomes of the sample orders, in numbers.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::Context;
use hdrhistogram::Histogram;
use proto::orders::v1::Order;

use crate::render;

/// The outcome of one sample order.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is finished; `took` is the time from CreateOrder to its last event.
    Finished { order: Order, took: Duration },
    /// It was accepted, and is not finished.
    Unfinished { order: Order, why: String },
    /// It was not accepted.
    Refused { request_id: String, why: String },
}

/// Longer times count as this one. Three digits are more than a person compares.
const MICROS_MAX: u64 = 3_600_000_000;
const DIGITS: u8 = 3;
/// How many unfinished orders are listed one by one.
const LISTED_MAX: usize = 20;

/// The sample orders of one run, summed up.
#[derive(Debug)]
pub(super) struct Summary {
    outcomes: Vec<Outcome>,
    took: Duration,
    micros_to_end: Histogram<u64>,
}

impl Summary {
    /// Sums up a run that took so long.
    pub(super) fn of(outcomes: Vec<Outcome>, took: Duration) -> anyhow::Result<Self> {
        let mut micros_to_end =
            Histogram::new_with_max(MICROS_MAX, DIGITS).context("cannot measure times")?;
        for outcome in &outcomes {
            if let Outcome::Finished { took, .. } = outcome {
                micros_to_end.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
            }
        }
        Ok(Self { outcomes, took, micros_to_end })
    }

    /// How many orders did not finish, or were not even accepted.
    pub(super) fn unfinished(&self) -> usize {
        self.unfinished_lines().count()
    }

    /// One of the orders, to try the commands on.
    pub(super) fn an_order_id(&self) -> Option<&str> {
        self.outcomes.iter().find_map(|outcome| match outcome {
            Outcome::Finished { order, .. } | Outcome::Unfinished { order, .. } => {
                Some(order.order_id.as_str())
            }
            Outcome::Refused { .. } => None,
        })
    }

    fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for outcome in &self.outcomes {
            let ended_as = match outcome {
                Outcome::Finished { order, .. } | Outcome::Unfinished { order, .. } => {
                    render::status_text(order)
                }
                Outcome::Refused { .. } => "not accepted".to_owned(),
            };
            *counts.entry(ended_as).or_default() += 1;
        }
        counts
    }

    fn unfinished_lines(&self) -> impl Iterator<Item = String> {
        self.outcomes.iter().filter_map(|outcome| match outcome {
            Outcome::Finished { .. } => None,
            Outcome::Unfinished { order, why } => {
                Some(format!("not finished: order {}, {}: {why}", order.order_id, render::status_text(order)))
            }
            Outcome::Refused { request_id, why } => {
                Some(format!("not accepted: request {request_id}: {why}"))
            }
        })
    }

    fn time_to_end(&self, quantile: f64) -> String {
        render::short_duration(Duration::from_micros(self.micros_to_end.value_at_quantile(quantile)))
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let took = render::short_duration(self.took);
        write!(f, "{} sample orders in {took}", self.outcomes.len())?;
        for (ended_as, count) in self.counts() {
            write!(f, "\n  {count:>7}  {ended_as}")?;
        }
        if !self.micros_to_end.is_empty() {
            let (p50, p99) = (self.time_to_end(0.5), self.time_to_end(0.99));
            write!(f, "\nfrom CreateOrder to the last status: p50 {p50}, p99 {p99}")?;
        }
        for line in self.unfinished_lines().take(LISTED_MAX) {
            write!(f, "\n{line}")?;
        }
        match self.unfinished().saturating_sub(LISTED_MAX) {
            0 => Ok(()),
            more => write!(f, "\n… and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::orders::v1::{Order, OrderStatus};

    fn finished(status: OrderStatus, reason: &str, took_ms: u64) -> Outcome {
        Outcome::Finished {
            order: Order { status: status.into(), reason: reason.to_owned(), ..Order::default() },
            took: Duration::from_millis(took_ms),
        }
    }

    #[test]
    fn orders_are_counted_by_how_they_ended() {
        let outcomes = vec![
            finished(OrderStatus::Fulfilled, "", 5),
            finished(OrderStatus::Fulfilled, "", 6),
            finished(OrderStatus::Rejected, "OUT_OF_STOCK", 3),
        ];
        let summary = Summary::of(outcomes, Duration::from_millis(12)).unwrap();
        let text = summary.to_string();
        assert_eq!(summary.unfinished(), 0);
        assert!(text.starts_with("3 sample orders in 12.0 ms"));
        assert!(text.contains("2  FULFILLED\n"));
        assert!(text.contains("1  REJECTED (OUT_OF_STOCK)\n"));
    }

    #[test]
    fn the_median_and_the_slowest_percent_are_what_a_sorted_list_has_there() {
        let outcomes = (1..=100).map(|took_ms| finished(OrderStatus::Fulfilled, "", took_ms));
        let summary = Summary::of(outcomes.collect(), Duration::from_secs(1)).unwrap();
        assert_eq!(summary.time_to_end(0.5), "50.0 ms");
        assert_eq!(summary.time_to_end(0.99), "99.0 ms");
    }

    #[test]
    fn unfinished_orders_are_listed_up_to_a_bound() {
        let refused = |index| Outcome::Refused {
            request_id: format!("sample-1-{index}"),
            why: "UNAVAILABLE: away".to_owned(),
        };
        let summary = Summary::of((0..25).map(refused).collect(), Duration::ZERO).unwrap();
        let text = summary.to_string();
        assert_eq!(summary.unfinished(), 25);
        assert!(text.contains("not accepted: request sample-1-0: UNAVAILABLE: away"));
        assert!(text.ends_with("… and 5 more"));
        assert!(!text.contains("p50"));
    }
}
