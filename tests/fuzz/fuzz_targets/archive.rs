#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sami::fuzz::archive(data));
