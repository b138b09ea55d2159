//! What the integration tests share. Each uses a part of it.

#![allow(dead_code, unreachable_pub, unused_imports, unused_macros, missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

#[cfg(all(feature = "axum", feature = "actix"))]
pub mod app;
#[cfg(all(feature = "testing", feature = "redis", feature = "memcached"))]
pub mod faults;
pub mod proxy;
pub mod servers;
#[cfg(all(feature = "testing", feature = "memory", feature = "redis", feature = "memcached"))]
pub mod stand;
pub mod stopwatch;
pub mod visit;

/// How many times as long a randomized test is as usual.
pub fn length() -> u8 {
    match std::env::var_os("UNSTICKY_LONG") {
        Some(value) if value != "0" => 10,
        _ => 1,
    }
}
