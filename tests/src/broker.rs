//! A nats-server with JetStream on file storage.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use async_nats::jetstream;
use nix::sys::signal::Signal;

use crate::eventually;
use crate::process::{Process, START_RETRY};

/// The nats-server of one test. Keeps its port and its data when it is started again.
#[derive(Debug)]
pub struct Broker {
    process: Option<Process>,
    port: u16,
    dir: PathBuf,
}

impl Broker {
    /// Takes a free port for a broker that is started later.
    pub fn reserve(dir: &Path) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("free port");
        let port = listener.local_addr().expect("port").port();
        Self { process: None, port, dir: dir.to_owned() }
    }

    /// Starts it, or starts it again, and waits until JetStream answers.
    pub async fn start(&mut self) {
        let mut command = Command::new(program());
        command.args(["--jetstream", "--addr", "127.0.0.1", "--port"]).arg(self.port.to_string());
        command.arg("--store_dir").arg(self.dir.join("jetstream"));
        self.process = Some(Process::start("nats-server", command, &self.dir));
        self.jetstream().await;
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Sends it a signal, if it runs.
    pub fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// A client of the test's own.
    pub async fn jetstream(&self) -> jetstream::Context {
        eventually("broker", async || {
            let client = async_nats::connect(self.url()).await.ok();
            if client.is_none() {
                tokio::time::sleep(START_RETRY).await;
            }
            let jetstream = jetstream::new(client?);
            jetstream.query_account().await.ok().map(|_| jetstream)
        })
        .await
    }
}

/// The nats-server to run: NATS_SERVER, else the one that `tools/install` has put aside, else that on PATH.
fn program() -> PathBuf {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin/nats-server");
    let installed = if installed.exists() { installed } else { "nats-server".into() };
    std::env::var_os("NATS_SERVER").map_or(installed, Into::into)
}
