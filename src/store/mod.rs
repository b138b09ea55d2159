//! Where sessions are kept: the contract of a store, and the stores.

mod address;
mod connect;
mod contract;
#[cfg(any(feature = "redis", feature = "memcached"))]
mod dial;
#[cfg(feature = "memcached")]
mod memcached;
#[cfg(feature = "memory")]
mod memory;
#[cfg(any(feature = "redis", feature = "memcached"))]
mod per_runtime;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod samples;

pub use self::address::ConnectError;
pub use self::connect::connect;
pub use self::contract::{
    Created, Deleted, Kind, Replaced, Store, StoreKey, Stored, TAG_LEN, Version,
};
#[cfg(feature = "memcached")]
pub use self::memcached::{MemcachedBuilder, MemcachedStore};
#[cfg(feature = "memory")]
pub use self::memory::MemoryStore;
#[cfg(feature = "redis")]
pub use self::redis::{RedisBuilder, RedisStore};
