//! Steps of routes without a consumer at the broker. Their orders are accepted, and wait until one exists.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backbone::log::OrderLog;
use program::metrics::{self, KeyValue};
use routes::Routes;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

/// How often the consumers are looked up.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// Interval while a step has none, or is not looked up yet.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// The steps of all routes, and whether each has a consumer. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct RouteSteps {
    steps: Arc<[RouteStep]>,
    /// By step; missing while it is not known.
    has_consumer: Arc<Mutex<BTreeMap<String, bool>>>,
}

#[derive(Debug)]
struct RouteStep {
    name: String,
    /// The routes that go through it.
    routes: String,
}

impl RouteSteps {
    pub(crate) fn of(routes: &Routes) -> Self {
        let steps = routes.steps().into_iter();
        let steps = steps.map(|name| RouteStep { name: name.to_owned(), routes: through(routes, name) });
        let steps = Self { steps: steps.collect(), has_consumer: Arc::default() };
        let known = steps.clone();
        metrics::gauge(
            "waybill.route.step.without_consumer",
            "1 while a step of a route has no consumer, so that its orders wait.",
            move |gauge| {
                for (step, has_consumer) in &*known.lock() {
                    gauge.observe(u64::from(!has_consumer), &[KeyValue::new("step", step.clone())]);
                }
            },
        );
        steps
    }

    /// One line for each step without a consumer.
    pub(crate) fn without_consumer(&self) -> Vec<String> {
        let known = self.lock();
        let lacking = self.steps.iter().filter(|step| known.get(&step.name) == Some(&false));
        lacking.map(lacks).collect()
    }

    /// Looks the consumers up periodically.
    pub(crate) async fn keep(&self, log: &OrderLog) -> Infallible {
        loop {
            let mut all_known = true;
            for step in &*self.steps {
                let found = match timeout(READ_TIMEOUT, log.has_consumer(&step.name)).await {
                    Ok(Ok(found)) => Some(found),
                    Ok(Err(error)) => {
                        debug!(step = step.name, %error, "consumer not looked up");
                        None
                    }
                    Err(_) => None,
                };
                all_known &= found == Some(true);
                self.record(step, found);
            }
            sleep(if all_known { CHECK_INTERVAL } else { RECHECK_INTERVAL }).await;
        }
    }

    fn record(&self, step: &RouteStep, found: Option<bool>) {
        let before = match found {
            Some(found) => self.lock().insert(step.name.clone(), found),
            None => self.lock().remove(&step.name),
        };
        match (before, found) {
            (Some(true) | None, Some(false)) => warn!(step = step.name, "{}", lacks(step)),
            (Some(false), Some(true)) => info!(step = step.name, "step has a consumer"),
            (Some(_) | None, Some(_) | None) => {}
        }
    }

    /// No holder panics, so a poisoned lock is used as it is.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, bool>> {
        self.has_consumer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The names of the routes that go through a step.
fn through(routes: &Routes, step: &str) -> String {
    let goes_through = |name: &&str| {
        routes.route(name).is_some_and(|route| route.steps.iter().any(|other| other.name == step))
    };
    routes.names().filter(goes_through).collect::<Vec<_>>().join(", ")
}

fn lacks(step: &RouteStep) -> String {
    let RouteStep { name, routes } = step;
    format!(
        "step {name} has no consumer, its orders (routes {routes}) wait; start its processor, or run waybill provision with \
         this ROUTES_FILE"
    )
}
