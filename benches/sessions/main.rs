//! What sessions cost: `cargo bench --all-features`, and with `-- --quick` in less than three minutes.
//!
//! | group | what |
//! |---|---|
//! | `codec` | a record decoded, read and encoded |
//! | `plan` | the decision at the end of a request |
//! | `exchange` | a whole request outside the store, which answers at once |
//! | `stores` | each verb of each store, by payload and by how many call at once |
//! | `mix` | requests as they come: 90 % read, 7 % write, 2 % sign in, 1 % sign out |
//! | `contention` | requests that all write the same session |
//!
//! The last three run on servers of their own, started from the path: `redis-server` and `memcached`.
//! With `SESSION_URL` they run on the store that it names, and on no other one; what they leave there
//! expires within the hour, and its keys begin with `unsticky-bench`.

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
