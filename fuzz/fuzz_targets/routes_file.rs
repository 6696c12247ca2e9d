#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| routes::fuzzing::routes_file(bytes));
