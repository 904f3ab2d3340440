#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sami::fuzz::gguf(data));
