//! The metrics of a processor; docs/metrics.md explains them.

use std::collections::HashSet;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use backbone::consumer::ConsumerError;
use program::metrics::{self, Counter, Histogram, KeyValue, seconds};

/// Fingerprints counted one by one; the dead letters of others are counted together.
const FINGERPRINTS_MAX: usize = 100;
const OTHER: &str = "other";
const STEP_DOWN_OUTCOMES: [&str; 3] = ["done", "not_allowed", "failed"];
const POSTPONED_REASONS: [&str; 2] = ["suspect", "no_place"];
const CAUSES: [&str; 6] = ["stuck", "silent", "edited", "leader", "refused", "closed"];

static ATTEMPTS: LazyLock<Histogram<f64>> = LazyLock::new(|| {
    metrics::call_duration(
        "waybill.step.attempt.duration",
        "Attempts at a message, until its outcome is known.",
    )
});
static REDELIVERIES: LazyLock<Counter<u64>> =
    LazyLock::new(|| metrics::counter("waybill.step.redeliveries", "Redelivered messages."));
static REOPENED: LazyLock<Counter<u64>> = LazyLock::new(|| {
    metrics::counter("waybill.step.consumer.reopened", "Times that the consumer was lost and reopened.")
});
static STEP_DOWNS: LazyLock<Counter<u64>> = LazyLock::new(|| {
    metrics::counter(
        "waybill.step.consumer.step_downs",
        "Step-downs requested because the consumer's leader lagged behind the log.",
    )
});
static ALONE: LazyLock<Counter<u64>> = LazyLock::new(|| {
    metrics::counter(
        "waybill.step.failed_alone",
        "Attempts that failed while other orders, or those of other customers, succeeded.",
    )
});
static POSTPONED: LazyLock<Counter<u64>> = LazyLock::new(|| {
    metrics::counter("waybill.step.postponed", "Messages returned to the broker without an attempt.")
});
static CONTRADICTED: LazyLock<Counter<u64>> = LazyLock::new(|| {
    metrics::counter(
        "waybill.step.contradicted",
        "Orders that a step completed twice at once, with different attributes.",
    )
});
static LETTERS: LazyLock<Counter<u64>> =
    LazyLock::new(|| metrics::counter("waybill.dead_letters", "Messages stored as dead letters."));

/// Registers every series with 0.
pub(crate) fn start(step: &'static str) {
    REDELIVERIES.add(0, &[of(step)]);
    ALONE.add(0, &[of(step)]);
    CONTRADICTED.add(0, &[of(step)]);
    for reason in POSTPONED_REASONS {
        POSTPONED.add(0, &[of(step), KeyValue::new("reason", reason)]);
    }
    start_consumer(step);
}

/// Counts an order for which the step has given two answers.
pub(crate) fn contradicted(step: &'static str) {
    CONTRADICTED.add(1, &[of(step)]);
}

/// Makes the counters of a consumer start at 0.
pub(crate) fn start_consumer(consumer: &'static str) {
    for cause in CAUSES {
        REOPENED.add(0, &[of(consumer), KeyValue::new("cause", cause)]);
    }
    for outcome in STEP_DOWN_OUTCOMES {
        STEP_DOWNS.add(0, &[of(consumer), KeyValue::new("outcome", outcome)]);
    }
}

/// An attempt at a message has ended.
pub(crate) fn attempted(step: &'static str, outcome: &'static str, took: Duration) {
    ATTEMPTS.record(seconds(took), &[of(step), KeyValue::new("outcome", outcome)]);
}

/// A message was redelivered.
pub(crate) fn redelivered(step: &'static str) {
    REDELIVERIES.add(1, &[of(step)]);
}

/// An attempt has failed at an order alone.
pub(crate) fn failed_alone(step: &'static str) {
    ALONE.add(1, &[of(step)]);
}

/// A message was returned without an attempt.
pub(crate) fn postponed(step: &'static str, reason: &'static str) {
    POSTPONED.add(1, &[of(step), KeyValue::new("reason", reason)]);
}

/// How many orders are known to fail alone, at each collection.
pub(crate) fn alone(step: &'static str, count: impl Fn() -> usize + Send + Sync + 'static) {
    metrics::gauge(
        "waybill.step.alone",
        "Orders that failed alone in this process, and neither succeeded nor were parked in it since.",
        move |gauge| gauge.observe(count() as u64, &[of(step)]),
    );
}

/// The consumer is lost.
pub(crate) fn reopened(step: &'static str, lost: &ConsumerError) {
    let cause = match lost {
        ConsumerError::Stuck { .. } => "stuck",
        ConsumerError::NoReply => "silent",
        ConsumerError::Edited { .. } => "edited",
        ConsumerError::LeaderChanged => "leader",
        ConsumerError::Refused(_) => "refused",
        ConsumerError::Closed => "closed",
    };
    REOPENED.add(1, &[of(step), KeyValue::new("cause", cause)]);
}

/// A step-down of the consumer's leader was requested.
pub(crate) fn stepped_down(step: &'static str, outcome: &'static str) {
    STEP_DOWNS.add(1, &[of(step), KeyValue::new("outcome", outcome)]);
}

/// A message was given up, for a cause that has this fingerprint.
pub(crate) fn given_up(step: &'static str, fingerprint: &str) {
    static KNOWN: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_default();
    let fits = known.contains(fingerprint)
        || (known.len() < FINGERPRINTS_MAX && known.insert(fingerprint.to_owned()));
    let fingerprint = if fits { fingerprint } else { OTHER }.to_owned();
    LETTERS.add(1, &[of(step), KeyValue::new("fingerprint", fingerprint)]);
}

pub(crate) fn of(step: &'static str) -> KeyValue {
    KeyValue::new("step", step)
}
