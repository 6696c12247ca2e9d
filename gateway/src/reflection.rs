//! Server reflection, `grpc.reflection.v1` and `v1alpha`. tonic-reflection ends the stream at a name that it does not
//! know; the protocol wants an `error_response`, after which the client may go on asking.

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::StreamExt;
use futures::stream::BoxStream;
use http::{Request, Response, Uri};
use prost::{DecodeError, Message};
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status, Streaming};
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::server_reflection_server::{ServerReflection, ServerReflectionServer};
use tonic_reflection::pb::v1::{
    ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse, ListServiceResponse,
    ServerReflectionRequest, ServerReflectionResponse, ServiceResponse,
};
use tower::Service;

use crate::malformed;

/// Largest request: a name.
const REQUEST_BYTES_MAX: usize = 4 * 1024;

/// The services of an address and all that their messages consist of.
#[derive(Debug, Default)]
struct Index {
    services: BTreeSet<String>,
    /// Encoded, by their names.
    files: HashMap<String, Vec<u8>>,
    /// The file that each symbol is in.
    symbols: HashMap<String, String>,
    messages: BTreeSet<String>,
}

/// Both versions of reflection, of the services in `descriptor_set` and of health and reflection themselves.
pub(crate) fn services(
    descriptor_set: &[u8],
) -> Result<(ServerReflectionServer<Reflection>, V1Alpha<ServerReflectionServer<Reflection>>), DecodeError> {
    let mut index = Index::default();
    for set in [
        descriptor_set,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        // With the error details, grpcurl can decode them.
        tonic_types::pb::FILE_DESCRIPTOR_SET,
    ] {
        for file in FileDescriptorSet::decode(set)?.file {
            index.add(&file);
        }
    }
    let v1 =
        ServerReflectionServer::new(Reflection(Arc::new(index))).max_decoding_message_size(REQUEST_BYTES_MAX);
    Ok((v1.clone(), V1Alpha(v1)))
}

impl Index {
    fn add(&mut self, file: &FileDescriptorProto) {
        if self.files.insert(file.name().to_owned(), file.encode_to_vec()).is_some() {
            return;
        }
        let mut symbols = Vec::new();
        let package = file.package();
        for message in &file.message_type {
            self.add_message(package, message, &mut symbols);
        }
        for one in &file.enum_type {
            add_enum(package, one, &mut symbols);
        }
        for extension in &file.extension {
            symbols.push(within(package, extension.name()));
        }
        for service in &file.service {
            let name = within(package, service.name());
            symbols.extend(service.method.iter().map(|method| within(&name, method.name())));
            symbols.push(name.clone());
            self.services.insert(name);
        }
        self.symbols.extend(symbols.into_iter().map(|symbol| (symbol, file.name().to_owned())));
    }

    fn add_message(&mut self, scope: &str, message: &DescriptorProto, symbols: &mut Vec<String>) {
        let name = within(scope, message.name());
        for nested in &message.nested_type {
            self.add_message(&name, nested, symbols);
        }
        for one in &message.enum_type {
            add_enum(&name, one, symbols);
        }
        let fields = message.field.iter().chain(&message.extension).map(|field| field.name());
        let oneofs = message.oneof_decl.iter().map(|oneof| oneof.name());
        symbols.extend(fields.chain(oneofs).map(|field| within(&name, field)));
        symbols.push(name.clone());
        self.messages.insert(name);
    }

    fn answer(&self, request: &ServerReflectionRequest) -> MessageResponse {
        let Some(message_request) = &request.message_request else {
            return error(Code::InvalidArgument, "the request is empty");
        };
        match message_request {
            MessageRequest::FileByFilename(name) => self.file(name),
            MessageRequest::FileContainingSymbol(symbol) => match self.symbols.get(symbol) {
                Some(name) => self.file(name),
                None => error(Code::NotFound, "there is no such symbol"),
            },
            // No file extends a message.
            MessageRequest::FileContainingExtension(_) => error(Code::NotFound, "there is no such extension"),
            MessageRequest::AllExtensionNumbersOfType(name) if self.messages.contains(name) => {
                let base_type_name = name.clone();
                MessageResponse::AllExtensionNumbersResponse(ExtensionNumberResponse {
                    base_type_name,
                    extension_number: Vec::new(),
                })
            }
            MessageRequest::AllExtensionNumbersOfType(_) => error(Code::NotFound, "there is no such message"),
            MessageRequest::ListServices(_) => {
                let service = self.services.iter().cloned().map(|name| ServiceResponse { name }).collect();
                MessageResponse::ListServicesResponse(ListServiceResponse { service })
            }
        }
    }

    fn file(&self, name: &str) -> MessageResponse {
        match self.files.get(name) {
            Some(file) => MessageResponse::FileDescriptorResponse(FileDescriptorResponse {
                file_descriptor_proto: vec![file.clone()],
            }),
            None => error(Code::NotFound, "there is no such file"),
        }
    }
}

/// The values of an enum are in the scope that the enum is in.
fn add_enum(scope: &str, one: &EnumDescriptorProto, symbols: &mut Vec<String>) {
    symbols.push(within(scope, one.name()));
    symbols.extend(one.value.iter().map(|value| within(scope, value.name())));
}

fn within(scope: &str, name: &str) -> String {
    if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") }
}

fn error(code: Code, message: &str) -> MessageResponse {
    let error_message = message.to_owned();
    MessageResponse::ErrorResponse(ErrorResponse { error_code: code.into(), error_message })
}

/// Answers each request of a stream in turn.
#[derive(Clone, Debug)]
pub(crate) struct Reflection(Arc<Index>);

#[tonic::async_trait]
impl ServerReflection for Reflection {
    type ServerReflectionInfoStream = BoxStream<'static, Result<ServerReflectionResponse, Status>>;

    async fn server_reflection_info(
        &self,
        requests: tonic::Request<Streaming<ServerReflectionRequest>>,
    ) -> Result<tonic::Response<Self::ServerReflectionInfoStream>, Status> {
        let index = self.0.clone();
        let answers = requests.into_inner().map(move |request| {
            let request = request.map_err(malformed::of)?;
            Ok(ServerReflectionResponse {
                valid_host: request.host.clone(),
                message_response: Some(index.answer(&request)),
                original_request: Some(request),
            })
        });
        Ok(tonic::Response::new(answers.boxed()))
    }
}

/// The service under its older name, with the same messages.
#[derive(Clone, Debug)]
pub(crate) struct V1Alpha<S>(S);

impl<S> NamedService for V1Alpha<S> {
    const NAME: &'static str = "grpc.reflection.v1alpha.ServerReflection";
}

impl<S> Service<Request<Body>> for V1Alpha<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let path = request.uri().path().replacen("v1alpha", "v1", 1);
        if let Ok(uri) = Uri::try_from(path) {
            *request.uri_mut() = uri;
        }
        self.0.call(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> Index {
        let mut index = Index::default();
        for file in FileDescriptorSet::decode(proto::DESCRIPTOR_SET).unwrap().file {
            index.add(&file);
        }
        index
    }

    #[test]
    fn every_kind_of_symbol_leads_to_its_file() {
        let index = index();
        for symbol in [
            "orders.v1.OrderService",
            "orders.v1.OrderService.CreateOrder",
            "orders.v1.Order",
            "orders.v1.Order.order_id",
            "orders.v1.OrderStatus",
            "orders.v1.ORDER_STATUS_PAID",
            "orders.v1.OrderEvent.detail",
        ] {
            let file = &index.symbols[symbol];
            assert!(index.files.contains_key(file), "{symbol}");
        }
        for unknown in ["", "orders.v1", "orders.v1.", ".orders.v1.Order", "orders.v1.Nope"] {
            assert!(!index.symbols.contains_key(unknown), "{unknown}");
        }
    }

    #[test]
    fn all_that_a_file_imports_is_there() {
        let index = index();
        for file in index.files.values() {
            let file = FileDescriptorProto::decode(&file[..]).unwrap();
            for imported in &file.dependency {
                assert!(index.files.contains_key(imported), "{} imports {imported}", file.name());
            }
        }
    }
}
