//! Creates the store that an address specifies.

use std::sync::Arc;

use crate::store::address::{ConnectError, scheme};
use crate::store::contract::Store;

/// Creates the store that an address specifies, so that you can choose the store with an environment
/// variable.
///
/// ```
/// # #[cfg(feature = "memory")] {
/// let store = unsticky::connect("memory:");
/// assert!(store.is_ok());
/// # }
/// assert!(unsticky::connect("postgres://db").is_err());
/// ```
///
/// | address | store | feature |
/// |---|---|---|
/// | `memory:` | `MemoryStore` with its defaults | `memory` |
/// | `redis://[user:password@]host[:port][/database]` | `RedisStore` | `redis` |
/// | `redis+cluster://[user:password@]host[:port],…` | `RedisStore` in a Redis Cluster | `redis` |
/// | `redis+sentinel://[user:password@]host[:port],…/master[/database]` | `RedisStore` on the master that the Sentinels report | `redis` |
/// | `rediss://…`, `rediss+cluster://…` or `rediss+sentinel://…` for TLS, with options for a CA, a client certificate and the server's name | `RedisStore` | `redis-tls` |
/// | `valkey` and `valkeys` in place of `redis` and `rediss` | `RedisStore` | `redis`, `redis-tls` |
/// | `redis+unix:///path/to/socket` or `unix://…` | `RedisStore` | `redis` |
/// | `memcached://host:port[,host:port…]` | `MemcachedStore` | `memcached` |
///
/// This function sends nothing and resolves no host name, so the application can start while the backend is
/// down. It does, however, read the TLS files that the address specifies.
///
/// If you change the list of Memcached servers, change [`Builder::epoch`](crate::Builder::epoch) in the same
/// release. The documentation of `MemcachedStore` explains why.
///
/// # Errors
///
/// [`ConnectError`] if the address has none of these forms, if the feature that it needs is not enabled, or
/// if a TLS file cannot be used. The error does not repeat the address, which may contain a password.
#[doc(alias("from_url", "open", "database_url"))]
pub fn connect(url: &str) -> Result<Arc<dyn Store>, ConnectError> {
    // The part after a `+`, as in `redis+cluster`, does not change the type of the store.
    match scheme(url).split('+').next().unwrap_or_default() {
        "memory" => memory(url),
        "redis" | "rediss" | "valkey" | "valkeys" | "unix" => redis(url),
        "memcached" => memcached(url),
        _ => Err(ConnectError::UnknownScheme),
    }
}

#[cfg(feature = "memory")]
fn memory(url: &str) -> Result<Arc<dyn Store>, ConnectError> {
    match url {
        "memory:" | "memory://" => Ok(Arc::new(crate::store::memory::MemoryStore::new())),
        _ => Err(ConnectError::address("write `memory:` and nothing after it")),
    }
}

#[cfg(not(feature = "memory"))]
fn memory(_: &str) -> Result<Arc<dyn Store>, ConnectError> {
    Err(ConnectError::feature("memory"))
}

#[cfg(feature = "redis")]
fn redis(url: &str) -> Result<Arc<dyn Store>, ConnectError> {
    Ok(Arc::new(crate::store::redis::RedisStore::connect(url)?))
}

#[cfg(not(feature = "redis"))]
fn redis(url: &str) -> Result<Arc<dyn Store>, ConnectError> {
    let is_tls = matches!(scheme(url).split('+').next(), Some("rediss" | "valkeys"));
    Err(ConnectError::feature(if is_tls { "redis-tls" } else { "redis" }))
}

#[cfg(feature = "memcached")]
fn memcached(url: &str) -> Result<Arc<dyn Store>, ConnectError> {
    Ok(Arc::new(crate::store::memcached::MemcachedStore::connect(url)?))
}

#[cfg(not(feature = "memcached"))]
fn memcached(_: &str) -> Result<Arc<dyn Store>, ConnectError> {
    Err(ConnectError::feature("memcached"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_scheme_is_refused_without_repeating_address() {
        for url in ["", "localhost", "postgres://u:hunter2@h/", ":hunter2", "Redis"] {
            let error = connect(url).unwrap_err();
            assert_eq!(error, ConnectError::UnknownScheme);
            assert!(!format!("{error} {error:?}").contains("hunter2"));
        }
    }

    #[cfg(feature = "memory")]
    #[test]
    fn memory_address_accepts_no_arguments() {
        assert!(connect("memory:").is_ok());
        assert!(connect("memory://").is_ok());
        assert!(matches!(connect("memory:8"), Err(ConnectError::Address { .. })));
    }

    #[cfg(not(feature = "memory"))]
    #[test]
    fn error_names_missing_feature() {
        assert_eq!(connect("memory:").unwrap_err(), ConnectError::feature("memory"));
    }

    #[cfg(feature = "redis")]
    #[test]
    fn redis_address_is_validated_without_server() {
        for url in [
            "redis://h",
            "redis://u:p@h:1/3",
            "valkey://u:p@h:1/3",
            "redis+unix:///r.sock",
            "unix:///r.sock",
        ] {
            assert!(connect(url).is_ok(), "{url}");
        }
        for url in ["redis:", "redis://:hunter2@", "redis://:hunter2@h/x", "redis://:hunter2@h:x"] {
            let error = connect(url).unwrap_err();
            assert!(matches!(error, ConnectError::Address { .. }), "{url}: {error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"));
        }
        for tls in [connect("rediss://h"), connect("valkeys://h")] {
            if cfg!(feature = "redis-tls") {
                assert!(tls.is_ok());
            } else {
                assert_eq!(tls.unwrap_err(), ConnectError::feature("redis-tls"));
            }
        }
    }
}
