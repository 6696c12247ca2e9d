//! A folder with `waybill` and fakes of everything that `waybill dev` starts.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// Far more than anything here takes: a test that needs it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(10);
const FAKES: [&str; 6] = [
    "nats-server",
    "waybill-gateway",
    "waybill-inventory",
    "waybill-payment",
    "waybill-payment-sandbox",
    "waybill-fulfilment",
];

pub(crate) struct Stage {
    folder: TempDir,
}

impl Stage {
    pub(crate) fn new() -> Self {
        // Beside the binary, because hard links need the same file system. A symbolic link would resolve to the real
        // programs.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let stage = Self { folder };
        fs::hard_link(env!("CARGO_BIN_EXE_waybill"), stage.path("waybill")).unwrap();
        for name in FAKES {
            stage.add(name);
        }
        for folder in ["pids", "envs"] {
            fs::create_dir(stage.path(folder)).unwrap();
        }
        stage
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Another fake, beside those that are always there.
    pub(crate) fn add(&self, name: &str) {
        symlink(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/fake.sh"), self.path(name)).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    /// `waybill dev` on free ports, with nothing on PATH that could be mistaken for one of the fakes.
    pub(crate) fn dev(&self) -> Command {
        let mut command = Command::new(self.path("waybill"));
        command
            .arg("dev")
            .env("GRPC_ADDR", "127.0.0.1:0")
            .env("OPS_ADDR", "127.0.0.1:0")
            .env("OPERATIONS_ADDR", "127.0.0.1:0")
            .env("PAYMENT_SANDBOX_ADDR", "127.0.0.1:0")
            .env_remove("PAYMENT_URL")
            .env("WAYBILL_NATS_PORT", "0")
            .env("WAYBILL_DATA_DIR", self.path("data"))
            .env("NATS_SERVER", self.path("nats-server"))
            .env("PATH", "/usr/bin:/bin")
            .env("FAKE_PIDS", self.path("pids"))
            .env("FAKE_ENVS", self.path("envs"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// `waybill dev` with a gateway that is at `addr`.
    pub(crate) fn dev_with_gateway(&self, addr: SocketAddr) -> Command {
        let mut command = self.dev();
        command.env("FAKE_GRPC_ADDR", addr.to_string());
        command
    }

    /// The process ids of the fakes, once all of these have been started.
    pub(crate) async fn pids_of(&self, names: &[&str]) -> Vec<Pid> {
        let mut pids = Vec::new();
        for name in names {
            let file = self.path("pids").join(name);
            let pid = until(|| fs::read_to_string(&file).ok()?.trim().parse().ok()).await;
            pids.push(Pid::from_raw(pid));
        }
        pids
    }

    /// What a fake that has been started has in this variable.
    pub(crate) fn variable_of(&self, name: &str, variable: &str) -> Option<String> {
        let env = fs::read_to_string(self.path("envs").join(name)).unwrap();
        env.lines().find_map(|line| Some(line.strip_prefix(variable)?.strip_prefix('=')?.to_owned()))
    }

    /// The process ids of all fakes that have ever been started.
    pub(crate) fn pids_so_far(&self) -> Vec<Pid> {
        let files = fs::read_dir(self.path("pids")).unwrap();
        files
            .map(|file| fs::read_to_string(file.unwrap().path()).unwrap())
            .map(|pid| Pid::from_raw(pid.trim().parse().unwrap()))
            .collect()
    }
}

/// Waits for a condition, and fails if it never comes true.
pub(crate) async fn until<T>(mut condition: impl FnMut() -> Option<T>) -> T {
    let coming = async {
        loop {
            if let Some(value) = condition() {
                return value;
            }
            sleep(POLL_INTERVAL).await;
        }
    };
    timeout(PATIENCE, coming).await.expect("what was waited for did not come")
}

/// A zombie is as good as gone: only its new parent has not looked yet.
pub(crate) fn is_gone(pid: Pid) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['Z', 'X'])),
        Err(_) => true,
    }
}

pub(crate) fn send(child: &Child, signal: Signal) {
    let pid = child.id().expect("still running");
    kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}

pub(crate) async fn output_of(command: &mut Command) -> Output {
    timeout(PATIENCE, command.output()).await.expect("it does not end").unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}
