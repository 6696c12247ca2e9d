//! The contract: message types, clients and servers generated from the `.proto` files beside this crate, which document each
//! field and its limits.

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
