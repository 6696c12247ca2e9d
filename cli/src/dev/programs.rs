//! Where the programs are that `dev` runs.

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use routes::Routes;
use tokio::process::Command;

use super::children::STOP_TIMEOUT;
use super::observe::Observers;
use crate::args::DevArgs;
use crate::die_with_parent;
use crate::usage::UsageError;

/// What our own programs get for their drain: a little less than the time after which they are killed.
const DRAIN_TIMEOUT: Duration = STOP_TIMEOUT.saturating_sub(Duration::from_secs(2));
/// Where `make observe` puts what it installs.
const TOOLS: &str = ".tools/bin";
/// The lines by which our programs say that they have started, and which `dev` reads, in the words of RUST_LOG:
/// "listening" of all, and "processing" of the processors.
const START_LINES: &str = "gateway[{grpc_addr}]=info,waybill_payment_sandbox[{grpc_addr}]=info,\
                           processor::run[{ops_addr}]=info,\
                           processor::runtime[{workers}]=info";

/// Every program, found before the first is started.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) nats_server: PathBuf,
    pub(super) gateway: PathBuf,
    pub(super) payment_sandbox: PathBuf,
    /// By step of any route, for each step that has a program here.
    pub(super) processors: Vec<Processor>,
    /// Steps of routes that have none: their orders wait until the user runs one.
    pub(super) elsewhere: Vec<String>,
    /// With `--observe`.
    pub(super) observers: Option<Observers>,
    /// Variables that our own programs get, or get rid of.
    pub(super) variables: Vec<(&'static str, Option<String>)>,
}

/// The program of a step.
#[derive(Debug)]
pub(super) struct Processor {
    pub(super) step: String,
    pub(super) program: PathBuf,
    /// The service that it calls, with `--step`.
    pub(super) url: Option<String>,
}

impl Programs {
    /// Looks for the programs of others where the user says, and for our own ones beside this one, else on PATH.
    pub(super) fn find(args: &DevArgs) -> anyhow::Result<Self> {
        let nats_server = &args.nats_server;
        let nats_server = on_path(nats_server).ok_or_else(|| {
            anyhow!(
                "{} not found: install nats-server 2.12 or newer, or name one with --nats-server or NATS_SERVER",
                nats_server.display()
            )
        })?;
        let this_program = env::current_exe().context("cannot find the path of this program")?;
        let here = this_program.parent().unwrap_or(Path::new("."));
        let routes = Routes::read(&args.routes).map_err(|error| UsageError(error.to_string()))?;
        if let Some((unknown, _)) =
            args.steps.iter().find(|(name, _)| !routes.steps().contains(&name.as_str()))
        {
            let steps = Vec::from_iter(routes.steps()).join(", ");
            return Err(UsageError(format!(
                "--step {unknown}: no route has this step; the steps of ROUTES_FILE are {steps}"
            ))
            .into());
        }
        let (mut processors, mut elsewhere) = (Vec::new(), Vec::new());
        for step in routes.steps() {
            let url = args.steps.iter().find(|(name, _)| name == step).map(|(_, url)| url.clone());
            let name = if url.is_some() { "waybill-step".to_owned() } else { format!("waybill-{step}") };
            match find_program(&name, here) {
                Ok(program) => processors.push(Processor { step: step.to_owned(), program, url }),
                Err(error) if url.is_some() => return Err(error),
                Err(error) if Routes::default().steps().contains(&step) => return Err(error),
                Err(_) => elsewhere.push(step.to_owned()),
            }
        }
        Ok(Self {
            nats_server,
            gateway: find_program("waybill-gateway", here)?,
            payment_sandbox: find_program("waybill-payment-sandbox", here)?,
            processors,
            elsewhere,
            observers: args.observe.then(|| observers(args)).transpose()?,
            variables: Vec::new(),
        })
    }

    /// The command for a Waybill program whose log is read here. The help of `dev` lists the variables set here.
    pub(super) fn program_command(&self, program: &Path) -> io::Result<Command> {
        let mut command = die_with_parent::command(program)?;
        command
            .env("LOG_FORMAT", "json")
            .env("DRAIN_TIMEOUT", humantime::format_duration(DRAIN_TIMEOUT).to_string());
        if let Some(mut log) = env::var_os("RUST_LOG") {
            log.push(",");
            log.push(START_LINES);
            command.env("RUST_LOG", log);
        }
        for (name, value) in &self.variables {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        Ok(command)
    }
}

fn observers(args: &DevArgs) -> anyhow::Result<Observers> {
    let jaeger = observer(&args.jaeger, "--jaeger or JAEGER")?;
    let prometheus = observer(&args.prometheus, "--prometheus or PROMETHEUS")?;
    Ok(Observers { jaeger, prometheus })
}

fn observer(program: &Path, setting: &str) -> anyhow::Result<PathBuf> {
    let installed = Path::new(TOOLS).join(program);
    on_path(program).or_else(|| is_program(&installed).then_some(installed)).ok_or_else(|| {
        let name = program.display();
        let complaint = format!(
            "{name} not found, neither on PATH nor in {TOOLS}, and --observe needs it: `make observe` installs it (with \
             Go; it takes minutes), or name one with {setting}"
        );
        UsageError(complaint).into()
    })
}

fn find_program(name: &str, here: &Path) -> anyhow::Result<PathBuf> {
    let beside = here.join(name);
    if is_program(&beside) {
        return Ok(beside);
    }
    on_path(Path::new(name)).ok_or_else(|| {
        anyhow!(
            "{name} not found, neither in {} nor on PATH: build it with `cargo build --workspace`",
            here.display()
        )
    })
}

/// Looks up a program as a shell does: a name with a slash is a path.
fn on_path(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return is_program(program).then(|| program.to_owned());
    }
    env::split_paths(&env::var_os("PATH")?)
        .map(|folder| folder.join(program))
        .find(|candidate| is_program(candidate))
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_up_and_a_path_is_not() {
        assert!(on_path(Path::new("sh")).is_some());
        assert_eq!(on_path(Path::new("/bin/sh")), Some(PathBuf::from("/bin/sh")));
        assert_eq!(on_path(Path::new("./sh")), None);
    }

    #[test]
    fn a_missing_program_says_how_to_get_it() {
        let refused = find_program("waybill-nothing", Path::new("/nowhere")).unwrap_err().to_string();
        assert!(refused.contains("waybill-nothing not found") && refused.contains("cargo build --workspace"));
    }
}
