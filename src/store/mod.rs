//! Stores for sessions: the contract that every store must follow, and the stores for Redis, Memcached and
//! memory.

mod address;
mod connect;
mod contract;
mod diagnose;
#[cfg(any(feature = "redis", feature = "memcached"))]
mod dial;
mod key;
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
#[cfg(feature = "cli")]
pub(crate) mod survey;
mod trial;

pub use self::address::ConnectError;
pub use self::connect::connect;
pub use self::contract::{Created, Deleted, Replaced, Store, Stored, Version};
pub(crate) use self::diagnose::ProbeSettings;
pub use self::diagnose::{Diagnose, Probe};
pub use self::key::{Kind, StoreKey, TAG_LEN};
#[cfg(feature = "memcached")]
pub use self::memcached::{MemcachedBuilder, MemcachedStore};
#[cfg(feature = "memory")]
pub use self::memory::MemoryStore;
#[cfg(feature = "redis")]
pub use self::redis::{RedisBuilder, RedisStore};
