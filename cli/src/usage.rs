//! Reading the command line and the environment, and saying what is wrong with them.

use std::error::Error;
use std::fmt;
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue};
use clap::{Arg, Parser};
use program::config::{DAY, duration, hide_secret, settings_at_fault};

use crate::console;

/// Where `--help` shows the options that each command has.
pub(crate) const CONNECTION: &str = "Connection";

/// Exit code for flags and variables that cannot be used (`EX_USAGE` of sysexits.h).
const EXIT_USAGE: u8 = 64;
/// How long a user may have us wait.
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=DAY;

/// The command line is wrong: the program ends with the same code.
#[derive(Debug)]
pub(crate) struct UsageError(pub(crate) String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for UsageError {}

/// The code to exit with after an error.
pub(crate) fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.is::<UsageError>() { ExitCode::from(EXIT_USAGE) } else { ExitCode::FAILURE }
}

/// Reads flags and environment. On a bad value, and on `--help`, says so and gives the code to exit with.
pub(crate) fn parse<Args: Parser>() -> Result<Args, ExitCode> {
    Args::try_parse().map_err(|mut error| {
        let mut command = Args::command();
        // Flags are displayed as in the error only after the command is built.
        command.build();
        let settings = settings_at_fault(&error, &command);
        let variable = settings.iter().find_map(|setting| variable_at_fault(&error, setting));
        hide_secret(&mut error, &settings);
        // If stderr cannot be written either, nothing is left to do.
        drop(error.print());
        if !error.use_stderr() {
            return ExitCode::SUCCESS;
        }
        if let Some(variable) = variable {
            console::warn(&format!("The value comes from the environment variable {variable}."));
        }
        ExitCode::from(EXIT_USAGE)
    })
}

/// Reads how long something may take.
pub(crate) fn parse_timeout(text: &str) -> Result<humantime::Duration, String> {
    duration(TIMEOUT)(text).map(Into::into)
}

/// clap names the flag whose value is bad, though the user may have set its variable. This is the variable, if it
/// holds the bad value.
fn variable_at_fault(error: &clap::Error, setting: &Arg) -> Option<String> {
    let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue) else {
        return None;
    };
    let variable = setting.get_env()?.to_str()?;
    let holds_it = std::env::var(variable).is_ok_and(|held| held == *value);
    holds_it.then(|| variable.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Args;
    use clap::CommandFactory;

    #[test]
    fn a_bad_value_is_traced_to_its_setting_through_subcommands() {
        let mut command = Args::command();
        command.build();
        for (line, variable) in [
            (&["dev", "--ops-addr", "nowhere"][..], "OPS_ADDR"),
            (&["order", "--gateway", "ftp://host:1", "get", "id"], "WAYBILL_GATEWAY"),
            (&["order", "list", "ada", "--api-key", "not one"], "WAYBILL_API_KEY"),
        ] {
            let error = Args::try_parse_from([&["waybill"], line].concat()).unwrap_err();
            let settings = settings_at_fault(&error, &command);
            assert_eq!(settings[0].get_env().unwrap(), variable, "{error}");
        }
    }
}
