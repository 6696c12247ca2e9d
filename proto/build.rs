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

/// Served by steps of one's own alone, so without a descriptor set.
const STEPS: &str = "steps/v1/step_service.proto";

fn main() -> Result<(), Box<dyn Error>> {
    let out_dir = PathBuf::from(std::env::var("OUT_DIR")?);
    for folder in ["inventory", "orders", "operations", "payments", "steps"] {
        println!("cargo::rerun-if-changed={folder}");
    }
    for (name, protos) in SETS {
        std::fs::write(out_dir.join(name), compile(protos)?.encode_file_descriptor_set())?;
    }
    let protos: Vec<_> = SETS.iter().flat_map(|(_, protos)| protos.iter().copied()).chain([STEPS]).collect();
    // Ordered maps make the encoding the same each time.
    tonic_prost_build::configure().btree_map(".").compile_fds(compile(&protos)?.file_descriptor_set())?;
    Ok(())
}

fn compile(protos: &[&str]) -> Result<protox::Compiler, protox::Error> {
    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_imports(true).include_source_info(true).open_files(protos)?;
    Ok(compiler)
}
