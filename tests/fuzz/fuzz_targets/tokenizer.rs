#![no_main]

#[allow(dead_code)] // The other readers.
#[path = "../readers.rs"]
mod readers;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = readers::tokenizer(data);
});
