//! Names of attributes that spans get after their start, and of metrics' labels: those of the OpenTelemetry semantic
//! conventions where they exist, else `waybill.*`.

pub use opentelemetry_semantic_conventions::attribute::{
    ERROR_TYPE, RPC_METHOD, RPC_RESPONSE_STATUS_CODE, SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION,
};

/// Marks a span that is exported even if its trace is not sampled.
pub const KEEP: &str = "waybill.keep";
/// Whose order it is about.
pub const ORDER_ID: &str = "waybill.order.id";
/// The order's revision: the sequence of its latest event.
pub const ORDER_REVISION: &str = "waybill.order.revision";
/// How often the message has been delivered, this time included.
pub const DELIVERIES: &str = "waybill.deliveries";
/// The dead letter.
pub const DEAD_LETTER_ID: &str = "waybill.dead_letter.id";
/// What an attempt failed of, for people.
pub const ATTEMPT_ERROR: &str = "waybill.attempt.error";
/// Whether a failed attempt counts against the order.
pub const ATTEMPT_COUNTS: &str = "waybill.attempt.counts";

/// Whether a server's answer with this code is a failure of the server, by the conventions.
pub fn is_server_error(status: &str) -> bool {
    matches!(
        status,
        "UNKNOWN" | "DEADLINE_EXCEEDED" | "UNIMPLEMENTED" | "INTERNAL" | "UNAVAILABLE" | "DATA_LOSS"
    )
}
