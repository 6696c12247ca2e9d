//! One child process: started, watched, signalled, and never left behind.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Once, OnceLock};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use serde_json::Value;

use crate::eventually;

/// More open files than any test needs.
const FILES_MAX: u64 = 65_536;

/// A running child process. Killed and reaped when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, with its output in `<dir>/<name>.log`.
    pub fn start(name: &str, mut command: Command, dir: &Path) -> Self {
        static FILES: Once = Once::new();
        FILES.call_once(allow_open_files);
        let log = dir.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log).expect("log file");
        let errors = output.try_clone().expect("log file");
        let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn();
        let child = child.unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        Self { name: name.to_owned(), child, log }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All that it has printed, over every start under this name.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for a line that `pick` makes something of.
    pub async fn line<T>(&mut self, what: &str, pick: impl Fn(&str) -> Option<T>) -> T {
        eventually(what, async || {
            let output = self.output();
            let found = output.lines().find_map(&pick);
            if found.is_none()
                && let Some(status) = self.child.try_wait().expect("child")
            {
                panic!("{} ended with {status} before {what}:\n{}", self.name, self.output());
            }
            found
        })
        .await
    }

    /// Waits for a JSON log line whose fields `pick` makes something of.
    pub async fn logged<T>(&mut self, what: &str, pick: impl Fn(&Value) -> Option<T>) -> T {
        let fields = |line: &str| serde_json::from_str::<Value>(line).ok().map(|line| line["fields"].clone());
        self.line(what, |line| pick(&fields(line)?)).await
    }

    /// Where it serves HTTP, once it says so.
    pub async fn ops_addr(&mut self) -> String {
        // An earlier process may have written to the same file.
        let pid = self.pid();
        let addr = |fields: &Value| {
            (fields["pid"] == pid).then(|| fields["ops_addr"].as_str().map(str::to_owned))?
        };
        self.logged("its HTTP address", addr).await
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.as_pid(), signal).expect("signal");
    }

    /// Stops it where it is, until `resume`. When this returns, none of its threads runs any more.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
        let wait = |flag| waitid(Id::Pid(self.as_pid()), flag | WaitPidFlag::WNOWAIT);
        if let Err(error) = wait(WaitPidFlag::WSTOPPED) {
            panic!("{} not stopped: {error}, {:?}", self.name, wait(WaitPidFlag::WEXITED));
        }
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn as_pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("pid"))
    }

    /// kill -9, and reap.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("reap");
    }

    /// Waits for it to end by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let name = self.name.clone();
        eventually(&format!("end of {name}"), async || self.child.try_wait().expect("child")).await
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ended().await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
        }
        if std::thread::panicking() {
            let output = self.output();
            let from = output.len().saturating_sub(4000);
            eprintln!("--- {} ---\n{}", self.name, output.get(from..).unwrap_or(&output));
        }
    }
}

/// Thousands of connections need as many open files, here and in the gateway, which
/// inherits the limit.
fn allow_open_files() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("limit of open files");
    setrlimit(Resource::RLIMIT_NOFILE, most.min(FILES_MAX), most).expect("limit of open files");
}

/// Path of one of the workspace's binaries, built by the profile that this test was built by.
pub fn binary(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(build).join(name)
}

/// Builds the binaries, which `cargo test -p waybill-tests` alone would not, and says where they are.
fn build() -> PathBuf {
    let test = std::env::current_exe().expect("own path");
    // target/<profile>/deps/<test>
    let folder = test.ancestors().nth(2).expect("target folder").to_owned();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--workspace", "--bins", "--locked", "--quiet", "--target-dir"])
        .arg(folder.parent().expect("target folder"))
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.stdin(Stdio::null()).status().expect("cargo");
    assert!(status.success(), "cargo build: {status}");
    folder
}

/// How long a process gets to come up, and no test depends on it being shorter.
pub(crate) const START_RETRY: Duration = Duration::from_millis(100);
