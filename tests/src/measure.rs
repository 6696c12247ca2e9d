//! Load of a known shape, and what it measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;

/// Latencies and the time that they were measured in.
#[derive(Debug)]
pub struct Measured {
    /// How long the load lasted.
    pub elapsed: Duration,
    /// Latencies in microseconds.
    pub latencies_us: Histogram<u64>,
}

impl Measured {
    /// Calls per second.
    pub fn rate(&self) -> f64 {
        self.latencies_us.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// A latency in milliseconds, such as `percentile_ms(99.0)`.
    pub fn percentile_ms(&self, percentile: f64) -> f64 {
        self.latencies_us.value_at_percentile(percentile) as f64 / 1e3
    }
}

/// Longer times count as this one: a minute.
const MICROS_MAX: u64 = 60_000_000;

/// An empty histogram of microseconds.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MICROS_MAX, 3).expect("valid bounds")
}

/// Closed loop: `in_flight` callers, each of which calls again once it has its answer, for as long as
/// `duration`. `call` gets the number of the caller and of the call.
pub async fn closed_loop<F, Fut>(in_flight: usize, duration: Duration, call: F) -> Measured
where
    F: Fn(usize, u64) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send,
{
    let (call, calls) = (Arc::new(call), Arc::new(AtomicU64::new(0)));
    let start = Instant::now();
    let mut callers = JoinSet::new();
    for caller in 0..in_flight {
        let (call, calls) = (call.clone(), calls.clone());
        callers.spawn(async move {
            let mut latencies_us = histogram();
            while start.elapsed() < duration {
                let called = Instant::now();
                call(caller, calls.fetch_add(1, Ordering::Relaxed)).await;
                latencies_us.saturating_record(called.elapsed().as_micros() as u64);
            }
            latencies_us
        });
    }
    let mut latencies_us = histogram();
    while let Some(caller) = callers.join_next().await {
        latencies_us.add(caller.expect("caller")).expect("same digits");
    }
    Measured { elapsed: start.elapsed(), latencies_us }
}

/// Median, lowest and highest of some values.
pub fn spread(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[sorted.len() / 2], sorted[0], sorted[sorted.len() - 1])
}

/// Memory that a process holds.
pub fn resident_kib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("number")
}

/// Processor time that a process has used since it was started.
pub fn cpu_time(pid: u32) -> Duration {
    /// The unit of the two fields, for every program that reads them (proc_pid_stat(5)).
    const TICK: Duration = Duration::from_millis(10);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("process");
    // The name, in parentheses, may hold spaces; user and system time are fields 14 and 15.
    let (_, fields) = stat.rsplit_once(')').expect("name");
    let ticks = fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u32>().expect("ticks"));
    TICK * ticks.sum::<u32>()
}
