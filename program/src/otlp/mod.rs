//! The shared part of exporting traces and metrics: the collector's address, the protocol, and this program's identity.
//! Configured by the standard variables of OpenTelemetry alone; the exporters read some of them by themselves
//! (<https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>).

mod http;

use std::env;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::Duration;

use axum::http::{HeaderName, Uri};
use opentelemetry::{Key, KeyValue};
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use percent_encoding::percent_decode_str;
use tracing::warn;
use uuid::Uuid;

pub use http::Http;

use crate::config::has_usable_port;
use crate::trace::attribute;

/// How long the last spans and metrics may take to be sent when the program ends.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// What a variable may name as a time, in milliseconds: up to a day. With none at all an exporter would never rest.
pub(crate) const TIME_MS: RangeInclusive<u64> = 1..=24 * 60 * 60 * 1000;

/// Deadline of one export with its retries, unless OTEL_EXPORTER_OTLP_TIMEOUT is set.
const TIMEOUT_MS: u64 = 10_000;

/// Headers that say what a request is, and how it is sent: the exporters' own.
const RESERVED_HEADERS: [&str; 11] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The exported signals, by the names in their variables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signal {
    /// Says whether.
    pub(crate) exporter: &'static str,
    /// Between `OTEL_EXPORTER_OTLP_` and the setting.
    pub(crate) infix: &'static str,
}

/// How a signal travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Grpc,
    Http,
}

/// How the collector is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transport {
    pub(crate) protocol: Protocol,
    /// Whether the connection is to be encrypted.
    tls: bool,
    timeout: Duration,
}

/// The environment, in which an empty variable counts as unset. A value that is not text becomes one that is rejected.
pub(crate) fn variable(name: &str) -> Option<String> {
    env::var_os(name).map(|text| text.to_string_lossy().into_owned()).filter(|text| !text.is_empty())
}

/// The number that a variable sets, or the default. One that is out of range counts as unset and is worth a warning, as the
/// specification says.
pub(crate) fn number(
    variable: impl Fn(&str) -> Option<String>,
    name: &str,
    default: u64,
    range: RangeInclusive<u64>,
    warnings: &mut Vec<String>,
) -> u64 {
    let Some(text) = variable(name) else { return default };
    text.parse().ok().filter(|number| range.contains(number)).unwrap_or_else(|| {
        let [least, most] = [range.start(), range.end()];
        warnings.push(format!("{name} is not a whole number of {least}-{most}, {default} is used"));
        default
    })
}

impl Transport {
    /// `None` if the signal is not to be exported. Fails with the name of a variable that cannot be used.
    pub(crate) fn read(
        signal: Signal,
        variable: impl Fn(&str) -> Option<String>,
        warnings: &mut Vec<String>,
    ) -> Result<Option<Self>, String> {
        let own_or_all = |name: &str| {
            let own = format!("OTEL_EXPORTER_OTLP_{}_{name}", signal.infix);
            let all = format!("OTEL_EXPORTER_OTLP_{name}");
            variable(&own).map(|text| (own, text)).or_else(|| variable(&all).map(|text| (all, text)))
        };
        if variable("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        let endpoint = own_or_all("ENDPOINT");
        match variable(signal.exporter).as_deref() {
            Some("none") => return Ok(None),
            None if endpoint.is_none() => return Ok(None),
            None | Some("otlp") => {}
            Some(other) => return Err(format!("{}: `{other}` is neither otlp nor none", signal.exporter)),
        }
        let protocol = match own_or_all("PROTOCOL") {
            None => Protocol::Http,
            Some((name, text)) => match text.as_str() {
                "grpc" => Protocol::Grpc,
                "http/protobuf" => Protocol::Http,
                other => return Err(format!("{name}: `{other}` is neither grpc nor http/protobuf")),
            },
        };
        for name in ["CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"] {
            if let Some((name, _)) = own_or_all(name) {
                return Err(format!(
                    "{name} is not supported; set SSL_CERT_FILE to the trusted certificates"
                ));
            }
        }
        if let Some((name, _)) = own_or_all("COMPRESSION").filter(|(_, text)| text != "none") {
            return Err(format!("{name}: compression is not supported"));
        }
        let timeout = own_or_all("TIMEOUT").map_or(TIMEOUT_MS, |(name, text)| {
            number(|_| Some(text.clone()), &name, TIMEOUT_MS, TIME_MS, warnings)
        });
        let timeout = Duration::from_millis(timeout);
        if let Some((name, _)) = own_or_all("HEADERS").filter(|(_, text)| !text.split(',').all(is_header)) {
            // The exporters would drop headers that they cannot parse, and the collector would reject everything.
            return Err(format!(
                "{name}: must be comma-separated pairs such as authorization=Bearer%20token, without headers that HTTP or \
                 gRPC reserve"
            ));
        }
        let Some((name, url)) = endpoint else { return Ok(Some(Self { protocol, tls: false, timeout })) };
        // Not shown in the error: it may contain a password.
        let url: Uri = url.parse().map_err(|_| not_an_address(&name))?;
        if !url.authority().is_some_and(has_usable_port) {
            return Err(not_an_address(&name));
        }
        match url.scheme_str() {
            Some("http") => Ok(Some(Self { protocol, tls: false, timeout })),
            Some("https") => Ok(Some(Self { protocol, tls: true, timeout })),
            Some(_) | None => Err(not_an_address(&name)),
        }
    }

    /// Has an exporter speak gRPC.
    pub(crate) fn over_grpc<B: WithTonicConfig + WithExportConfig>(self, exporter: B) -> B {
        let exporter = exporter.with_timeout(self.timeout);
        if self.tls {
            exporter.with_tls_config(ClientTlsConfig::new().with_enabled_roots())
        } else {
            exporter
        }
    }

    /// Has an exporter speak HTTP.
    pub(crate) fn over_http<B: WithHttpConfig + WithExportConfig>(self, exporter: B) -> Result<B, String> {
        let client = Http::new().map_err(|error| format!("the system's certificates: {error}"))?;
        let exporter = exporter.with_timeout(self.timeout);
        Ok(exporter.with_protocol(opentelemetry_otlp::Protocol::HttpBinary).with_http_client(client))
    }
}

/// Whether this is a header that an exporter can send: a name of the user's own and a percent-encoded value.
fn is_header(pair: &str) -> bool {
    let Some((name, value)) = pair.split_once('=') else { return false };
    let is_own =
        |name: HeaderName| !RESERVED_HEADERS.contains(&name.as_str()) && !name.as_str().starts_with("grpc-");
    let is_plain = |each: char| each.is_ascii_graphic() || each == ' ';
    let decoded: Vec<u8> = percent_decode_str(value.trim()).collect();
    HeaderName::from_str(name.trim()).is_ok_and(is_own)
        && !decoded.is_empty()
        && value.chars().all(is_plain)
        && decoded.iter().all(|byte| is_plain(char::from(*byte)))
}

fn not_an_address(name: &str) -> String {
    format!("{name}: must be an address such as http://collector:4318")
}

static RESOURCE: OnceLock<(Resource, usize)> = OnceLock::new();

/// The resource of all signals of a process.
pub(crate) fn resource(program: &str) -> Resource {
    RESOURCE.get_or_init(|| resource_of(program)).0.clone()
}

/// Says in the log what is missing in the resource.
pub(crate) fn warn_of_resource() {
    if let Some(count @ 1..) = RESOURCE.get().map(|(_, left_out)| *left_out) {
        warn!(count, "OTEL_RESOURCE_ATTRIBUTES: attributes skipped, their names are not valid label names");
    }
}

/// The resource, and how many attributes it does not have. Prometheus would take nothing at all of a process that has one
/// whose name cannot be a label.
fn resource_of(program: &str) -> (Resource, usize) {
    // The SDK reads OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES.
    let resource = Resource::builder().build();
    let (usable, others): (Vec<_>, Vec<_>) = resource.iter().partition(|(name, _)| is_name(name.as_str()));
    let unnamed = |name: &opentelemetry::Value| name.as_str().starts_with("unknown_service");
    let is_unnamed = resource.get(&Key::new(attribute::SERVICE_NAME)).is_none_or(|name| unnamed(&name));
    let usable = usable.into_iter().map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
    let mut builder = Resource::builder_empty().with_attributes(usable);
    if is_unnamed {
        builder = builder.with_service_name(program.to_owned());
    }
    for (name, value) in [
        (attribute::SERVICE_VERSION, env!("CARGO_PKG_VERSION").to_owned()),
        (attribute::SERVICE_INSTANCE_ID, Uuid::now_v7().to_string()),
    ] {
        if resource.get(&Key::new(name)).is_none() {
            builder = builder.with_attribute(KeyValue::new(name, value));
        }
    }
    (builder.build(), others.len())
}

/// Whether an attribute can be a label of Prometheus', to which its dots become underscores.
fn is_name(name: &str) -> bool {
    let is_reserved = name.starts_with("__") || ["le", "quantile", "job", "instance"].contains(&name);
    let begins_well = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    let is_plain = |each: char| each.is_ascii_alphanumeric() || ['_', '.', '-'].contains(&each);
    begins_well && !is_reserved && name.chars().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_that_can_be_no_label_is_told_apart() {
        for name in ["deployment.environment.name", "k8s.pod-name", "_a"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "1x", "=c", "__name__", "le", "a b", "ä"] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn headers_that_cannot_be_sent_are_named_and_not_shown() {
        let signal = Signal { exporter: "OTEL_TRACES_EXPORTER", infix: "TRACES" };
        let read = |headers: &'static str| {
            let variable = |name: &str| match name {
                "OTEL_EXPORTER_OTLP_ENDPOINT" => Some("http://localhost:4318".to_owned()),
                "OTEL_EXPORTER_OTLP_HEADERS" => Some(headers.to_owned()),
                _ => None,
            };
            Transport::read(signal, variable, &mut Vec::new())
        };
        for headers in ["authorization=Bearer%20s3cr3t", "api-key=s3cr3t, x-tenant=a=b"] {
            assert!(read(headers).is_ok(), "{headers}");
        }
        for headers in [
            "s3cr3t",
            "authorization: s3cr3t",
            "api key=s3cr3t",
            "a=b,s3cr3t",
            "a=",
            "a=s3cr3t\u{fffd}",
            "a=s3cr3t%0d%0ab: c",
            "a=s3cr3t%00",
            "a=%20s3cr3t%ff",
            "content-length=7",
            "Content-Type=s3cr3t",
            "grpc-timeout=1S",
            "a=b,te=s3cr3t",
        ] {
            let refused = read(headers).unwrap_err();
            assert!(
                refused.starts_with("OTEL_EXPORTER_OTLP_HEADERS") && !refused.contains("s3cr3t"),
                "{refused}"
            );
        }
    }

    #[test]
    fn a_time_out_of_range_is_the_default_with_a_warning() {
        let signal = Signal { exporter: "OTEL_METRICS_EXPORTER", infix: "METRICS" };
        let read = |timeout: &str| {
            let variable = |name: &str| match name {
                "OTEL_EXPORTER_OTLP_ENDPOINT" => Some("http://localhost:4318".to_owned()),
                "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT" => Some(timeout.to_owned()),
                _ => None,
            };
            let mut warnings = Vec::new();
            let transport = Transport::read(signal, variable, &mut warnings).unwrap().unwrap();
            (transport.timeout.as_millis(), warnings)
        };
        assert_eq!((read("1"), read("86400000")), ((1, Vec::new()), (86_400_000, Vec::new())));
        for timeout in ["abc", "0", "-1", "10s", "1.5", "86400001"] {
            let (ms, warnings) = read(timeout);
            assert_eq!(ms, 10_000, "{timeout}");
            assert!(warnings[0].starts_with("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT"), "{warnings:?}");
        }
    }

    #[test]
    fn an_endpoint_that_cannot_be_used_is_named_and_not_shown() {
        let signal = Signal { exporter: "OTEL_TRACES_EXPORTER", infix: "TRACES" };
        for url in [
            "user:s3cr3t@localhost:4318",
            "https//user:s3cr3t@h:1",
            "http://h:1/?token=s3cr3t x",
            "localhost:4317",
            "http://localhost:0",
            "http://user:s3cr3t@localhost:99999",
            "https://localhost:",
        ] {
            let read = |name: &str| (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| url.to_owned());
            let refused = Transport::read(signal, read, &mut Vec::new()).unwrap_err();
            assert!(
                refused.starts_with("OTEL_EXPORTER_OTLP_ENDPOINT") && !refused.contains("s3cr3t"),
                "{refused}"
            );
        }
    }
}
