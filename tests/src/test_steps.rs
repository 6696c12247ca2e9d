//! Steps of tests: they run as `waybill-test-step`, and keep a record of their effects in a bucket, so that books can be
//! checked. Whether one compensates is up to the routes of the test.

use async_nats::jetstream::context::CreateKeyValueError;
use async_nats::jetstream::{self, kv};
use serde::{Deserialize, Serialize};

/// Their names.
pub const TEST_STEPS: [&str; 4] = ["screening", "packing", "labelling", "loading"];
/// The variable by which the program learns which of them it is.
pub const TEST_STEP: &str = "TEST_STEP";
/// The program that plays any of them.
pub const TEST_STEP_PROGRAM: &str = "waybill-test-step";
/// They reject the orders of customers whose ids begin so.
pub const REFUSED: &str = "refused";
/// The reason of such an order.
pub const REFUSED_REASON: &str = "REFUSED_BY_TEST";

/// The bucket of effects.
pub(crate) const BUCKET: &str = "EFFECTS";

/// What a test step has on record for one order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effect {
    /// The state of the effect.
    pub state: EffectState,
    /// Calls that were to do it.
    pub acts: u32,
    /// Calls that were to compensate it.
    pub compensations: u32,
    /// How often it was done.
    pub done: u32,
    /// How often it was compensated.
    pub compensated: u32,
}

/// The life of an effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EffectState {
    /// Neither done nor compensated.
    #[default]
    None,
    /// Done.
    Done,
    /// Done, then compensated.
    Compensated,
    /// Compensated before it was done, which it can no longer be.
    Forbidden,
}

/// Opens the bucket of effects, making it if it is missing.
pub async fn open(jetstream: &jetstream::Context) -> Result<kv::Store, CreateKeyValueError> {
    let config = kv::Config { bucket: BUCKET.to_owned(), ..kv::Config::default() };
    jetstream.create_key_value(config).await
}

/// The key of an order's effect. The creation time distinguishes orders that reuse an id.
pub fn key(step: &str, order_id: &str, creation_time: impl std::fmt::Display) -> String {
    format!("{step}.{order_id}.{creation_time}")
}
