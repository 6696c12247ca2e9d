//! Reading a program's configuration: flags, each of which is also an environment variable.

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{Command, Parser};

/// Exit code for a configuration that cannot be used (`EX_USAGE` of sysexits.h).
const EXIT_USAGE: u8 = 64;

/// Reads flags and environment. On a bad value, and on `--help`, says so and gives the code to exit with.
pub fn parse<Config: Parser>() -> Result<Config, ExitCode> {
    Config::try_parse().map_err(|error| {
        // Nothing is left to be done when even the message cannot be written.
        drop(error.print());
        if !error.use_stderr() {
            return ExitCode::SUCCESS;
        }
        if let Some(variable) = variable_of(&error, Config::command()) {
            eprintln!("The value may come from the environment variable {variable}.");
        }
        ExitCode::from(EXIT_USAGE)
    })
}

/// Says why a configuration, each of whose values is good, cannot be used as a whole; gives the code to exit
/// with.
pub fn refuse(reason: &str) -> ExitCode {
    eprintln!("error: {reason}");
    ExitCode::from(EXIT_USAGE)
}

/// clap names the flag whose value is bad; its reader may have set the variable.
fn variable_of(error: &clap::Error, mut command: Command) -> Option<String> {
    command.build();
    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    let argument = command.get_arguments().find(|argument| argument.to_string() == *flag)?;
    Some(argument.get_env()?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[derive(Debug, Parser)]
    struct Config {
        #[arg(long, env = "WAYBILL_TEST_WORKERS")]
        workers: u16,
    }

    #[test]
    fn a_bad_value_names_its_variable() {
        let error = Config::try_parse_from(["program", "--workers", "ten"]).unwrap_err();
        assert_eq!(variable_of(&error, Config::command()).as_deref(), Some("WAYBILL_TEST_WORKERS"));
        assert_eq!(Config::try_parse_from(["program", "--workers", "10"]).unwrap().workers, 10);
    }
}
