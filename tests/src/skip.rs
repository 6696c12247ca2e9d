//! Tests of what a machine lacks.

use std::io::Write;

/// Shown in the log of a test that passes, too, which print! is not.
pub fn say(text: &str) {
    std::io::stdout().write_all(format!("{text}\n").as_bytes()).expect("stdout");
}

/// Says that a test does nothing, because the machine lacks what it takes. With `CI=true` the test fails instead.
pub fn skip(lack: &str) {
    let in_ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
    assert!(!in_ci, "{lack}; no test is skipped with CI=true");
    say(&format!("skipped: {lack}"));
}
