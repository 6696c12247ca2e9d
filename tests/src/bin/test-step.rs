//! `waybill-test-step`: any of the steps of tests. The variable TEST_STEP names it. Its effect is a record of its own, which
//! is kept by compare-and-set.

use std::process::ExitCode;

use async_nats::jetstream::kv::{self, UpdateErrorKind};
use clap::Parser;
use harness::eventually;
use harness::test_steps::{self, Effect, EffectState, REFUSED, REFUSED_REASON, TEST_STEP, TEST_STEPS};
use processor::config::ProcessorConfig;
use processor::creation_time::CreationTime;
use processor::step::{Step, StepError, StepProfile};
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Order, StepCompensated, StepCompleted};

/// Writes of one call that others overtake before it counts as failed.
const WRITES_MAX: usize = 20;

/// A step of tests.
#[derive(Debug, Parser)]
struct Config {
    #[arg(long, env = TEST_STEP, value_parser = step_name)]
    test_step: &'static str,
    #[command(flatten)]
    processor: ProcessorConfig,
}

impl processor::config::Config for Config {
    fn processor(&self) -> &ProcessorConfig {
        &self.processor
    }

    fn step(&self) -> StepProfile {
        StepProfile::new(self.test_step)
    }
}

/// One of [`TEST_STEPS`].
fn step_name(name: &str) -> Result<&'static str, String> {
    let known = TEST_STEPS.into_iter().find(|step| *step == name);
    known.ok_or_else(|| format!("{TEST_STEP} must be one of {TEST_STEPS:?}"))
}

#[derive(Debug)]
struct TestStep {
    name: &'static str,
    effects: kv::Store,
}

impl Step for TestStep {
    async fn act(&self, order: &Order, _: u64) -> Result<Detail, StepError> {
        if order.customer_id.starts_with(REFUSED) {
            let message = format!("{} refuses this customer", self.name);
            return Err(StepError::Rejected { reason: REFUSED_REASON.into(), message });
        }
        let after = self
            .change(order, |effect| {
                effect.acts += 1;
                if effect.state == EffectState::None {
                    effect.state = EffectState::Done;
                    effect.done += 1;
                }
            })
            .await?;
        match after.state {
            EffectState::Done => Ok(Detail::Completed(StepCompleted::default())),
            state @ (EffectState::None | EffectState::Compensated | EffectState::Forbidden) => {
                Err(StepError::Unexpected(format!("the effect is {state:?} already")))
            }
        }
    }

    async fn compensate(&self, order: &Order, done: bool, _: u64) -> Result<Detail, StepError> {
        let after = self
            .change(order, |effect| {
                effect.compensations += 1;
                match effect.state {
                    EffectState::None => effect.state = EffectState::Forbidden,
                    EffectState::Done => {
                        effect.state = EffectState::Compensated;
                        effect.compensated += 1;
                    }
                    EffectState::Compensated | EffectState::Forbidden => {}
                }
            })
            .await?;
        if done && after.state == EffectState::Forbidden {
            return Err(StepError::Unexpected("the log has a completion, but there is no effect".to_owned()));
        }
        Ok(Detail::Compensated(StepCompensated {}))
    }
}

impl TestStep {
    /// Changes the order's effect by compare-and-set, and returns it.
    async fn change(&self, order: &Order, change: impl Fn(&mut Effect)) -> Result<Effect, StepError> {
        if !order.payment_method.is_empty() {
            return Err(StepError::Unexpected("only the payment step may get the payment_method".to_owned()));
        }
        let unavailable = |error: &dyn std::error::Error| StepError::Unavailable(error.to_string());
        let key = test_steps::key(self.name, &order.order_id, CreationTime::of(order)?);
        for _ in 0..WRITES_MAX {
            let entry = self.effects.entry(&key).await.map_err(|error| unavailable(&error))?;
            let (mut effect, revision) = match entry {
                Some(entry) => {
                    let effect = serde_json::from_slice(&entry.value)
                        .map_err(|error| StepError::Unexpected(error.to_string()))?;
                    (effect, entry.revision)
                }
                None => (Effect::default(), 0),
            };
            change(&mut effect);
            let value =
                serde_json::to_vec(&effect).map_err(|error| StepError::Unexpected(error.to_string()))?;
            match self.effects.update(&key, value.into(), revision).await {
                Ok(_) => return Ok(effect),
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {}
                Err(error) => return Err(unavailable(&error)),
            }
        }
        Err(StepError::Unavailable(format!("{key} is changed by others all the time")))
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    processor::run(async |config: Config, connection| {
        // The broker may be killed meanwhile, and the test restarts no step that ends.
        let opened =
            eventually("the bucket of effects", async || test_steps::open(connection.jetstream()).await.ok());
        Ok(TestStep { name: config.test_step, effects: opened.await })
    })
    .await
}
