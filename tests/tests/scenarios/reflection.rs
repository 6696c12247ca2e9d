//! Reflection as the protocol says (grpc/reflection/v1/reflection.proto): what it does not know is an answer, and the
//! stream goes on.

use futures::stream;
use harness::{Deployment, Options, PATIENCE};
use tokio::time::timeout;
use tonic::Code;

async fn gateway_only() -> Deployment {
    Deployment::start_with(Options { replicas: 0, ..Options::default() }).await
}

/// Asks for what is not there, and then for what is, in one stream. The versions have the same messages under different
/// names.
macro_rules! asks_on {
    ($version:ident, $channel:expr, $service:expr, $message:expr, $file:expr) => {{
        use tonic_reflection::pb::$version::ServerReflectionRequest;
        use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::$version::server_reflection_request::MessageRequest as Ask;
        use tonic_reflection::pb::$version::server_reflection_response::MessageResponse as Answer;

        let unknown = [
            Some(Ask::FileContainingSymbol("nope.v1.Nope".to_owned())),
            Some(Ask::FileByFilename("nope.proto".to_owned())),
            Some(Ask::FileContainingExtension(Default::default())),
            Some(Ask::AllExtensionNumbersOfType("nope.v1.Nope".to_owned())),
        ];
        let known = [
            Some(Ask::FileContainingSymbol($service.to_owned())),
            Some(Ask::FileContainingSymbol(format!("{}.dead_letter_id", $message))),
            Some(Ask::FileByFilename($file.to_owned())),
            Some(Ask::AllExtensionNumbersOfType($message.to_owned())),
            Some(Ask::ListServices(String::new())),
        ];
        let asked = unknown.iter().chain([&None]).chain(&known).cloned();
        let requests: Vec<_> = asked
            .map(|message_request| ServerReflectionRequest { host: "shop".to_owned(), message_request })
            .collect();
        let mut client = ServerReflectionClient::new($channel);
        let answers = client.server_reflection_info(stream::iter(requests.clone())).await.unwrap();
        let mut answers = answers.into_inner();
        for (i, request) in requests.into_iter().enumerate() {
            let answer = timeout(PATIENCE, answers.message()).await.expect("an answer in time");
            let answer = answer.unwrap_or_else(|status| panic!("no answer to {request:?} but {status:?}"));
            let answer = answer.expect("an answer to each");
            assert_eq!(answer.valid_host, "shop");
            assert_eq!(answer.original_request.as_ref(), Some(&request));
            match (i, answer.message_response.unwrap()) {
                (0..4, Answer::ErrorResponse(error)) => {
                    assert_eq!(Code::from(error.error_code), Code::NotFound, "{request:?}");
                }
                (4, Answer::ErrorResponse(error)) => {
                    assert_eq!(Code::from(error.error_code), Code::InvalidArgument, "{request:?}");
                }
                (5..=7, Answer::FileDescriptorResponse(files)) => {
                    assert_eq!(files.file_descriptor_proto.len(), 1, "{request:?}");
                }
                (8, Answer::AllExtensionNumbersResponse(numbers)) => {
                    assert_eq!(numbers.base_type_name, $message);
                    assert_eq!(numbers.extension_number, [0; 0]);
                }
                (9, Answer::ListServicesResponse(services)) => {
                    let names: Vec<_> = services.service.into_iter().map(|service| service.name).collect();
                    assert!(names.contains(&$service.to_owned()), "{names:?}");
                }
                (_, other) => panic!("{other:?} to {request:?}"),
            }
        }
        assert_eq!(answers.message().await.unwrap(), None);
    }};
}

#[tokio::test]
async fn what_reflection_does_not_know_is_answered_and_the_stream_goes_on() {
    let waybill = gateway_only().await;
    let orders = ("orders.v1.OrderService", "orders.v1.Order", "orders/v1/order.proto");
    let letter = "operations.v1.DeadLetter";
    let operations = ("operations.v1.DeadLetterService", letter, "operations/v1/dead_letter.proto");
    asks_on!(v1, waybill.channel(), orders.0, orders.1, orders.2);
    asks_on!(v1alpha, waybill.channel(), orders.0, orders.1, orders.2);
    asks_on!(v1, waybill.operations_channel(), operations.0, operations.1, operations.2);
    asks_on!(v1alpha, waybill.operations_channel(), operations.0, operations.1, operations.2);
}
