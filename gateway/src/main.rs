//! `waybill-gateway`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    gateway::main()
}
