//! What breaks and is mended while orders are on their way.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use async_nats::jetstream::kv;
use backbone::broker::streams::ORDERS;
use bytes::Bytes;
use harness::{Deployment, PaymentSandbox, Process, eventually, every_one};
use nix::sys::signal::Signal;
use processor::inventory::{BUCKET, stock_key};
use proto::payments::v1::{self as payments, Behaviour, SetBehaviourRequest};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::{DAMAGED, REPLICAS, TROUBLE};

const FAULTS: usize = 30;
const FAULT_MAX: Duration = Duration::from_millis(3500);

/// What something happens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Processor(&'static str, usize),
    Gateway,
    Broker,
    Sandbox,
    Operator,
}

/// What happens to it, for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// kill -9, and started again.
    Killed,
    /// SIGTERM, and started again.
    Stopped,
    /// Stands still.
    Paused,
    /// Answers that it is away.
    Away,
    /// A SKU's record cannot be read.
    Damaged,
    /// A step gets everything once more.
    Redelivered(&'static str),
    /// An operator redrives all that is parked, or tries to.
    Redriven,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Scheduled {
    target: Target,
    fault: Fault,
    from: Duration,
    until: Duration,
}

/// Faults of which any may fall together, but no two of the same target.
pub(super) fn draw_faults(random: &mut StdRng, steps: &[&'static str]) -> Vec<Scheduled> {
    let mut faults = Vec::<Scheduled>::new();
    while faults.len() < FAULTS {
        let step = *steps.choose(random).unwrap();
        let (target, kinds) = match random.random_range(0..12) {
            0..6 => {
                let kinds = [Fault::Killed, Fault::Stopped, Fault::Paused];
                (Target::Processor(step, random.random_range(0..REPLICAS)), kinds)
            }
            6 => (Target::Gateway, [Fault::Killed, Fault::Killed, Fault::Paused]),
            7 => (Target::Broker, [Fault::Killed, Fault::Killed, Fault::Paused]),
            8 => (Target::Broker, [Fault::Damaged, Fault::Redelivered(step), Fault::Redelivered(step)]),
            9..11 => (Target::Sandbox, [Fault::Killed, Fault::Paused, Fault::Away]),
            _ => (Target::Operator, [Fault::Redriven; 3]),
        };
        let from = random.random_range(Duration::ZERO..TROUBLE);
        let until = from + FAULT_MAX.mul_f64(random.random_range(0.02..1.0));
        let fault = *kinds.choose(random).unwrap();
        // Orders wait for a step only while none of its replicas works.
        let targets = match target {
            Target::Processor(step, _) if random.random_bool(0.5) => {
                (0..REPLICAS).map(|place| Target::Processor(step, place)).collect()
            }
            Target::Processor(..) | Target::Gateway | Target::Broker | Target::Sandbox | Target::Operator => {
                vec![target]
            }
        };
        let is_free = |target| {
            faults.iter().all(|other| other.target != target || other.until < from || until < other.from)
        };
        if targets.iter().all(|target| is_free(*target)) {
            faults.extend(targets.into_iter().map(|target| Scheduled { target, fault, from, until }));
        }
    }
    faults
}

/// What breaks and mends.
pub(super) struct Trouble<'a> {
    waybill: &'a mut Deployment,
    behaviours: Vec<SetBehaviourRequest>,
    /// The record of the SKU that is damaged at present.
    undamaged: Option<Bytes>,
    /// Operators at work.
    redrives: JoinSet<()>,
}

impl<'a> Trouble<'a> {
    pub(super) fn new(waybill: &'a mut Deployment, behaviours: Vec<SetBehaviourRequest>) -> Self {
        Self { waybill, behaviours, undamaged: None, redrives: JoinSet::new() }
    }

    pub(super) async fn make(mut self, faults: &[Scheduled], start: Instant) {
        let mut turns: Vec<_> = faults
            .iter()
            .flat_map(|fault| [(fault.from, fault, true), (fault.until, fault, false)])
            .collect();
        turns.sort_by_key(|(at, ..)| *at);
        for (at, Scheduled { target, fault, .. }, begins) in turns {
            sleep_until(start + at).await;
            let turn = if begins { "from now on" } else { "no longer" };
            eprintln!("{:?}: {target:?} {fault:?} {turn}", start.elapsed());
            if begins { self.begin(*target, *fault).await } else { self.end(*target, *fault).await }
        }
    }

    async fn begin(&mut self, target: Target, fault: Fault) {
        match (target, fault) {
            (_, Fault::Damaged) => self.damage().await,
            (_, Fault::Redelivered(step)) => self.redeliver(step).await,
            (_, Fault::Redriven) => self.redrive(),
            (_, Fault::Away) => self.waybill.sandbox().fail("", payments::Fault::Outage, 0).await,
            (Target::Broker, Fault::Paused) => self.waybill.broker.pause(),
            (Target::Broker, _) => self.waybill.broker.kill(),
            (_, Fault::Paused) => self.process(target).pause(),
            (_, Fault::Stopped) => self.process(target).signal(Signal::SIGTERM),
            (_, Fault::Killed) => self.process(target).kill(),
        }
    }

    async fn end(&mut self, target: Target, fault: Fault) {
        match (target, fault) {
            (_, Fault::Damaged) => self.mend().await,
            (_, Fault::Redelivered(_)) => {}
            // Broken off, wherever it is.
            (_, Fault::Redriven) => self.redrives.abort_all(),
            (_, Fault::Away) => self.waybill.sandbox().fail("", payments::Fault::Unspecified, 0).await,
            (Target::Broker, Fault::Paused) => self.waybill.broker.resume(),
            (_, Fault::Paused) => self.process(target).resume(),
            (Target::Broker, _) => self.waybill.broker.start().await,
            (Target::Operator, _) => unreachable!("an operator only redrives"),
            (Target::Gateway, _) => self.waybill.replace_gateway().await,
            (Target::Sandbox, _) => {
                self.waybill.sandbox().restart().await;
                behave(self.waybill.sandbox(), &self.behaviours).await;
            }
            (Target::Processor(step, place), _) => {
                if fault == Fault::Stopped {
                    let status = self.process(target).ended().await;
                    // By the signal itself: it had only just been started, and did not listen yet.
                    let at_once = status.signal() == Some(Signal::SIGTERM as i32);
                    assert!(status.success() || at_once, "{target:?} told to stop: {status}");
                }
                self.waybill.replace_processor(step, place);
            }
        }
    }

    fn process(&mut self, target: Target) -> &mut Process {
        match target {
            Target::Processor(step, place) => &mut self.waybill.processors.get_mut(step).unwrap()[place],
            Target::Gateway => &mut self.waybill.gateway.process,
            Target::Sandbox => &mut self.waybill.sandbox().process,
            Target::Broker | Target::Operator => unreachable!("not a process of ours"),
        }
    }

    /// While it is damaged nobody else writes to it.
    async fn damage(&mut self) {
        let bucket = self.bucket().await;
        let undamaged = eventually("damage", async || {
            let entry = bucket.entry(stock_key(DAMAGED)).await.ok()??;
            bucket.update(stock_key(DAMAGED), "damaged".into(), entry.revision).await.ok()?;
            Some(entry.value)
        });
        self.undamaged = Some(undamaged.await);
    }

    async fn mend(&mut self) {
        let value = self.undamaged.take().expect("damaged before");
        self.bucket().await.put(stock_key(DAMAGED), value).await.unwrap();
    }

    async fn bucket(&self) -> kv::Store {
        let jetstream = self.waybill.jetstream().await;
        eventually("bucket", async || jetstream.get_key_value(BUCKET).await.ok()).await
    }

    fn redrive(&mut self) {
        let mut operations = self.waybill.operations();
        self.redrives.spawn(async move {
            let Ok(answers) = operations.redrive_dead_letters(every_one()).await else { return };
            let mut answers = answers.into_inner();
            while let Ok(Some(answer)) = answers.message().await {
                eprintln!("{} of {}: {}", answer.dead_letter_id, answer.order_id, answer.message);
            }
        });
    }

    async fn redeliver(&mut self, step: &str) {
        let jetstream = self.waybill.jetstream().await;
        eventually("a consumer deleted", async || {
            jetstream.get_stream(ORDERS).await.ok()?.delete_consumer(step).await.ok()
        })
        .await;
        self.waybill.broker.provision_soon();
    }
}

/// Customers of whom so many calls go wrong.
pub(super) fn draw_behaviours(random: &mut StdRng) -> Vec<SetBehaviourRequest> {
    let mut behaviours = Vec::new();
    for (name, fault) in [
        ("slow", payments::Fault::Unspecified),
        ("lost", payments::Fault::LostReply),
        ("away", payments::Fault::Outage),
        ("confused", payments::Fault::Nonsense),
    ] {
        for n in 0..2 {
            let latency = if name == "slow" { random.random_range(50..500) } else { 0 };
            let latency = Duration::from_millis(latency).try_into().unwrap();
            let calls = random.random_range(1..12);
            let behaviour = Behaviour { latency: Some(latency), fault: fault.into(), calls };
            let customer_id = format!("{name}-{n}");
            behaviours.push(SetBehaviourRequest { customer_id, behaviour: Some(behaviour) });
        }
    }
    behaviours
}

pub(super) async fn behave(sandbox: &PaymentSandbox, behaviours: &[SetBehaviourRequest]) {
    for behaviour in behaviours {
        sandbox.control().set_behaviour(behaviour.clone()).await.unwrap();
    }
}
