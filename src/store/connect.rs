//! Picks the store that an address names.

use std::borrow::Cow;
use std::sync::Arc;

use super::Store;

/// Makes the store that an address names, so that an environment variable can choose it.
///
/// | address | store | feature |
/// |---|---|---|
/// | `memory:` | `MemoryStore` with its defaults | `memory` |
/// | `redis://[user:password@]host[:port][/database]` | `RedisStore` | `redis` |
/// | `rediss://…`, the same over TLS | `RedisStore` | `redis-tls` |
/// | `redis+unix:///path/to/socket` or `unix://…` | `RedisStore` | `redis` |
/// | `memcached://host:port[,host:port…]` | `MemcachedStore` | `memcached` |
///
/// Nothing is sent and no name is resolved here: the application starts while the backend is down.
///
/// # Errors
///
/// [`ConnectError`] where the address is not one of these, or where its feature is not enabled.
pub fn connect(url: &str) -> Result<Arc<dyn Store>, ConnectError> {
    match scheme(url) {
        "memory" => memory(url),
        "redis" | "rediss" | "redis+unix" | "unix" => redis(url),
        "memcached" => memcached(url),
        _ => Err(ConnectError::UnknownScheme),
    }
}

/// Why an address names no store. It repeats nothing of the address, which may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address does not begin with a scheme that is known.
    #[error(
        "the store's address must begin with memory:, redis://, rediss://, redis+unix://, unix:// \
         or memcached://"
    )]
    UnknownScheme,
    /// The address is one of a store that this build does not have.
    #[error("the store's address needs the feature `{feature}` of the crate unsticky")]
    #[non_exhaustive]
    FeatureDisabled {
        /// The feature to enable.
        feature: &'static str,
    },
    /// The address is not well-formed.
    #[error("the store's address is not usable: {reason}")]
    #[non_exhaustive]
    Address {
        /// What is wrong with it.
        reason: Cow<'static, str>,
    },
}

#[allow(dead_code, reason = "which of these is used depends on the features")]
impl ConnectError {
    /// `reason` must hold no password, so it should not repeat the address.
    pub(crate) fn address(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Address { reason: reason.into() }
    }

    pub(crate) const fn feature(feature: &'static str) -> Self {
        Self::FeatureDisabled { feature }
    }
}

/// What stands before the first colon.
pub(super) fn scheme(url: &str) -> &str {
    url.split_once(':').map_or("", |(scheme, _)| scheme)
}

#[cfg(feature = "memory")]
fn memory(url: &str) -> Result<Arc<dyn Store>, ConnectError> {
    match url {
        "memory:" | "memory://" => Ok(Arc::new(super::MemoryStore::new())),
        _ => Err(ConnectError::address("nothing may follow memory:")),
    }
}

#[cfg(not(feature = "memory"))]
fn memory(_: &str) -> Result<Arc<dyn Store>, ConnectError> {
    Err(ConnectError::feature("memory"))
}

#[cfg(feature = "redis")]
fn redis(url: &str) -> Result<Arc<dyn Store>, ConnectError> {
    Ok(Arc::new(super::RedisStore::connect(url)?))
}

#[cfg(not(feature = "redis"))]
fn redis(url: &str) -> Result<Arc<dyn Store>, ConnectError> {
    Err(ConnectError::feature(if scheme(url) == "rediss" { "redis-tls" } else { "redis" }))
}

#[cfg(feature = "memcached")]
fn memcached(url: &str) -> Result<Arc<dyn Store>, ConnectError> {
    Ok(Arc::new(super::MemcachedStore::connect(url)?))
}

#[cfg(not(feature = "memcached"))]
fn memcached(_: &str) -> Result<Arc<dyn Store>, ConnectError> {
    Err(ConnectError::feature("memcached"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_scheme_is_refused_without_repeating_the_address() {
        for url in ["", "localhost", "postgres://u:hunter2@h/", ":hunter2", "Redis"] {
            let error = connect(url).unwrap_err();
            assert_eq!(error, ConnectError::UnknownScheme);
            assert!(!format!("{error} {error:?}").contains("hunter2"));
        }
    }

    #[cfg(feature = "memory")]
    #[test]
    fn memory_takes_no_further_words() {
        assert!(connect("memory:").is_ok());
        assert!(connect("memory://").is_ok());
        assert!(matches!(connect("memory:8"), Err(ConnectError::Address { .. })));
    }

    #[cfg(not(feature = "memory"))]
    #[test]
    fn a_missing_feature_is_named() {
        assert_eq!(connect("memory:").unwrap_err(), ConnectError::feature("memory"));
    }

    #[cfg(feature = "redis")]
    #[test]
    fn redis_addresses_are_checked_without_a_server() {
        for url in ["redis://h", "redis://u:p@h:1/3", "redis+unix:///r.sock", "unix:///r.sock"] {
            assert!(connect(url).is_ok(), "{url}");
        }
        for url in ["redis:", "redis://:hunter2@", "redis://:hunter2@h/x", "redis://:hunter2@h:x"] {
            let error = connect(url).unwrap_err();
            assert!(matches!(error, ConnectError::Address { .. }), "{url}: {error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"));
        }
        let tls = connect("rediss://h");
        if cfg!(feature = "redis-tls") {
            assert!(tls.is_ok());
        } else {
            assert_eq!(tls.unwrap_err(), ConnectError::feature("redis-tls"));
        }
    }
}
