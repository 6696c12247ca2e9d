//! Names of what spans say: by the OpenTelemetry semantic conventions where they have one, else of ours.

pub use opentelemetry_semantic_conventions::attribute::{
    DB_COLLECTION_NAME, DB_OPERATION_NAME, DB_SYSTEM_NAME, ERROR_TYPE, MESSAGING_CONSUMER_GROUP_NAME,
    MESSAGING_DESTINATION_NAME, MESSAGING_DESTINATION_TEMPLATE, MESSAGING_MESSAGE_BODY_SIZE,
    MESSAGING_MESSAGE_ID, MESSAGING_OPERATION_NAME, MESSAGING_OPERATION_TYPE, MESSAGING_SYSTEM, RPC_METHOD,
    RPC_RESPONSE_STATUS_CODE, RPC_SYSTEM_NAME, SERVER_ADDRESS, SERVER_PORT, SERVICE_INSTANCE_ID,
    SERVICE_NAME, SERVICE_VERSION,
};

/// Marks a span that is exported even if its trace is not sampled.
pub const KEEP: &str = "waybill.keep";
/// Whose order it is about.
pub const ORDER_ID: &str = "waybill.order.id";
/// The order's revision: the sequence of its latest event.
pub const ORDER_REVISION: &str = "waybill.order.revision";
/// The step at work.
pub const STEP: &str = "waybill.step";
/// How often the message has been delivered, this time included.
pub const DELIVERIES: &str = "waybill.deliveries";
/// The dead letter.
pub const DEAD_LETTER_ID: &str = "waybill.dead_letter.id";
/// Which append was tried again, or how it went: `stored`, `overtaken`.
pub const OUTCOME: &str = "waybill.outcome";
/// What an attempt failed of, for people.
pub const ATTEMPT_ERROR: &str = "waybill.attempt.error";
/// Whether a failed attempt counts against the order.
pub const ATTEMPT_COUNTS: &str = "waybill.attempt.counts";
/// How long until the next attempt, in seconds.
pub const ATTEMPT_DELAY: &str = "waybill.attempt.delay";

/// The broker, in the words of the conventions for messaging and for databases.
pub const NATS: &str = "nats";
/// The value of [`RPC_SYSTEM_NAME`].
pub const GRPC: &str = "grpc";

/// A gRPC status code as the conventions write it; a number that is none is UNKNOWN.
pub fn grpc_status(code: i32) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    usize::try_from(code).ok().and_then(|code| NAMES.get(code)).unwrap_or(&NAMES[2])
}

/// Whether a server's answer with this code is a failure of the server, by the conventions.
pub fn is_server_error(status: &str) -> bool {
    matches!(
        status,
        "UNKNOWN" | "DEADLINE_EXCEEDED" | "UNIMPLEMENTED" | "INTERNAL" | "UNAVAILABLE" | "DATA_LOSS"
    )
}
