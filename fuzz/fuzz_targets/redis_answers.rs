#![no_main]

mod answers;

use std::sync::Arc;

use answers::{Protocol, Stand, with_stand};
use libfuzzer_sys::fuzz_target;
use unsticky::store::RedisStore;

/// Answers each command that sets up the connection. Returns `None` once a store command has arrived.
fn greeting(said: &[u8]) -> Option<Vec<u8>> {
    let is_ours = [&b"GET"[..], b"SET", b"EVALSHA", b"EVAL", b"DEL"]
        .into_iter()
        .any(|verb| said.split(|byte| *byte == b'\n').any(|line| line.trim_ascii() == verb));
    let commands = said.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"*")).count();
    (!is_ours).then(|| b"+OK\r\n".repeat(commands))
}

fuzz_target!(|data: &[u8]| {
    with_stand(
        || {
            let protocol = Protocol { greeting, nothing: |_| b"$-1\r\n".to_vec() };
            Stand::new(protocol, |port| {
                Arc::new(RedisStore::connect(&format!("redis://127.0.0.1:{port}/")).unwrap())
            })
        },
        data,
    );
});
