//! A nats-server with JetStream on file storage.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use async_nats::{Client, ConnectError, ConnectOptions, jetstream};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::eventually;
use crate::namespaces::{Host, Network, command_on};
use crate::process::{Process, START_RETRY, binary};

/// The user with all rights, for the test's own clients.
const USER: &str = "waybill";
/// The further users of a broker that has some: one for each program, and the broker's own operator.
const USERS: [&str; 6] = ["gateway", "inventory", "payment", "fulfilment", "provisioner", "sys"];
/// Where a server listens that has a host of its own.
const PORT: u16 = 4222;
/// The users with least privilege, as shipped.
const ACCOUNTS: &str = include_str!("../../deploy/nats/accounts.conf");

/// The nats-server of one test. Keeps its port and its data when it is started again.
#[derive(Debug)]
pub struct Broker {
    process: Option<Process>,
    address: SocketAddr,
    /// Where it runs, if that is not where the test does.
    host: Option<Host>,
    /// The other servers of its cluster.
    peers: Vec<SocketAddr>,
    dir: PathBuf,
    password: Option<&'static str>,
    users: Option<Users>,
    provisioning: Option<Process>,
}

/// That each program is a user of its own, with the rights of deploy/nats and no others.
#[derive(Clone, Debug)]
pub(crate) struct Users {
    /// Whether what the programs need is made in a broker that holds nothing yet.
    pub(crate) provisioned: bool,
    /// The prefix of subjects that only the test may publish on, although the file restricts them.
    pub(crate) withheld: Option<&'static str>,
    /// The settings of `waybill provision`.
    pub(crate) environment: Vec<(&'static str, String)>,
}

impl Broker {
    /// Takes a free port for a broker that is started later.
    pub fn reserve(dir: &Path) -> Self {
        let address = (Ipv4Addr::LOCALHOST, free_port()).into();
        let (dir, peers) = (dir.to_owned(), Vec::new());
        let (password, users) = (None, None);
        Self { process: None, address, host: None, peers, dir, password, users, provisioning: None }
    }

    /// Takes free ports for the other servers of a cluster of this size, for the settings of programs.
    pub(crate) fn with_peers(self, servers: usize) -> Self {
        Self { peers: (1..servers).map(|_| (Ipv4Addr::LOCALHOST, free_port()).into()).collect(), ..self }
    }

    /// Puts it and the other servers of its cluster on the hosts of a network, if there is one.
    pub(crate) fn on_network(self, network: Option<&Network>) -> Self {
        let Some(network) = network else { return self };
        let at = |n: usize| SocketAddr::new(network.server(n).address(), PORT);
        let peers = (1..=self.peers.len()).map(at).collect();
        Self { address: at(0), host: Some(network.server(0).clone()), peers, ..self }
    }

    /// Puts it on a host of a network, if that is given.
    pub(crate) fn on(self, host: Option<Host>) -> Self {
        Self { host, ..self }
    }

    /// The nth of those, with the same users; only other servers create streams in it.
    pub(crate) fn peer(&self, n: usize, dir: &Path) -> Self {
        let users = self.users.clone().map(|users| Users { provisioned: false, ..users });
        let peer = Self { address: self.peers[n], ..Self::reserve(dir) };
        peer.with_password(self.password).with_users(users)
    }

    /// Requires this password, if there is one.
    pub(crate) fn with_password(self, password: Option<&'static str>) -> Self {
        Self { password, ..self }
    }

    /// Gives each program a user of its own, if so.
    pub(crate) fn with_users(self, users: Option<Users>) -> Self {
        Self { users, ..self }
    }

    /// Starts it, or starts it again, and waits until JetStream answers; and until what the programs need is made, if
    /// it is to be.
    pub async fn start(&mut self) {
        let data = self.data();
        self.run("", |command| command.arg("--jetstream").arg("--store_dir").arg(data));
        self.jetstream().await;
        if let Some(process) = &mut self.provisioning {
            provisioned(process).await;
        }
    }

    /// Starts it with further settings, in the words of its configuration: of JetStream, and of the server. It may not
    /// be available yet.
    pub fn start_configured(&mut self, of_jetstream: &str, of_server: &str) {
        let data = self.data();
        let text = format!("jetstream {{ store_dir: {data:?}\n{of_jetstream} }}\n{of_server}\n");
        self.run(&text, |command| command);
    }

    /// Starts it without JetStream; it may not be available yet.
    pub fn start_without_jetstream(&mut self) {
        self.run("", |command| command);
    }

    fn run(&mut self, config: &str, with: impl FnOnce(&mut Command) -> &mut Command) {
        let is_new = !self.data().exists();
        let mut command = command_on(self.host.as_ref(), &nats_server());
        let (addr, port) = (self.address.ip().to_string(), self.address.port().to_string());
        with(command.args(["--addr", &addr, "--port", &port]));
        let mut config = config.to_owned();
        if let Some(users) = &self.users {
            let own =
                format!("users: [\n{{ user: {USER}, password: $NATS_{}_PASSWORD }}", USER.to_uppercase());
            let mut accounts = ACCOUNTS.replacen("users: [", &own, 1);
            if let Some(withheld) = users.withheld {
                accounts = accounts.replace(withheld, &format!("{withheld}-withheld"));
            }
            std::fs::write(self.dir.join("accounts.conf"), accounts).expect("accounts");
            config += "include ./accounts.conf\n";
            for user in USERS.into_iter().chain([USER]) {
                // In quotes; otherwise the configuration parser guesses the type.
                command.env(
                    format!("NATS_{}_PASSWORD", user.to_uppercase()),
                    format!("{:?}", self.password_of(user)),
                );
            }
        } else if let Some(password) = self.password {
            command.args(["--user", USER, "--pass", password]);
        }
        if !config.is_empty() {
            let file = self.dir.join("nats.conf");
            std::fs::write(&file, config).expect("configuration");
            command.arg("--config").arg(file);
        }
        self.process = Some(Process::start("nats-server", command, &self.dir));
        let provisioned = self.users.as_ref().is_some_and(|users| users.provisioned);
        if is_new && provisioned {
            self.provisioning = Some(self.start_provisioning(&[]));
        }
    }

    /// The same as soon as the broker is available; nothing waits for it.
    pub fn provision_soon(&mut self) {
        self.provisioning = self.users.is_some().then(|| self.start_provisioning(&[]));
    }

    fn start_provisioning(&self, args: &[&str]) -> Process {
        let mut command = Command::new(binary("waybill"));
        let environment = self.users.iter().flat_map(|users| users.environment.iter().cloned());
        command
            .env_clear()
            .arg("provision")
            .args(args)
            .envs(environment)
            .env("NATS_URL", self.url_for("provisioner"));
        Process::start("provision", command, &self.dir)
    }

    /// Has an operator make what the programs need, where they may not do it themselves.
    pub async fn provision(&self) {
        if self.users.is_some() {
            self.provision_with(&[]).await;
        }
    }

    /// Whether each program is a user of its own.
    pub fn has_users(&self) -> bool {
        self.users.is_some()
    }

    /// `waybill provision`, with or without users of least privilege.
    pub async fn provision_with(&self, args: &[&str]) {
        provisioned(&mut self.start_provisioning(args)).await;
    }

    /// A client of the test's own, who is one of the broker's users.
    pub async fn client_of(&self, user: &str) -> Result<Client, ConnectError> {
        let options = ConnectOptions::with_user_and_password(user.to_owned(), self.password_of(user));
        options.custom_inbox_prefix(inbox_of(user)).connect(self.url_with("")).await
    }

    /// Where it is for a program; with a user of its own, if there are some.
    pub fn url_for(&self, program: &str) -> String {
        self.url_at(self.address(), program)
    }

    /// The same for a program that reaches it by way of another address.
    pub(crate) fn url_at(&self, address: SocketAddr, program: &str) -> String {
        let user = self.user_of(program);
        let peers = self.peers.iter().map(|peer| format!(",nats://{peer}"));
        format!("nats://{}{address}{}", self.login_of(user), peers.collect::<String>())
    }

    /// Where this server alone is for a program.
    pub(crate) fn single_url_for(&self, program: &str) -> String {
        format!("nats://{}{}", self.login_of(self.user_of(program)), self.address)
    }

    /// The user of a program. A step that is not shipped has none of its own, and connects as the one with all rights.
    fn user_of<'a>(&self, program: &'a str) -> &'a str {
        if self.users.is_some() && USERS.contains(&program) { program } else { USER }
    }

    /// The options of a client that speaks the NATS protocol itself, as fields of JSON.
    pub fn words_of(&self, user: &str) -> String {
        format!(r#""user":{:?},"pass":{:?}"#, user, self.password_of(user))
    }

    fn login_of(&self, user: &str) -> String {
        let asks = self.users.is_some() || self.password.is_some();
        if asks { login(user, &self.password_of(user)) } else { String::new() }
    }

    fn password_of(&self, user: &str) -> String {
        self.password.map_or_else(|| format!("password-of-{user}"), str::to_owned)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.running().pid()
    }

    /// All that it has logged.
    pub fn output(&self) -> String {
        self.running().output()
    }

    /// Where its data is stored.
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
        self.address
    }

    /// Its URL, with the credentials of the user who may do everything.
    pub fn url(&self) -> String {
        self.url_with(&self.login_of(USER))
    }

    /// Where it is, for a user with this password.
    pub fn url_of(&self, password: &str) -> String {
        self.url_with(&login(USER, password))
    }

    fn url_with(&self, login: &str) -> String {
        format!("nats://{login}{}", self.address())
    }

    /// A client of the test's own, who may do everything.
    pub async fn jetstream(&self) -> jetstream::Context {
        eventually("broker", async || {
            let mut options = ConnectOptions::new();
            if self.users.is_some() || self.password.is_some() {
                options = options.user_and_password(USER.to_owned(), self.password_of(USER));
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

async fn provisioned(process: &mut Process) {
    let status = process.ended().await;
    assert!(status.success(), "{status}: {}", process.output());
}

/// A port without a listener that no connection gets as its local port: those start at 32768.
pub fn free_port() -> u16 {
    let mut ports = std::iter::repeat_with(|| rand::random_range(10_000..32_768));
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("free port")
}

/// The inbox prefix of its answers.
pub fn inbox_of(user: &str) -> String {
    format!("_INBOX_{}", if user == "gateway" { "waybill-gateway" } else { user })
}

fn login(user: &str, password: &str) -> String {
    format!("{user}:{}@", utf8_percent_encode(password, NON_ALPHANUMERIC))
}

/// The nats-server to run: NATS_SERVER, else the one that `tools/install` has put aside, else that on PATH.
pub fn nats_server() -> PathBuf {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin/nats-server");
    let installed = if installed.exists() { installed } else { "nats-server".into() };
    std::env::var_os("NATS_SERVER").map_or(installed, Into::into)
}
