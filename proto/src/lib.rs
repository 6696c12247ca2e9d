//! The contract: message types, clients and servers generated from the `.proto` files beside this crate, which document each
//! field and its limits.

use tonic::Code;

/// Orders: the public service, the order and its stored events.
pub mod orders {
    /// Version 1 of the public API.
    #[allow(
        missing_docs,
        clippy::all,
        clippy::allow_attributes_without_reason,
        reason = "generated; documented in orders/v1/*.proto"
    )]
    pub mod v1 {
        tonic::include_proto!("orders.v1");
    }

    /// Names that no step of a route can have: a word of events' subjects, and programs (`waybill-gateway`) that are no steps.
    pub const RESERVED_STEP_NAMES: [&str; 4] = ["end", "gateway", "payment-sandbox", "step"];
    /// The end of the name of a step's second consumer. No name of a step ends so.
    pub const RESERVED_STEP_SUFFIX: &str = "-carried";
}

/// Payments: the service that the payment step calls, and the controls of the sandbox.
pub mod payments {
    /// Version 1 of the payment service.
    #[allow(
        missing_docs,
        clippy::all,
        clippy::allow_attributes_without_reason,
        reason = "generated; documented in payments/v1/*.proto"
    )]
    pub mod v1 {
        tonic::include_proto!("payments.v1");
    }

    /// What the ids of customers begin with whom a sandbox declines, so that a declined payment can be tried out.
    pub const DECLINED_PREFIX: &str = "declined";
}

/// Steps: the service that `waybill-step` calls.
pub mod steps {
    /// Version 1 of the step service.
    #[allow(
        missing_docs,
        clippy::all,
        clippy::allow_attributes_without_reason,
        reason = "generated; documented in steps/v1/*.proto"
    )]
    pub mod v1 {
        tonic::include_proto!("steps.v1");
    }
}

/// Operations: dead letters and their redrive.
pub mod operations {
    /// Version 1 of the operators' API.
    #[allow(
        missing_docs,
        clippy::all,
        clippy::allow_attributes_without_reason,
        reason = "generated; documented in operations/v1/*.proto"
    )]
    pub mod v1 {
        tonic::include_proto!("operations.v1");
    }
}

/// Inventory: the stock, and what operators do about it.
pub mod inventory {
    /// Version 1 of the operators' API of the stock.
    #[allow(
        missing_docs,
        clippy::all,
        clippy::allow_attributes_without_reason,
        reason = "generated; documented in inventory/v1/*.proto"
    )]
    pub mod v1 {
        tonic::include_proto!("inventory.v1");
    }
}

/// The compiled `FileDescriptorSet` of what the gateway serves to clients, for gRPC reflection.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/orders.bin"));
/// The compiled `FileDescriptorSet` of what the gateway serves to operators, for gRPC reflection.
pub const OPERATIONS_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/operations.bin"));
/// The compiled `FileDescriptorSet` of what the payment sandbox serves, for gRPC reflection.
pub const PAYMENTS_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/payments.bin"));

/// A gRPC status code as the specification spells it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
