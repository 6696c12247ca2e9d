//! What traces and metrics have in common on their way to a collector: where it is, how it is spoken to, and who we
//! are. Configured by the standard variables of OpenTelemetry alone; the exporters read some of them by themselves
//! (<https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>).

mod http;

use std::env;
use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::{Key, KeyValue};
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use uuid::Uuid;

pub use http::Http;

use crate::trace::attribute;

/// How long the last spans and metrics may take to be sent when the program ends.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// What is exported, by the names that its variables have.
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
pub(crate) struct Way {
    pub(crate) protocol: Protocol,
    /// Whether the connection is to be encrypted.
    tls: bool,
}

/// The environment, in which an empty variable is one that is not set.
pub(crate) fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|text| !text.is_empty())
}

impl Way {
    /// `None` if the signal is not to be exported. Fails with the name of a variable that cannot be used.
    pub(crate) fn read(
        signal: Signal,
        variable: impl Fn(&str) -> Option<String>,
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
                    "{name} is not supported; SSL_CERT_FILE names the certificates that are trusted"
                ));
            }
        }
        let tls = endpoint.is_some_and(|(_, url)| !url.starts_with("http://"));
        Ok(Some(Self { protocol, tls }))
    }

    /// Has an exporter speak gRPC.
    pub(crate) fn over_grpc<B: WithTonicConfig>(self, exporter: B) -> B {
        if self.tls {
            exporter.with_tls_config(ClientTlsConfig::new().with_enabled_roots())
        } else {
            exporter
        }
    }

    /// Has an exporter speak HTTP.
    pub(crate) fn over_http<B: WithHttpConfig + WithExportConfig>(self, exporter: B) -> Result<B, String> {
        let client = Http::new().map_err(|error| format!("the system's certificates: {error}"))?;
        Ok(exporter.with_protocol(opentelemetry_otlp::Protocol::HttpBinary).with_http_client(client))
    }
}

/// Who sends: the same in all signals of a process.
pub(crate) fn resource(program: &str) -> Resource {
    static RESOURCE: OnceLock<Resource> = OnceLock::new();
    RESOURCE.get_or_init(|| resource_of(program)).clone()
}

fn resource_of(program: &str) -> Resource {
    // The SDK has its say from OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES.
    let resource = Resource::builder().build();
    let unnamed = |name: &opentelemetry::Value| name.as_str().starts_with("unknown_service");
    let is_unnamed = resource.get(&Key::new(attribute::SERVICE_NAME)).is_none_or(|name| unnamed(&name));
    let mut builder = Resource::builder();
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
    builder.build()
}
