//! Reading a program's configuration: flags, each of which is also an environment variable.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use axum::http::uri::Authority;
use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, Command, Parser};

/// Exit code for a configuration that cannot be used (`EX_USAGE` of sysexits.h).
const EXIT_USAGE: u8 = 64;

/// Longest time that a setting may have one wait for. Also keeps all arithmetic on times far from overflow.
pub const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Largest file of credentials or certificates.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Settings of authentication and encryption, by the prefix of their variables. An empty one is more likely a secret
/// that was not filled in than intent.
const NEVER_EMPTY: [&str; 9] = [
    "API_KEYS_FILE",
    "JWT_",
    "TLS_",
    "NATS_",
    "PAYMENT_CA_FILE",
    "PAYMENT_CERT_FILE",
    "PAYMENT_KEY_FILE",
    "PAYMENT_TOKEN_FILE",
    "STEP_",
];

/// Reads flags and environment. On a bad value, and on `--help`, says so and gives the code to exit with. An optional
/// setting whose variable is empty is unset.
pub fn parse<Config: Parser>() -> Result<Config, ExitCode> {
    let matches =
        Config::command().mut_args(|argument| unset_if_empty(argument, |name| std::env::var_os(name)));
    let config = matches.try_get_matches().and_then(|matches| {
        Config::from_arg_matches(&matches).map_err(|error| error.format(&mut Config::command()))
    });
    config.map_err(|mut error| {
        let mut command = Config::command();
        command.build();
        let settings = settings_at_fault(&error, &command);
        hide_secret(&mut error, &settings);
        // If stderr cannot be written either, nothing is left to do.
        drop(error.print());
        if !error.use_stderr() {
            return ExitCode::SUCCESS;
        }
        for variable in settings.iter().filter_map(|setting| setting.get_env()) {
            let variable = variable.to_string_lossy();
            drop(writeln!(io::stderr(), "The value may come from the environment variable {variable}."));
        }
        ExitCode::from(EXIT_USAGE)
    })
}

/// Says why a configuration, each of whose values is good, cannot be used as a whole; gives the code to exit
/// with.
pub fn refuse(reason: &str) -> ExitCode {
    drop(writeln!(io::stderr(), "error: {reason}"));
    ExitCode::from(EXIT_USAGE)
}

/// A parser of times such as `500ms`, `10s` or `30d` within `bounds`.
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

/// Reads an address to serve at.
pub fn parse_addr(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write it as IP:PORT, such as 127.0.0.1:50051 or [::1]:50051".to_owned())
}

/// Whether an address has a valid port, or none. A parsed address may contain any number, and the default port of its
/// scheme would then be used.
pub fn has_usable_port(address: &Authority) -> bool {
    let text = address.as_str();
    let host_and_port = text.rsplit_once('@').map_or(text, |(_, host_and_port)| host_and_port);
    match address.port_u16() {
        Some(0) => false,
        Some(port) => host_and_port.strip_suffix(&port.to_string()) == Some(&format!("{}:", address.host())),
        None => host_and_port == address.host(),
    }
}

/// Reads a file that a setting names. One that has no end, or is larger than any such file, is refused.
pub fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut content)?;
    if content.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("is larger than {FILE_BYTES_MAX} bytes"),
        ));
    }
    Ok(content)
}

fn unset_if_empty(argument: Arg, value: impl Fn(&OsStr) -> Option<OsString>) -> Arg {
    let is_optional = argument.get_default_values().is_empty() && !argument.is_required_set();
    let is_empty = argument.get_env().is_some_and(|name| {
        let guarded =
            name.to_str().is_some_and(|name| NEVER_EMPTY.iter().any(|start| name.starts_with(start)));
        !guarded && value(name).is_some_and(|value| value.is_empty())
    });
    if is_optional && is_empty { argument.env(Resettable::Reset) } else { argument }
}

/// The settings that an error is about, of this command or one below it: one that is bad, or those that are missing. Only a
/// command that is built shows its flags as the error does.
pub fn settings_at_fault<'a>(error: &clap::Error, command: &'a Command) -> Vec<&'a Arg> {
    let flags = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(flag)) => std::slice::from_ref(flag),
        Some(ContextValue::Strings(flags)) => flags,
        Some(_) | None => &[],
    };
    flags.iter().filter_map(|flag| setting_shown_as(flag, command)).collect()
}

fn setting_shown_as<'a>(flag: &str, command: &'a Command) -> Option<&'a Arg> {
    let here = command.get_arguments().find(|setting| setting.to_string() == flag);
    here.or_else(|| command.get_subcommands().find_map(|below| setting_shown_as(flag, below)))
}

/// Takes a bad value out of an error if it is a secret or has a password in it. All the more likely does it have one if it
/// cannot be read: because of what is in the password.
pub fn hide_secret(error: &mut clap::Error, settings: &[&Arg]) {
    let is_secret = settings.iter().any(|setting| setting.is_hide_env_values_set());
    // clap quotes a value that belongs to no setting as an invalid argument.
    for part in [ContextKind::InvalidValue, ContextKind::InvalidArg] {
        let Some(ContextValue::String(value)) = error.get(part) else { continue };
        let has_password = value.rsplit_once('@').is_some_and(|(before, _)| before.contains(':'));
        if has_password || (is_secret && part == ContextKind::InvalidValue) {
            error.insert(part, ContextValue::String("(not shown)".to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[derive(Debug, Parser)]
    struct Config {
        #[arg(long)]
        workers: u16,
        #[arg(long, env = "WAYBILL_TEST_PLACES", default_value = "1")]
        places: u16,
        #[arg(long, env = "WAYBILL_TEST_PIN", hide_env_values = true, default_value = "1")]
        pin: u16,
        #[arg(long, default_value = "1s", value_parser = duration(Duration::from_millis(10)..=DAY))]
        patience: Duration,
    }

    #[test]
    fn only_ports_from_1_to_65535_are_valid() {
        for good in ["h", "h:1", "h:65535", "[::1]", "[::1]:80", "user:1@h:80", "user@h"] {
            assert!(has_usable_port(&good.parse().unwrap()), "{good}");
        }
        for bad in ["h:0", "h:99999", "h:65536", "h:", "[::1]:0", "user:80@h:0", "user:80@h:99999"] {
            assert!(!has_usable_port(&bad.parse().unwrap()), "{bad}");
        }
    }

    #[test]
    fn a_file_without_an_end_is_not_read() {
        let refused = read_file(Path::new("/dev/zero")).unwrap_err();
        assert!(refused.to_string().contains("larger than"), "{refused}");
        assert!(read_file(Path::new(env!("CARGO_MANIFEST_PATH"))).is_ok());
    }

    /// The error text of an invalid value, and the variable that it may come from.
    fn refused(flag: &str, value: &str) -> (String, Option<String>) {
        let mut command = Config::command();
        command.build();
        let mut error = Config::try_parse_from(["program", "--workers", "1", flag, value]).unwrap_err();
        let settings = settings_at_fault(&error, &command);
        hide_secret(&mut error, &settings);
        let variable = settings[0].get_env().map(|variable| variable.to_str().unwrap().to_owned());
        (error.to_string(), variable)
    }

    #[test]
    fn a_bad_value_names_its_variable() {
        let (said, variable) = refused("--places", "ten");
        assert!(said.contains("'ten' for '--places"), "{said}");
        assert_eq!(variable.as_deref(), Some("WAYBILL_TEST_PLACES"));
    }

    #[test]
    fn an_invalid_secret_is_never_shown() {
        for (flag, value) in
            [("--pin", "12e4"), ("--places", "http://user:12e4/#@host:1"), ("--places", "a:12e4@b")]
        {
            let (said, _) = refused(flag, value);
            assert!(said.contains("(not shown)") && !said.contains("12e4"), "{said}");
        }
    }

    #[test]
    fn an_empty_optional_setting_is_unset_unless_it_protects_access() {
        let empty = |_: &OsStr| Some(OsString::new());
        let optional = |variable: &'static str| Arg::new("flag").long("flag").env(variable);
        assert_eq!(unset_if_empty(optional("STOCK"), empty).get_env(), None);
        for guarded in ["API_KEYS_FILE", "TLS_CLIENT_CA", "JWT_JWKS", "NATS_CREDS"] {
            assert!(unset_if_empty(optional(guarded), empty).get_env().is_some(), "{guarded}");
        }
        assert!(unset_if_empty(optional("ACK_WAIT").default_value("10s"), empty).get_env().is_some());
        assert!(unset_if_empty(optional("STOCK"), |_| None).get_env().is_some());
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
