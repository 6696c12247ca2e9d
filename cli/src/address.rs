//! Where a gateway is, or whoever else is asked.

use std::ffi::OsStr;

use backbone::config::has_usable_port;
use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::{Arg, Command};
use tonic::transport::Uri;

/// A parser of addresses. Not a function: clap would quote a password in the error.
#[derive(Clone)]
pub(crate) struct AddressParser;

impl TypedValueParser for AddressParser {
    type Value = Uri;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<Uri, clap::Error> {
        if value.to_string_lossy().contains('@') {
            let what = arg.map(|arg| format!("{arg}: ")).unwrap_or_default();
            let message = format!("{what}an address has no user and no password\n");
            return Err(clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command));
        }
        parse_gateway.parse_ref(command, arg, value)
    }
}

fn parse_gateway(text: &str) -> Result<Uri, String> {
    let can_be_asked = |uri: &Uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some_and(has_usable_port)
    };
    match text.parse::<Uri>() {
        Ok(uri) if can_be_asked(&uri) => Ok(uri),
        Ok(_) => Err("write it as http://HOST:PORT or https://HOST:PORT".to_owned()),
        Err(error) => Err(format!("write it as http://HOST:PORT or https://HOST:PORT ({error})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_reached_by_http_or_https() {
        for good in ["http://127.0.0.1:50051", "https://waybill.example.org", "https://[::1]:50051"] {
            assert!(parse_gateway(good).is_ok(), "{good}");
        }
        for other in [
            "127.0.0.1:50051",
            "ftp://127.0.0.1:50051",
            "/run/gateway",
            "https://",
            "http://h:0",
            "http://h:99999",
        ] {
            assert!(parse_gateway(other).unwrap_err().contains("http://HOST:PORT"), "{other}");
        }
    }
}
