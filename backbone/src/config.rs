//! Reading a program's configuration: flags, each of which is also an environment variable.

use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue};
use clap::{Command, Parser};

/// Exit code for a configuration that cannot be used (`EX_USAGE` of sysexits.h).
const EXIT_USAGE: u8 = 64;

/// Longest time that a setting may have one wait for. Also keeps all arithmetic on times far from overflow.
pub const DAY: Duration = Duration::from_secs(24 * 60 * 60);

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

/// A parser of times such as `500ms`, `10s` or `30d` that lie within `bounds`.
pub fn duration(
    bounds: RangeInclusive<Duration>,
) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync + 'static {
    move |text| {
        let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
        if bounds.contains(&duration) {
            return Ok(duration);
        }
        let [least, most] = [*bounds.start(), *bounds.end()].map(humantime::format_duration);
        Err(format!("must be {least} to {most}"))
    }
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
        #[arg(long, default_value = "1s", value_parser = duration(Duration::from_millis(10)..=DAY))]
        patience: Duration,
    }

    #[test]
    fn a_bad_value_names_its_variable() {
        let error = Config::try_parse_from(["program", "--workers", "ten"]).unwrap_err();
        assert_eq!(variable_of(&error, Config::command()).as_deref(), Some("WAYBILL_TEST_WORKERS"));
        assert_eq!(Config::try_parse_from(["program", "--workers", "10"]).unwrap().workers, 10);
    }

    #[test]
    fn a_time_out_of_bounds_is_refused_with_the_bounds() {
        let parse = |text| Config::try_parse_from(["program", "--workers", "1", "--patience", text]);
        for (text, time) in [("10ms", Duration::from_millis(10)), ("1day", DAY), ("1m 30s", DAY / 960)] {
            assert_eq!(parse(text).unwrap().patience, time);
        }
        for text in ["0s", "9ms", "1d 1ns", "18446744073709551615s"] {
            let said = parse(text).unwrap_err().to_string();
            assert!(said.contains("must be 10ms to 1day"), "{text}: {said}");
        }
        for text in ["", "10", "-1s", "99999999999999999999s", "soon"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
