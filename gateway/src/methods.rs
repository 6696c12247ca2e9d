//! The existing methods, by their paths: a client can call any name.

use std::collections::HashMap;
use std::sync::LazyLock;

use prost::Message;
use prost_types::FileDescriptorSet;

/// How calls to methods that do not exist are named.
pub(crate) const OTHER: &str = "_OTHER";
/// Health and reflection.
const PROBES: &str = "grpc.";

/// The methods of each service, by the paths of calls to them.
static SERVICES: LazyLock<HashMap<String, Vec<String>>> = LazyLock::new(|| {
    let sets = [
        proto::DESCRIPTOR_SET,
        proto::OPERATIONS_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let files = sets.into_iter().filter_map(|set| FileDescriptorSet::decode(set).ok());
    let mut services = HashMap::new();
    for file in files.flat_map(|set| set.file) {
        for service in &file.service {
            let name = format!("{}.{}", file.package(), service.name());
            let methods = service.method.iter().map(|method| format!("{name}/{}", method.name())).collect();
            services.insert(name, methods);
        }
    }
    services
});

/// The method of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Method {
    /// Full name, as `orders.v1.OrderService/CreateOrder`.
    pub(crate) name: &'static str,
    /// Whether it has a span of its own: there are too many probes.
    pub(crate) has_span: bool,
}

impl Method {
    /// The method at a path.
    pub(crate) fn at(path: &str) -> Self {
        let path = path.trim_start_matches('/');
        let service = path.split('/').next().unwrap_or_default();
        let methods = SERVICES.get(service);
        let known = methods.and_then(|methods| methods.iter().find(|method| *method == path));
        let has_span = methods.is_some() && !service.starts_with(PROBES);
        Self { name: known.map_or(OTHER, String::as_str), has_span }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_methods_share_one_name() {
        let create = Method::at("/orders.v1.OrderService/CreateOrder");
        assert_eq!(create, Method { name: "orders.v1.OrderService/CreateOrder", has_span: true });
        let check = Method::at("/grpc.health.v1.Health/Check");
        assert_eq!(check, Method { name: "grpc.health.v1.Health/Check", has_span: false });
        assert_eq!(Method::at("/orders.v1.OrderService/Nope"), Method { name: OTHER, has_span: true });
        for path in ["", "/", "/nope", "/some.Service/CreateOrder", "/orders.v1.OrderService"] {
            assert_eq!(Method::at(path).name, OTHER, "{path}");
        }
        for service in [
            "operations.v1.DeadLetterService/ListDeadLetters",
            "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        ] {
            assert_eq!(Method::at(&format!("/{service}")).name, service);
        }
    }
}
