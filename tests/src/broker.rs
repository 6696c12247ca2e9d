//! A nats-server with JetStream on file storage.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use async_nats::{ConnectOptions, jetstream};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::eventually;
use crate::process::{Process, START_RETRY};

const USER: &str = "waybill";

/// The nats-server of one test. Keeps its port and its data when it is started again.
#[derive(Debug)]
pub struct Broker {
    process: Option<Process>,
    port: u16,
    dir: PathBuf,
    password: Option<&'static str>,
}

impl Broker {
    /// Takes a free port for a broker that is started later.
    pub fn reserve(dir: &Path) -> Self {
        Self { process: None, port: free_port(), dir: dir.to_owned(), password: None }
    }

    /// Lets in nobody but a user with this password, if there is one.
    pub(crate) fn with_password(self, password: Option<&'static str>) -> Self {
        Self { password, ..self }
    }

    /// Starts it, or starts it again, and waits until JetStream answers.
    pub async fn start(&mut self) {
        let data = self.data();
        self.run(|command| command.arg("--jetstream").arg("--store_dir").arg(data));
        self.jetstream().await;
    }

    /// Starts it with further settings, in the words of its configuration: of JetStream, and of the server. It may not be
    /// there yet.
    pub fn start_configured(&mut self, of_jetstream: &str, of_server: &str) {
        let data = self.data();
        let text = format!("jetstream {{ store_dir: {data:?}\n{of_jetstream} }}\n{of_server}\n");
        let file = self.dir.join("nats.conf");
        std::fs::write(&file, text).expect("configuration");
        self.run(|command| command.arg("--config").arg(file));
    }

    /// Starts it without JetStream; it may not be there yet.
    pub fn start_without_jetstream(&mut self) {
        self.run(|command| command);
    }

    fn run(&mut self, with: impl FnOnce(&mut Command) -> &mut Command) {
        let mut command = Command::new(program());
        with(command.args(["--addr", "127.0.0.1", "--port"]).arg(self.port.to_string()));
        if let Some(password) = self.password {
            command.args(["--user", USER, "--pass", password]);
        }
        self.process = Some(Process::start("nats-server", command, &self.dir));
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.running().pid()
    }

    /// Where its data lies.
    pub fn data(&self) -> PathBuf {
        self.dir.join("jetstream")
    }

    /// kill -9, and all that it stored is gone.
    pub fn lose_data(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.data()).expect("data");
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Stops it where it is, until `resume`.
    pub fn pause(&self) {
        self.running().pause();
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.running().resume();
    }

    fn running(&self) -> &Process {
        self.process.as_ref().expect("a broker that runs")
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Where it is, and how to get in.
    pub fn url(&self) -> String {
        self.url_with(&self.password.map(login).unwrap_or_default())
    }

    /// Where it is, for a user with this password.
    pub fn url_of(&self, password: &str) -> String {
        self.url_with(&login(password))
    }

    fn url_with(&self, login: &str) -> String {
        format!("nats://{login}127.0.0.1:{}", self.port)
    }

    /// A client of the test's own.
    pub async fn jetstream(&self) -> jetstream::Context {
        eventually("broker", async || {
            let mut options = ConnectOptions::new();
            if let Some(password) = self.password {
                options = options.user_and_password(USER.to_owned(), password.to_owned());
            }
            let client = options.connect(self.url_with("")).await.ok();
            if client.is_none() {
                tokio::time::sleep(START_RETRY).await;
            }
            let jetstream = jetstream::new(client?);
            jetstream.query_account().await.ok().map(|_| jetstream)
        })
        .await
    }
}

/// A port that nobody listens on at the moment.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("free port");
    listener.local_addr().expect("port").port()
}

fn login(password: &str) -> String {
    format!("{USER}:{}@", utf8_percent_encode(password, NON_ALPHANUMERIC))
}

/// The nats-server to run: NATS_SERVER, else the one that `tools/install` has put aside, else that on PATH.
fn program() -> PathBuf {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin/nats-server");
    let installed = if installed.exists() { installed } else { "nats-server".into() };
    std::env::var_os("NATS_SERVER").map_or(installed, Into::into)
}
