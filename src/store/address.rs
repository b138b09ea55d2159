//! What every store has to say about its address.

use std::borrow::Cow;

/// Why there is no store at an address. It repeats nothing of the address, which may hold a password, but
/// the names of files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address does not begin with a scheme that is known.
    #[error(
        "the store's address must begin with memory:, redis://, redis+cluster:// or redis+sentinel:// \
         (or rediss, valkey or valkeys in place of redis), redis+unix://, unix:// or memcached://"
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
    /// A certificate, a key or another setting of TLS cannot be used.
    #[error("TLS to the store cannot be used: {reason}")]
    #[non_exhaustive]
    Tls {
        /// What is wrong with it. A file is named, and nothing of its contents.
        reason: Cow<'static, str>,
    },
}

#[allow(dead_code, reason = "which of these is used depends on the features")]
impl ConnectError {
    /// `reason` must hold no password, so it should not repeat the address.
    pub(crate) fn address(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Address { reason: reason.into() }
    }

    /// `reason` must hold nothing of a key.
    pub(crate) fn tls(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Tls { reason: reason.into() }
    }

    pub(crate) const fn feature(feature: &'static str) -> Self {
        Self::FeatureDisabled { feature }
    }
}

/// What stands before the first colon.
pub(crate) fn scheme(url: &str) -> &str {
    url.split_once(':').map_or("", |(scheme, _)| scheme)
}
