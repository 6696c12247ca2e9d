//! `waybill-test-step`: any of the steps of tests. The variable TEST_STEP names it. Its effect is a record of its own, which
//! is kept by compare-and-set.

use std::process::ExitCode;

use async_nats::jetstream::kv::{self, UpdateErrorKind};
use backbone::broker::connection::Connection;
use clap::Parser;
use harness::eventually;
use harness::test_steps::{self, Effect, EffectState, REFUSED, REFUSED_REASON, TEST_STEP, TEST_STEPS};
use processor::config::ProcessorConfig;
use processor::creation_time::CreationTime;
use processor::step::{Step, StepError};
use proto::orders::v1::order_event::Detail;
use proto::orders::v1::{Order, StepCompensated, StepCompleted};

/// Writes of one call that others overtake before it counts as failed.
const WRITES_MAX: usize = 20;

/// A step of tests.
#[derive(Debug, Parser)]
struct Config {
    #[command(flatten)]
    processor: ProcessorConfig,
}

impl processor::config::Config for Config {
    fn processor(&self) -> &ProcessorConfig {
        &self.processor
    }
}

/// The nth of [`TEST_STEPS`].
#[derive(Debug)]
struct TestStep<const N: usize> {
    effects: kv::Store,
}

impl<const N: usize> Step for TestStep<N> {
    const NAME: &'static str = TEST_STEPS[N];

    async fn act(&self, order: &Order) -> Result<Detail, StepError> {
        if order.customer_id.starts_with(REFUSED) {
            let message = format!("{} refuses this customer", Self::NAME);
            return Err(StepError::Rejected { reason: REFUSED_REASON, message });
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
            EffectState::Done => Ok(Detail::Completed(StepCompleted {})),
            state @ (EffectState::None | EffectState::Compensated | EffectState::Forbidden) => {
                Err(StepError::Unexpected(format!("the effect is {state:?} already")))
            }
        }
    }

    async fn compensate(&self, order: &Order, done: bool) -> Result<Detail, StepError> {
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

impl<const N: usize> TestStep<N> {
    /// Changes the order's effect by compare-and-set, and returns it.
    async fn change(&self, order: &Order, change: impl Fn(&mut Effect)) -> Result<Effect, StepError> {
        if !order.payment_method.is_empty() {
            return Err(StepError::Unexpected("only the payment step may get the payment_method".to_owned()));
        }
        let unavailable = |error: &dyn std::error::Error| StepError::Unavailable(error.to_string());
        let key = test_steps::key(Self::NAME, &order.order_id, CreationTime::of(order)?);
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

async fn play<const N: usize>() -> ExitCode {
    let open = async |_: Config, connection: Connection| {
        // The broker may be killed meanwhile, and the test restarts no step that ends.
        let opened =
            eventually("the bucket of effects", async || test_steps::open(connection.jetstream()).await.ok());
        Ok(TestStep::<N> { effects: opened.await })
    };
    processor::run(open).await
}

#[tokio::main]
async fn main() -> ExitCode {
    let name = std::env::var(TEST_STEP).unwrap_or_default();
    match TEST_STEPS.iter().position(|step| *step == name) {
        Some(0) => play::<0>().await,
        Some(1) => play::<1>().await,
        Some(2) => play::<2>().await,
        Some(3) => play::<3>().await,
        Some(_) | None => {
            eprintln!("{TEST_STEP} is {name:?}, must be one of {TEST_STEPS:?}");
            ExitCode::from(64)
        }
    }
}
