//! The address of a gateway or another program.

use program::config::has_usable_port;
use tonic::transport::Uri;

/// Reads an address, in which a password would end up in logs.
pub(crate) fn parse_address(text: &str) -> Result<Uri, String> {
    if text.contains('@') {
        return Err("must not contain a user or password".to_owned());
    }
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
            assert!(parse_address(good).is_ok(), "{good}");
        }
        for other in [
            "127.0.0.1:50051",
            "ftp://127.0.0.1:50051",
            "/run/gateway",
            "https://",
            "http://h:0",
            "http://h:99999",
        ] {
            assert!(parse_address(other).unwrap_err().contains("http://HOST:PORT"), "{other}");
        }
    }
}
