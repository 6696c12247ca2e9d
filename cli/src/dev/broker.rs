//! The broker: a nats-server that is new enough, with its streams in the data folder.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::children::Children;
use super::data_dir::DataDir;
use super::log::log_tail;
use super::programs::Programs;
use crate::args::DevArgs;
use crate::die_with_parent;

/// The first version with atomic batches, which the order log is built on.
const OLDEST: (u32, u32) = (2, 12);
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);
const START_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Variables that would select another broker. The one of `dev` is a single server without authentication.
const BROKER_VARIABLES: [&str; 5] =
    ["NATS_CREDS", "NATS_TLS_CA", "NATS_TLS_CERT", "NATS_TLS_KEY", "ORDERS_REPLICAS"];
const NAME: &str = "nats-server";

/// The broker, as soon as it listens.
#[derive(Debug)]
pub(super) struct Broker {
    /// What its clients connect to.
    pub(super) url: String,
}

impl Broker {
    /// The command for a Waybill program that uses this broker. The help of `dev` lists the variables set here.
    pub(super) fn client_command(&self, programs: &Programs, program: &Path) -> io::Result<Command> {
        let mut command = programs.program_command(program)?;
        command.env("NATS_URL", &self.url);
        for variable in BROKER_VARIABLES {
            command.env_remove(variable);
        }
        Ok(command)
    }
}

/// Fails if the program is no nats-server, or one that is too old.
pub(super) async fn check_version(nats_server: &Path) -> anyhow::Result<()> {
    let shown = nats_server.display();
    let mut command = die_with_parent::command(nats_server)?;
    command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(VERSION_TIMEOUT, command.output())
        .await
        .map_err(|_| anyhow!("`{shown} --version` did not answer within {VERSION_TIMEOUT:?}"))?
        .with_context(|| format!("cannot run {shown}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Some(version) = version_in(&text) else {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{shown} is not a nats-server: `--version` prints {:?}", format!("{text}{complaint}").trim());
    };
    if version < OLDEST {
        bail!(
            "{shown} is version {}.{}, and Waybill needs {}.{} or newer: install a newer nats-server, or name \
             another with --nats-server or NATS_SERVER",
            version.0,
            version.1,
            OLDEST.0,
            OLDEST.1
        );
    }
    Ok(())
}

/// Starts the broker and waits until it listens.
pub(super) async fn start(
    args: &DevArgs,
    data: &DataDir,
    programs: &Programs,
    children: &mut Children,
) -> anyhow::Result<Broker> {
    let ports = data.ports();
    forget_old_ports(&ports).with_context(|| format!("cannot clear {}", ports.display()))?;
    // For nats-server 0 is the default port, and -1 a free one.
    let port = match args.nats_port {
        0 => "-1".to_owned(),
        port => port.to_string(),
    };
    let mut command = die_with_parent::command(&programs.nats_server)?;
    command
        .args(["--jetstream", "--addr", "127.0.0.1", "--port", &port])
        .arg("--store_dir")
        .arg(data.jetstream())
        .arg("--ports_file_dir")
        .arg(&ports);
    children.start_shared(NAME, command)?;

    let log = children.log_of(NAME);
    let url = children
        .while_alive(async {
            timeout(START_TIMEOUT, listening(&ports)).await.map_err(|_| {
                anyhow!("nats-server does not listen after {START_TIMEOUT:?}; {}", log_tail(&log))
            })
        })
        .await?;
    Ok(Broker { url })
}

/// The broker writes the file of its ports only once it listens. That is better proof than a port that answers, which
/// may belong to another program.
async fn listening(ports: &Path) -> String {
    loop {
        if let Some(url) = url_in(ports) {
            return url;
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// The URL in the broker's ports file; `None` if the file is missing or only partly written, and the caller checks
/// again.
fn url_in(ports: &Path) -> Option<String> {
    let mut files = fs::read_dir(ports).ok()?.filter_map(Result::ok);
    let file = files.find(|file| file.path().extension().is_some_and(|extension| extension == "ports"))?;
    let content: Value = serde_json::from_slice(&fs::read(file.path()).ok()?).ok()?;
    Some(content["nats"][0].as_str()?.to_owned())
}

/// A broker that was killed has left its file behind.
fn forget_old_ports(ports: &Path) -> io::Result<()> {
    for file in fs::read_dir(ports)? {
        fs::remove_file(file?.path())?;
    }
    Ok(())
}

/// Major and minor version, from `nats-server: v2.12.0-RC.3` and the like.
fn version_in(text: &str) -> Option<(u32, u32)> {
    let version = text.trim().strip_prefix("nats-server: v")?;
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert_eq!(version_in("nats-server: v2.15.1\n"), Some((2, 15)));
        assert!(version_in("nats-server: v2.9.25").unwrap() < OLDEST);
        assert!(version_in("nats-server: v2.12.0-RC.3").unwrap() >= OLDEST);
        assert!(version_in("nats-server: v3.0.0").unwrap() >= OLDEST);
        assert_eq!(version_in("GNU bash, version 5.2"), None);
    }

    #[test]
    fn a_ports_file_counts_once_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(url_in(folder.path()), None);
        let file = folder.path().join("nats-server_1.ports");
        fs::write(&file, r#"{"nats":["nats://127.0"#).unwrap();
        assert_eq!(url_in(folder.path()), None);
        fs::write(&file, r#"{"nats":["nats://127.0.0.1:4222"]}"#).unwrap();
        assert_eq!(url_in(folder.path()).as_deref(), Some("nats://127.0.0.1:4222"));
        forget_old_ports(folder.path()).unwrap();
        assert_eq!(url_in(folder.path()), None);
    }
}
