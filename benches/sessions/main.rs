//! Benchmarks for sessions: `cargo bench --all-features`. With `-- --quick`, they take less than three
//! minutes.
//!
//! | group | what it measures |
//! |---|---|
//! | `codec` | decoding, reading and encoding a record |
//! | `plan` | the decision at the end of a request |
//! | `exchange` | a whole request on a store that answers immediately |
//! | `stores` | each verb of each store, by payload and number of concurrent callers |
//! | `mix` | a mix of requests: 90 % read, 7 % write, 2 % sign in, 1 % sign out |
//! | `contention` | concurrent requests that write to the same session |
//!
//! The last three groups start private servers, so `redis-server` and `memcached` must be in the path. If
//! `SESSION_URL` is set, these groups run only on that store. The records that they leave there expire within
//! an hour, and their keys begin with `unsticky-bench`.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic, reason = "benchmarks")]

mod backend;
mod canned;
mod codec;
mod contention;
mod exchange;
mod plan;
mod request;
#[path = "../../tests/support/servers.rs"]
mod servers;
mod stores;
#[path = "../../tests/support/topologies.rs"]
mod topologies;

use criterion::{criterion_group, criterion_main};

criterion_group!(core, codec::codec, plan::plan, exchange::exchange);
criterion_group!(networked, stores::verbs, stores::mix, contention::contention);
criterion_main!(core, networked);
