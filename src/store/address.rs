//! The error for an invalid store address, and the parsing that all addresses share.

use std::borrow::Cow;
#[cfg(any(feature = "redis", feature = "memcached"))]
use std::net::Ipv6Addr;

/// The reason why no store can be created from an address.
///
/// The message repeats nothing from the address, which may contain a password, except file names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address begins with none of the known schemes.
    #[error(
        "the store's address must begin with memory:, redis://, redis+cluster:// or redis+sentinel:// \
         (or rediss, valkey or valkeys in place of redis), redis+unix://, unix:// or memcached://"
    )]
    UnknownScheme,
    /// The address is for a store that this build does not include.
    #[error(
        "the store's address needs the `{feature}` feature of the unsticky crate: enable it in Cargo.toml"
    )]
    #[non_exhaustive]
    FeatureDisabled {
        /// The cargo feature to enable.
        feature: &'static str,
    },
    /// The address begins with a known scheme, but another part of it is invalid.
    #[error("the store's address is invalid: {reason}")]
    #[non_exhaustive]
    Address {
        /// The invalid part, and the form that it must have.
        reason: Cow<'static, str>,
    },
    /// A certificate, a key or another TLS setting cannot be used.
    #[error("the TLS settings for the store cannot be used: {reason}")]
    #[non_exhaustive]
    Tls {
        /// The setting or file that cannot be used, and why. Repeats nothing from the contents of a file.
        reason: Cow<'static, str>,
    },
}

#[allow(dead_code, reason = "which of these is used depends on the features")]
impl ConnectError {
    /// `reason` must not contain a password, so it should not repeat the address.
    pub(crate) fn address(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Address { reason: reason.into() }
    }

    /// `reason` must not contain any part of a key.
    pub(crate) fn tls(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Tls { reason: reason.into() }
    }

    pub(crate) const fn feature(feature: &'static str) -> Self {
        Self::FeatureDisabled { feature }
    }
}

/// Returns the part before the first colon.
pub(crate) fn scheme(url: &str) -> &str {
    url.split_once(':').map_or("", |(scheme, _)| scheme)
}

/// Parses an IPv6 address after its opening bracket. Returns the address and the text after the closing
/// bracket.
#[cfg(any(feature = "redis", feature = "memcached"))]
pub(crate) fn bracketed(text: &str) -> Result<(Ipv6Addr, &str), ConnectError> {
    let (host, rest) = text.split_once(']').ok_or_else(|| {
        ConnectError::address("a bracket is not closed; write an IPv6 address as [::1]")
    })?;
    let host = host.parse().map_err(|_| {
        ConnectError::address("the text in brackets is not an IPv6 address; write it as in [::1]")
    })?;
    Ok((host, rest))
}
