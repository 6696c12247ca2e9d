//! A nats-server with JetStream on file storage.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::{Client, ConnectError, ConnectOptions, jetstream};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::eventually;
use crate::process::{Process, START_RETRY};

const USER: &str = "waybill";
/// The users of a broker that has some, and what it calls the passwords of each.
const USERS: [&str; 6] = ["gateway", "inventory", "payment", "fulfilment", "provisioner", "sys"];
/// Who may do what, as it is shipped.
const ACCOUNTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/nats/accounts.conf");

/// The nats-server of one test. Keeps its port and its data when it is started again.
#[derive(Debug)]
pub struct Broker {
    process: Option<Process>,
    port: u16,
    dir: PathBuf,
    password: Option<&'static str>,
    users: bool,
}

impl Broker {
    /// Takes a free port for a broker that is started later.
    pub fn reserve(dir: &Path) -> Self {
        Self { process: None, port: free_port(), dir: dir.to_owned(), password: None, users: false }
    }

    /// Lets in nobody but a user with this password, if there is one.
    pub(crate) fn with_password(self, password: Option<&'static str>) -> Self {
        Self { password, ..self }
    }

    /// Gives each program a user of its own, who may do what deploy/nats says and nothing else.
    pub(crate) fn with_users(self, users: bool) -> Self {
        Self { users, ..self }
    }

    /// Starts it, or starts it again, and waits until JetStream answers.
    pub async fn start(&mut self) {
        let data = self.data();
        self.run(|command| command.arg("--jetstream").arg("--store_dir").arg(data));
        if self.users {
            eventually("JetStream", async || self.answers().await.then_some(())).await;
        } else {
            self.jetstream().await;
        }
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
        if self.users {
            let config = self.dir.join("nats-server.conf");
            std::fs::copy(ACCOUNTS, self.dir.join("accounts.conf")).expect("accounts");
            std::fs::write(&config, "include ./accounts.conf\n").expect("configuration");
            command.arg("--config").arg(config);
            for user in USERS {
                command.env(format!("NATS_{}_PASSWORD", user.to_uppercase()), password_of(user));
            }
        }
        self.process = Some(Process::start("nats-server", command, &self.dir));
    }

    /// Whether JetStream says anything to the one who may ask whether a stream is there.
    async fn answers(&self) -> bool {
        let Ok(client) = self.client_of("provisioner").await else {
            tokio::time::sleep(START_RETRY).await;
            return false;
        };
        match jetstream::new(client).get_stream("ORDERS").await {
            Ok(_) => true,
            Err(error) => matches!(error.kind(), GetStreamErrorKind::JetStream(_)),
        }
    }

    /// A client of the test's own, who is one of the broker's users.
    pub async fn client_of(&self, user: &str) -> Result<Client, ConnectError> {
        let options = ConnectOptions::with_user_and_password(user.to_owned(), password_of(user));
        options.custom_inbox_prefix(inbox_of(user)).connect(self.url_with("")).await
    }

    /// Where it is for a program; with a user of its own, if there are some.
    pub fn url_for(&self, program: &str) -> String {
        if self.users { self.url_with(&format!("{program}:{}@", password_of(program))) } else { self.url() }
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

/// What its answers come to.
pub fn inbox_of(user: &str) -> String {
    format!("_INBOX_{}", if user == "gateway" { "waybill-gateway" } else { user })
}

fn password_of(user: &str) -> String {
    format!("password-of-{user}")
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
