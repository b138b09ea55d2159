//! What the integration tests share. Each uses a part of it.

#![allow(dead_code, unreachable_pub, missing_docs)]

#[cfg(all(feature = "axum", feature = "actix"))]
pub mod app;
pub mod servers;
pub mod visit;
