//! The contract: message types, client and server made of the `.proto` files beside this crate.
//! What a field means, and its limits, is said there.

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

/// The compiled `FileDescriptorSet` of every proto, for gRPC reflection.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor_set.bin"));
