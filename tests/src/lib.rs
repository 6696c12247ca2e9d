//! The harness: a whole Waybill of real processes on free ports, in a directory of its own, all of which is
//! gone when the test ends.

#![allow(clippy::expect_used, reason = "a harness fails the test by panicking")]

mod broker;
mod calls;
pub mod certificates;
mod cluster;
pub mod collector;
mod deployment;
mod folders;
mod http;
pub mod issuer;
pub mod languages;
mod line;
mod load;
pub mod measure;
mod namespaces;
mod operations;
mod payments;
mod process;
mod records;
mod relay;
mod scrape;
mod seeding;
mod skip;
pub mod step_service;
pub mod test_steps;
mod tmpfs;
mod wire;

pub use broker::{Broker, free_port, inbox_of, nats_server};
pub use calls::{
    PAYMENT_METHOD, PERSONAL, Shows, Watcher, default_route, full_order_of, health, item, order_of,
};
pub use cluster::{Cluster, SERVERS};
pub use deployment::{Deployment, Gateway, Options};
pub use folders::mirror;
pub use http::http_get;
pub use line::Line;
pub use load::{Load, cancel, create};
pub use namespaces::{Host, Network};
pub use operations::{every_one, these};
pub use payments::{Account, PaymentSandbox};
pub use process::{Process, binary};
pub use relay::Relay;
pub use scrape::{Sample, Scrape};
pub use skip::{say, skip};
pub use tmpfs::Tmpfs;
pub use wire::{DELIVERY, Held, Moment, Wire};

use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;

/// How long a test waits for something that has to happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Pause between two checks of a condition.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Waits until `condition` gives something.
pub async fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = condition().await {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Random numbers. The seed is printed; the variable SEED reproduces the same ones.
pub fn randomness() -> StdRng {
    let seed = match std::env::var("SEED") {
        Ok(seed) => seed.parse().expect("a number in SEED"),
        Err(_) => rand::random(),
    };
    eprintln!("SEED={seed}");
    StdRng::seed_from_u64(seed)
}
