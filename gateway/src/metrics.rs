//! The metrics of the gateway; docs/metrics.md explains them.

use std::sync::LazyLock;
use std::time::Duration;

use backbone::log::CarryProgress;
use program::metrics::{self, Counter, Histogram, KeyValue, UpDownCounter, seconds};
use program::trace::attribute;

use crate::errors::{Fault, Reason, Rejection};

use crate::readiness::{Readiness, State};

/// Methods whose answer is a watch.
pub(crate) const WATCH_ORDER: &str = "orders.v1.OrderService/WatchOrder";
pub(crate) const WATCH_ORDERS: &str = "orders.v1.OrderService/WatchOrders";

/// The label for whose fault an error is.
const FAULT: &str = "fault";
/// Its value for a call answered with OK.
const NO_FAULT: &str = "none";

static CALLS: LazyLock<Histogram<f64>> = LazyLock::new(|| {
    metrics::call_duration("rpc.server.call.duration", "Calls, from their headers to the end of the answer.")
});
static REFUSED: LazyLock<Counter<u64>> = LazyLock::new(|| {
    metrics::counter("waybill.calls.refused", "Calls answered with an error that has a reason.")
});
static STREAMS: LazyLock<UpDownCounter<i64>> =
    LazyLock::new(|| metrics::up_and_down("waybill.streams.open", "Watches open now."));
static LAG: LazyLock<Histogram<f64>> = LazyLock::new(|| {
    metrics::order_duration(
        "waybill.watch.lag",
        "Time from the storage of an event to its delivery to a watch that was already open.",
    )
});

static CARRIED: LazyLock<Counter<u64>> = LazyLock::new(|| {
    metrics::counter(
        "waybill.orders.carried",
        "Unfinished orders carried before their events expire, and those that the broker rejected.",
    )
});
static EXPIRED: LazyLock<Counter<u64>> = LazyLock::new(|| {
    metrics::counter("waybill.carry.missed", "Events that expired before the carrier examined them.")
});

/// Registers every series with 0.
pub(crate) fn start(readiness: &Readiness) {
    for reason in Reason::ALL {
        for fault in Fault::ALL {
            REFUSED.add(0, &labels(Rejection { reason, fault }));
        }
    }
    for method in [WATCH_ORDER, WATCH_ORDERS] {
        STREAMS.add(0, &[KeyValue::new(attribute::RPC_METHOD, method)]);
    }
    let readiness = readiness.clone();
    metrics::gauge("waybill.ready", "1 while /readyz is ready.", move |gauge| {
        gauge.observe(u64::from(readiness.now() == State::Ready), &[]);
    });
}

/// Progress of carrying, at each collection: the age of the oldest unexamined event, and the retention.
pub(crate) fn carrying(progress: impl Fn() -> Option<(Duration, Duration)> + Clone + Send + Sync + 'static) {
    carried(&CarryProgress::default());
    missed(0);
    let known = progress.clone();
    metrics::age(
        "waybill.carry.age",
        "Age of the oldest event that the carrier has not examined yet.",
        move |gauge| {
            if let Some((age, _)) = known() {
                gauge.observe(seconds(age), &[]);
            }
        },
    );
    metrics::age("waybill.orders.retention", "How long the order log keeps events.", move |gauge| {
        if let Some((_, retention)) = progress() {
            gauge.observe(seconds(retention), &[]);
        }
    });
}

/// A piece of the log was examined.
pub(crate) fn carried(walked: &CarryProgress) {
    CARRIED.add(walked.carried, &[KeyValue::new("outcome", "carried")]);
    CARRIED.add(walked.refused, &[KeyValue::new("outcome", "refused")]);
}

/// Events expired unexamined.
pub(crate) fn missed(events: u64) {
    EXPIRED.add(events, &[]);
}

/// A call has ended.
pub(crate) fn answered(method: &'static str, status: &'static str, fault: Option<Fault>, took: Duration) {
    let labels = [
        KeyValue::new(attribute::RPC_METHOD, method),
        KeyValue::new(attribute::RPC_RESPONSE_STATUS_CODE, status),
        KeyValue::new(FAULT, fault.map_or(NO_FAULT, Fault::as_str)),
    ];
    CALLS.record(seconds(took), &labels);
}

/// A call was refused.
pub(crate) fn rejected(rejection: Rejection) {
    REFUSED.add(1, &labels(rejection));
}

fn labels(rejection: Rejection) -> [KeyValue; 2] {
    [KeyValue::new("reason", rejection.reason.as_str()), KeyValue::new(FAULT, rejection.fault.as_str())]
}

/// An event was delivered to a watcher, `lag` after it was stored.
pub(crate) fn delivered(method: &'static str, lag: Duration) {
    LAG.record(seconds(lag), &[KeyValue::new(attribute::RPC_METHOD, method)]);
}

/// A watch, until it is dropped.
#[derive(Debug)]
pub(crate) struct OpenStream(&'static str);

impl OpenStream {
    pub(crate) fn of(method: &'static str) -> Self {
        STREAMS.add(1, &[KeyValue::new(attribute::RPC_METHOD, method)]);
        Self(method)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        STREAMS.add(-1, &[KeyValue::new(attribute::RPC_METHOD, self.0)]);
    }
}
