#![no_main]

mod answers;

use std::sync::Arc;

use answers::{Protocol, Stand, with_stand};
use libfuzzer_sys::fuzz_target;
use unsticky::store::MemcachedStore;

fn greeting(said: &[u8]) -> Option<Vec<u8>> {
    (said == b"mn\r\n").then(|| b"MN\r\n".to_vec())
}

/// Answers each read with a miss that repeats the read's opaque value.
fn nothing(said: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    for line in said.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii) {
        if line.starts_with(b"mg ") {
            answer.extend_from_slice(b"EN");
            for flag in line.split(|byte| *byte == b' ').filter(|flag| flag.starts_with(b"O")) {
                answer.push(b' ');
                answer.extend_from_slice(flag);
            }
            answer.extend_from_slice(b"\r\n");
        } else if line == b"mn" {
            answer.extend_from_slice(b"MN\r\n");
        }
    }
    answer
}

fuzz_target!(|data: &[u8]| {
    with_stand(
        || {
            Stand::new(Protocol { greeting, nothing }, |port| {
                Arc::new(MemcachedStore::connect(&format!("memcached://127.0.0.1:{port}")).unwrap())
            })
        },
        data,
    );
});
