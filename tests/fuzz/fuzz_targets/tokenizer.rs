#![no_main]

// The library that reads tokenizers panics on some files, which is caught: a hook that ends the process at once would not let it be. What is
// not caught ends it all the same.
libfuzzer_sys::fuzz_target!(init: drop(std::panic::take_hook()), |data: &[u8]| sami::fuzz::tokenizer(data));
