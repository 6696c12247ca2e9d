//! Reading the command line and the environment, and saying what is wrong with them.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

use backbone::config::hide_address;
use clap::error::{ContextKind, ContextValue};
use clap::{Command, Parser};

use crate::console;

/// Exit code for flags and variables that cannot be used (`EX_USAGE` of sysexits.h).
const EXIT_USAGE: u8 = 64;

/// What was asked for cannot be done as it was asked: the program ends with the same code.
#[derive(Debug)]
pub(crate) struct Unusable(pub(crate) String);

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Unusable {}

/// The code to exit with after an error.
pub(crate) fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.is::<Unusable>() { ExitCode::from(EXIT_USAGE) } else { ExitCode::FAILURE }
}

/// Reads flags and environment. On a bad value, and on `--help`, says so and gives the code to exit with.
pub(crate) fn parse<Args: Parser>() -> Result<Args, ExitCode> {
    Args::try_parse().map_err(|mut error| {
        let mut command = Args::command();
        // Only a command that is built can show its flags as the error does.
        command.build();
        let variable = variable_at_fault(&error, &command);
        hide_address(&mut error);
        // Nothing is left to be done when even the message cannot be written.
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

/// clap names the flag whose value is bad, though the user may have set its variable. This is the variable, if it
/// holds the bad value.
fn variable_at_fault(error: &clap::Error, command: &Command) -> Option<String> {
    let (Some(ContextValue::String(flag)), Some(ContextValue::String(value))) =
        (error.get(ContextKind::InvalidArg), error.get(ContextKind::InvalidValue))
    else {
        return None;
    };
    let variable = variable_of(flag, command)?;
    let holds_it = std::env::var(&variable).is_ok_and(|held| held == *value);
    holds_it.then_some(variable)
}

/// The variable of the flag that clap shows as `flag`, in this command or one below it.
fn variable_of(flag: &str, command: &Command) -> Option<String> {
    let here = command
        .get_arguments()
        .find(|argument| argument.to_string() == flag)
        .and_then(|argument| argument.get_env());
    match here {
        Some(variable) => Some(variable.to_string_lossy().into_owned()),
        None => command.get_subcommands().find_map(|below| variable_of(flag, below)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Args;
    use clap::CommandFactory;

    #[test]
    fn a_flag_is_traced_to_its_variable_through_subcommands() {
        let mut command = Args::command();
        command.build();
        assert_eq!(variable_of("--ops-addr <OPS_ADDR>", &command).as_deref(), Some("OPS_ADDR"));
        assert_eq!(variable_of("--gateway <URL>", &command).as_deref(), Some("WAYBILL_GATEWAY"));
        assert_eq!(variable_of("--exit", &command), None);
    }
}
