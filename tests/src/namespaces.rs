//! A network of its own for a cluster: each server, and the programs, in a network namespace, joined by a bridge, so
//! that a test can cut any of them off, both ways or one way.
//!
//! A link that is down drops packets both ways. A wrong neighbour entry drops them silently in one direction: its owner
//! sends to an address that no host on the bridge has.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex as StdMutex};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::{Mutex, MutexGuard};

use crate::skip;

/// Names of namespaces begin with this, followed by the id of the test's process.
const PREFIX: &str = "waybill-test-";
/// A hardware address that no host has.
const NOBODY: &str = "02:00:00:00:00:ff";
/// Network prefixes to choose from, of 198.18.0.0/15, which is reserved for tests (RFC 2544).
const SUBNETS: u32 = 512;
/// The test itself, on the bridge too.
const TEST: u8 = 1;
/// The first server; the others follow.
const FIRST_SERVER: u8 = 11;
/// The first host of programs.
const FIRST_OTHER: u8 = 101;

/// One network at a time in a process: a cluster under load takes all that a small machine has.
static TURN: Mutex<()> = Mutex::const_new(());

/// Servers and programs, each in its network namespace, on one bridge. Gone, with all that runs in it, when dropped.
#[derive(Debug)]
pub struct Network {
    name: String,
    subnet: [u8; 3],
    servers: Vec<Host>,
    programs: Host,
    others: StdMutex<Vec<Host>>,
    _turn: MutexGuard<'static, ()>,
}

/// A network namespace with an address on the bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    name: String,
    namespace: String,
    bridge: String,
    address: Ipv4Addr,
}

impl Network {
    /// Makes a network for so many servers, once no other test of this process has one. `None`, and says so, where
    /// namespaces cannot be made; with CI=true that is a failure.
    pub async fn lay(servers: usize) -> Option<Arc<Self>> {
        let turn = TURN.lock().await;
        if let Err(reason) = may_be_made() {
            skip(&format!("no network namespaces: {reason}"));
            return None;
        }
        remove_stale();
        let name = format!("{PREFIX}{}-{:08x}", std::process::id(), rand::random::<u32>());
        let bridge = format!("{name}-bridge");
        ip(&["netns", "add", &bridge]);
        ip(&["-n", &bridge, "link", "add", "bridge", "type", "bridge", "forward_delay", "0"]);
        ip(&["-n", &bridge, "link", "set", "bridge", "up"]);
        let subnet = join_test(&bridge);
        let host = |host: &str, number| Host::make(&name, host, &bridge, subnet, number);
        let servers = (FIRST_SERVER..).zip(0..servers).map(|(number, n)| host(&format!("n{n}"), number));
        let servers = servers.collect();
        let programs = host("programs", FIRST_OTHER);
        Some(Arc::new(Self { servers, programs, subnet, others: StdMutex::default(), name, _turn: turn }))
    }

    /// The nth server's host.
    pub fn server(&self, n: usize) -> &Host {
        &self.servers[n]
    }

    /// The host that programs run on, if a test does not say otherwise.
    pub fn programs(&self) -> &Host {
        &self.programs
    }

    /// The address of the test itself.
    pub fn test_address(&self) -> IpAddr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, TEST).into()
    }

    /// One of the further hosts.
    pub fn host(&self, name: &str) -> Option<Host> {
        self.others.lock().expect("hosts").iter().find(|host| host.name == name).cloned()
    }

    /// One more host.
    pub fn another_host(&self, name: &str) -> Host {
        let mut others = self.others.lock().expect("hosts");
        let number = FIRST_OTHER + 1 + u8::try_from(others.len()).expect("few hosts");
        let host = Host::make(&self.name, name, &self.servers[0].bridge, self.subnet, number);
        others.push(host.clone());
        host
    }

    /// Cuts the host off from all others, both ways.
    pub fn cut(&self, host: &Host) {
        ip(&["-n", &host.bridge, "link", "set", &host.name, "down"]);
    }

    /// Packets of `from` to `to` are lost from now on, silently; the other direction works.
    pub fn lose(&self, from: &Host, to: &Host) {
        let to = to.address.to_string();
        let entry = ["neigh", "replace", &to, "lladdr", NOBODY, "nud", "permanent", "dev", "eth0"];
        ip(&[&["-n", &from.namespace], &entry[..]].concat());
    }

    /// Cuts two hosts off from each other, both ways.
    pub fn cut_between(&self, one: &Host, other: &Host) {
        self.lose(one, other);
        self.lose(other, one);
    }

    /// The nth server is cut off from the other servers, both ways; programs still reach it.
    pub fn isolate(&self, n: usize) {
        self.deafen(n);
        self.mute(n);
    }

    /// The nth server no longer hears the other servers, which hear it; programs still reach it.
    pub fn deafen(&self, n: usize) {
        self.other_servers(n).for_each(|other| self.lose(other, &self.servers[n]));
    }

    /// The nth server is no longer heard by the other servers, which it hears; programs still reach it.
    pub fn mute(&self, n: usize) {
        self.other_servers(n).for_each(|other| self.lose(&self.servers[n], other));
    }

    fn other_servers(&self, n: usize) -> impl Iterator<Item = &Host> {
        let servers = self.servers.iter().enumerate();
        servers.filter(move |(other, _)| *other != n).map(|(_, host)| host)
    }

    /// Heals every cut.
    pub fn heal(&self) {
        self.heal_servers();
        let others = self.others.lock().expect("hosts");
        [&self.programs].into_iter().chain(others.iter()).for_each(restore);
    }

    /// Heals every cut between servers. Packets of other hosts to a server that they were cut off from are still lost.
    pub fn heal_servers(&self) {
        self.servers.iter().for_each(restore);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        remove(|namespace| namespace.starts_with(&self.name));
    }
}

impl Host {
    fn make(network: &str, name: &str, bridge: &str, [a, b, c]: [u8; 3], number: u8) -> Self {
        let namespace = format!("{network}-{name}");
        let address = Ipv4Addr::new(a, b, c, number);
        let inside = |arguments: &[&str]| ip(&[&["-n", &namespace], arguments].concat());
        ip(&["netns", "add", &namespace]);
        inside(&["link", "set", "lo", "up"]);
        inside(&["link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", bridge]);
        inside(&["address", "add", &format!("{address}/24"), "dev", "eth0"]);
        inside(&["link", "set", "eth0", "up"]);
        join(bridge, name);
        Self { name: name.to_owned(), namespace, bridge: bridge.to_owned(), address }
    }

    /// Its address.
    pub fn address(&self) -> IpAddr {
        self.address.into()
    }

    /// A command that runs the program on this host, in a process of the same id.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(tool());
        command.args(["netns", "exec", &self.namespace]).arg(program);
        command
    }
}

/// Connects the host with all others again.
fn restore(host: &Host) {
    ip(&["-n", &host.namespace, "neigh", "flush", "dev", "eth0", "nud", "permanent"]);
    ip(&["-n", &host.bridge, "link", "set", &host.name, "up"]);
}

/// A command that runs the program on the host, if there is one, else where the test runs.
pub(crate) fn command_on(host: Option<&Host>, program: &Path) -> Command {
    host.map_or_else(|| Command::new(program), |host| host.command(program))
}

/// Connects the test's own namespace to the bridge too, in a subnet that no other process on this machine uses: the
/// name of the link reserves it.
fn join_test(bridge: &str) -> [u8; 3] {
    for _ in 0..SUBNETS {
        let [_, _, high, low] = rand::random_range(0..SUBNETS).to_be_bytes();
        let subnet = [198, 18 + high, low];
        let link = format!("waybill{}-{}", subnet[1], subnet[2]);
        let arguments = ["link", "add", &link, "type", "veth", "peer", "name", "test", "netns", bridge];
        if !run(&arguments).status.success() {
            continue;
        }
        let [a, b, c] = subnet;
        ip(&["address", "add", &format!("{a}.{b}.{c}.{TEST}/24"), "dev", &link]);
        ip(&["link", "set", &link, "up"]);
        join(bridge, "test");
        return subnet;
    }
    panic!("no subnet is free");
}

fn join(bridge: &str, port: &str) {
    ip(&["-n", bridge, "link", "set", port, "master", "bridge"]);
    ip(&["-n", bridge, "link", "set", port, "up"]);
}

/// Whether this process may make namespaces; else why not.
fn may_be_made() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("not root".to_owned());
    }
    let probe = format!("{PREFIX}{}-probe", std::process::id());
    match Command::new(tool()).args(["netns", "add", &probe]).output() {
        Err(error) => Err(format!("ip (iproute2): {error}")),
        Ok(output) if !output.status.success() => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Ok(_) => {
            ip(&["netns", "delete", &probe]);
            Ok(())
        }
    }
}

/// Removes what tests have left that were killed themselves.
fn remove_stale() {
    remove(|namespace| {
        let pid = namespace.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-'));
        pid.is_some_and(|(pid, _)| !Path::new("/proc").join(pid).exists())
    });
}

/// Removes the namespaces, and kills what runs in them.
fn remove(which: impl Fn(&str) -> bool) {
    let namespaces = run(&["netns", "list"]).stdout;
    let namespaces = String::from_utf8_lossy(&namespaces);
    let names = namespaces.lines().filter_map(|line| line.split_whitespace().next());
    for namespace in names.filter(|namespace| which(namespace)) {
        let pids = run(&["netns", "pids", namespace]).stdout;
        for pid in String::from_utf8_lossy(&pids).lines().filter_map(|pid| pid.trim().parse().ok()) {
            // The process may have exited meanwhile.
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
        // Another test may remove the same one.
        run(&["netns", "delete", namespace]);
    }
}

fn ip(arguments: &[&str]) {
    let output = run(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {}", arguments.join(" "), error.trim());
}

/// Where ip is: users' PATH, and that of a program whose environment is cleared, may lack its folder.
fn tool() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join("ip")).find(|ip| ip.exists()).unwrap_or_else(|| "ip".into())
}

fn run(arguments: &[&str]) -> Output {
    Command::new(tool()).args(arguments).output().expect("ip, of iproute2")
}
