//! The child processes: started with a log each, watched, and stopped in order. None is left behind.

use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, anyhow};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::select;
use tokio::time::timeout;

use super::log::log_tail;
use super::signals::Signals;
use crate::console;

/// How long a child may take to stop when asked to.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// After SIGKILL only the kernel can delay the end of a process.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// The running children, in the order in which they were started.
#[derive(Debug)]
pub(super) struct Children {
    logs: PathBuf,
    running: Vec<Running>,
    /// How many of the first children are shared: the others need them.
    shared: usize,
}

#[derive(Debug)]
struct Running {
    name: String,
    log: PathBuf,
    process: Child,
}

impl Children {
    /// No children yet; each will log to a file of its name in `logs`.
    pub(super) fn new(logs: PathBuf) -> Self {
        Self { logs, running: Vec::new(), shared: 0 }
    }

    /// Where the child of this name logs.
    pub(super) fn log_of(&self, name: &str) -> PathBuf {
        self.logs.join(name).with_extension("log")
    }

    /// Starts a child that the others need to finish what they are at. All of these are started before the others.
    pub(super) fn start_shared(&mut self, name: &str, command: Command) -> anyhow::Result<()> {
        self.start(name, command)?;
        self.shared = self.running.len();
        Ok(())
    }

    /// Starts a child with a fresh log. It leads its own process group: Ctrl-C in a terminal reaches this process
    /// alone, which then stops the children in order.
    pub(super) fn start(&mut self, name: &str, mut command: Command) -> anyhow::Result<()> {
        let log = self.log_of(name);
        let logs_here = || format!("cannot log to {}", log.display());
        let stdout = File::create(&log).with_context(logs_here)?;
        let stderr = stdout.try_clone().with_context(logs_here)?;
        let process = command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        self.running.push(Running { name: name.to_owned(), log, process });
        Ok(())
    }

    /// The outcome of some work, or the death of a child in the meantime.
    pub(super) async fn while_alive<T>(
        &mut self,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        select! {
            biased;
            exited = self.exit() => Err(exited),
            done = work => done,
        }
    }

    /// Waits until a child dies, and returns which, how, and its last log lines.
    pub(super) async fn exit(&mut self) -> anyhow::Error {
        let mut exits: FuturesUnordered<_> = self.running.iter_mut().map(Running::exit).collect();
        match exits.next().await {
            Some(exited) => exited,
            None => std::future::pending().await,
        }
    }

    /// Asks every child to stop, those that the others need last, and waits until all are gone. Another signal kills them.
    pub(super) async fn stop(&mut self, signals: &mut Signals) {
        select! {
            () = self.stop_in_order() => return,
            signal = signals.next() => console::warn(&format!("{signal}: killing what still runs")),
        }
        kill(&mut self.running).await;
    }

    async fn stop_in_order(&mut self) {
        let (shared, others) = self.running.split_at_mut(self.shared);
        stop_together(others).await;
        stop_together(shared).await;
    }
}

impl Running {
    async fn exit(&mut self) -> anyhow::Error {
        let how = match self.process.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        anyhow!("{} died ({how}); {}", self.name, log_tail(&self.log))
    }

    async fn reap(&mut self) {
        if let Err(error) = self.process.wait().await {
            console::warn(&format!("cannot wait for {}: {error}", self.name));
        }
    }

    /// Sends a signal to the child and the processes that it started. Never to a child that is gone: its id may be
    /// another's by now.
    fn signal(&self, signal: Signal) {
        let Some(Ok(group)) = self.process.id().map(i32::try_from) else {
            return;
        };
        match killpg(Pid::from_raw(group), signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => console::warn(&format!("cannot send {signal} to {}: {error}", self.name)),
        }
    }
}

async fn stop_together(children: &mut [Running]) {
    for child in children.iter() {
        child.signal(Signal::SIGTERM);
    }
    if timeout(STOP_TIMEOUT, reap(children)).await.is_err() {
        let names: Vec<_> = still_running(children).map(|child| child.name.clone()).collect();
        console::warn(&format!("killing {}: did not stop within {STOP_TIMEOUT:?}", names.join(", ")));
        kill(children).await;
    }
}

async fn kill(children: &mut [Running]) {
    for child in children.iter() {
        child.signal(Signal::SIGKILL);
    }
    if timeout(KILL_TIMEOUT, reap(children)).await.is_err() {
        for child in still_running(children) {
            console::warn(&format!("{} is still there after SIGKILL", child.name));
        }
    }
}

/// All at once: one that does not stop must not hide that others did.
async fn reap(children: &mut [Running]) {
    join_all(children.iter_mut().map(Running::reap)).await;
}

fn still_running(children: &[Running]) -> impl Iterator<Item = &Running> {
    children.iter().filter(|child| child.process.id().is_some())
}
