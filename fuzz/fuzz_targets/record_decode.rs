#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| unsticky::internals::fuzz::record_decode(data));
