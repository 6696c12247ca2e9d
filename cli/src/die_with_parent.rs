//! Programs that never outlive `waybill`, however it ends.
//!
//! A graceful stop uses signals, but after a `kill -9` no process sends them. So each child is first `waybill tether`,
//! which has the kernel kill it when its parent dies, and then becomes the program itself, with the same process id. On
//! systems other than Linux a killed `waybill` leaves its children running.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;

use anyhow::anyhow;
use nix::unistd::{Pid, getppid};

use crate::args::TetherArgs;

/// The command for a `program` that dies with this process, or rather with the thread that starts it. Arguments
/// that are added to it are the program's.
pub(crate) fn command(program: &Path) -> io::Result<tokio::process::Command> {
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.arg("tether").arg(Pid::this().to_string()).arg("--").arg(program);
    Ok(command)
}

/// The child's side. Comes back only with the reason why it could not become the program.
pub(crate) fn become_program(args: &TetherArgs) -> anyhow::Error {
    let [program, arguments @ ..] = &args.program[..] else {
        return anyhow!("no program given");
    };
    if let Err(error) = die_with_parent() {
        return anyhow!("cannot tie this process to its parent: {error}");
    }
    // The parent may have died before the line above; then no signal comes.
    if getppid() != Pid::from_raw(args.parent_pid) {
        return anyhow!("process {} is not, or no longer, the parent", args.parent_pid);
    }
    let error = std::process::Command::new(program).args(arguments).exec();
    anyhow!("cannot run {}: {error}", Path::new(program).display())
}

#[cfg(target_os = "linux")]
fn die_with_parent() -> nix::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent() -> nix::Result<()> {
    Ok(())
}
