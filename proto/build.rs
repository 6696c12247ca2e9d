//! Compiles the protos with protox (no protoc) into message types, clients, servers, and the descriptor sets that
//! gRPC reflection serves, one for each address.

use std::error::Error;
use std::path::PathBuf;

/// Descriptor sets and their protos.
const SETS: [(&str, &[&str]); 3] = [
    ("orders.bin", &["orders/v1/order_service.proto"]),
    ("operations.bin", &["operations/v1/dead_letter_service.proto", "inventory/v1/stock_service.proto"]),
    ("payments.bin", &["payments/v1/payment_service.proto", "payments/v1/sandbox_control_service.proto"]),
];

fn main() -> Result<(), Box<dyn Error>> {
    let out_dir = PathBuf::from(std::env::var("OUT_DIR")?);
    for folder in ["inventory", "orders", "operations", "payments"] {
        println!("cargo::rerun-if-changed={folder}");
    }
    for (name, protos) in SETS {
        let mut compiler = protox::Compiler::new(["."])?;
        compiler.include_imports(true).include_source_info(true);
        compiler.open_files(protos)?;
        std::fs::write(out_dir.join(name), compiler.encode_file_descriptor_set())?;
        // Sorted maps: the same message always has the same bytes.
        tonic_prost_build::configure().btree_map(".").compile_fds(compiler.file_descriptor_set())?;
    }
    Ok(())
}
