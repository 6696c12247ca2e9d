//! The address of a gRPC service, as settings name it.

use std::error::Error;

use tonic::transport::{Endpoint, Uri};

/// Reads an address.
pub(crate) fn endpoint(text: &str) -> Result<Endpoint, String> {
    const FORM: &str = "write it as http://HOST:PORT or https://HOST:PORT";
    // A URI would be parsed without its fragment.
    if text.contains('#') {
        return Err(FORM.to_owned());
    }
    let uri: Uri = text.parse().map_err(|error| format!("{FORM} ({error})"))?;
    if !is_address(&uri) {
        return Err(FORM.to_owned());
    }
    Endpoint::new(uri).map_err(|error| match error.source() {
        Some(source) => source.to_string(),
        None => error.to_string(),
    })
}

/// Whether it is scheme, host and port alone. gRPC has its own paths, and credentials in a URL would be ignored without
/// notice.
fn is_address(uri: &Uri) -> bool {
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return false };
    let host_and_port = match authority.port_u16() {
        Some(0) => return false,
        Some(port) => format!("{}:{port}", authority.host()),
        None => authority.host().to_owned(),
    };
    matches!(scheme, "http" | "https")
        && !authority.host().is_empty()
        && authority.as_str() == host_and_port
        && matches!(uri.path(), "" | "/")
        && uri.query().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_named_by_scheme_host_and_port() {
        for good in
            ["http://127.0.0.1:50052", "https://payments.example.org", "http://[::1]:1/", "https://pay:443"]
        {
            assert!(is_address(&good.parse().unwrap()), "{good}");
        }
        for bad in [
            "",
            "payments",
            "127.0.0.1:50052",
            "grpc://payments:1",
            "unix:///run/payments",
            "http://",
            "http://:50052",
            "/run/payments",
            "http://payments/v1",
            "http://payments?key=1",
            "http://payments#1",
            "http://payments:0",
            "http://user:password@payments",
            "http://payments:port",
            "http://payments:",
            "http://pay ments",
        ] {
            assert!(endpoint(bad).unwrap_err().contains("http://HOST:PORT"), "{bad}");
        }
    }
}
