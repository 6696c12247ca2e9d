//! Programs in other languages, made from our protos by the tools of their language.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{mirror, skip};

/// The repository.
pub const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const TESTS: &str = env!("CARGO_MANIFEST_DIR");
/// What builds leave in a program's folder.
const BUILT: [&str; 6] = ["dist", "gen", "node_modules", "packages", "program", "target"];
/// What tools/install builds with, so that Go's standard library is built already.
const CGO: (&str, &str) = ("CGO_ENABLED", "0");

/// Whether there is such a program. Without it the test is skipped.
pub fn found(program: &str, asked: &[&str]) -> bool {
    let output = Command::new(program).args(asked).stdin(Stdio::null()).output();
    let found = output.is_ok_and(|output| output.status.success());
    if !found {
        skip(&format!("no {program}"));
    }
    found
}

/// Runs a command that has to succeed, and gives what it prints.
pub fn succeeds(command: &mut Command) -> Vec<u8> {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = [&output.stdout[..], &output.stderr].concat();
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&said));
    output.stdout
}

/// Where a program stands below `tests`.
pub fn source(name: &str) -> PathBuf {
    Path::new(TESTS).join(name)
}

/// A copy of it, in which it can be built without a trace in the repository.
pub fn folder(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("own path");
    // target/<profile>/deps/<test>
    let folder = test.ancestors().nth(3).expect("target").join(name);
    mirror(&source(name), &folder, &BUILT);
    folder
}

/// The command, to be run in this folder.
pub fn at(folder: &Path, program: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder);
    command
}

/// Generates by the folder's buf.gen.yaml what a program needs that knows OrderService, and what it needs of others.
pub fn generate(folder: &Path, others: &[&[&str]]) {
    let buf = succeeds(at(Path::new(ROOT), "tools/install").arg("buf"));
    let buf = String::from_utf8(buf).expect("path");
    let orders = Path::new(ROOT).join("proto/orders");
    let buf = || {
        let mut buf = at(folder, buf.trim());
        buf.env(CGO.0, CGO.1).arg("generate");
        buf
    };
    succeeds(buf().args([ROOT, "--path"]).arg(orders));
    for of_others in others {
        succeeds(buf().args(*of_others));
    }
}

/// Builds a program in Go, if Go is installed.
pub fn go(name: &str) -> Option<PathBuf> {
    found("go", &["version"]).then(|| {
        let folder = folder(name);
        generate(&folder, &[]);
        succeeds(at(&folder, "go").env(CGO.0, CGO.1).args(["build", "-o", "program", "."]));
        folder.join("program")
    })
}
