//! The contract of a store.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::error::Result;
use crate::store::diagnose::Diagnose;
use crate::store::key::StoreKey;

/// Stores records as bytes under keys: four atomic operations ("verbs") on one key each.
///
/// A store does not know what a session is. Encoding, deadlines, conflicts and policy belong to the core of
/// this crate, so an implementation is short: the example `custom_store` is a complete one. Test an
/// implementation with `unsticky::testing::conformance!` (feature `testing`), which checks everything in this
/// contract that can be observed from outside.
///
/// # Contract
///
/// - **Atomicity.** Each verb takes effect entirely or not at all, at one moment between the call and its
///   answer. Concurrent verbs on one key behave as if they had run one after the other.
/// - **Versions.** Every successful `create` and `replace` gives the key a version that it has never had
///   before, even if the key was deleted and created again. The first [`TAG_LEN`](crate::store::TAG_LEN) bytes
///   of `bytes`, the *write tag*, differ in every write that the core makes, so a backend that has no versions
///   of its own can use them as the version.
/// - **Compare-and-set.** `replace` and the conditional `delete` receive the record that they expect to find:
///   its version, as this store returned it, and its bytes, as this store returned or received them with that
///   version. A store may compare the version, the write tag or the whole value, whichever suits its backend. A
///   decorator that stores different bytes from those it receives, such as one that encrypts them, passes on
///   bytes that its inner store does not hold. It therefore needs an inner store that compares versions, as
///   all stores of this crate do.
/// - **Time to live.** `ttl` is at least one millisecond. The key must not be readable after it has passed; a
///   backend that counts in coarser units rounds *up*. The core enforces all deadlines itself, so a store may
///   keep a key a little longer than `ttl`, but never for less time and never for ever. `replace` replaces the
///   time to live, with a longer or a shorter one.
/// - **Bytes** are opaque and binary. Every length from [`TAG_LEN`](crate::store::TAG_LEN) to at least 64 KiB
///   is accepted. A write over the backend's limit is refused and leaves the old record unchanged.
/// - **Keys** are printable ASCII without spaces, of at most 200 bytes.
/// - **Errors.** [`Error::unavailable`], [`Error::refused`] and [`Error::too_large`] state that nothing was
///   written. If a write may have reached the backend and its answer was lost, the error must be
///   [`Error::outcome_unknown`]. A store never repeats such a write itself.
/// - **Cancellation.** If the future of a call is dropped, its write may or may not take effect. Other calls
///   are not affected: no later call ever receives the answer to a dropped one.
/// - **Time.** Every call ends in bounded time, with an answer or an error. The core drops a call that takes
///   longer than its share of the request's time limit.
/// - **Construction** does no I/O, so an application can start while the backend is down.
///
/// The trait has no default methods, so a decorator that does not forward a verb does not compile.
///
/// # Example
///
/// A decorator that counts how many records are read. [`Sessions::builder`](crate::Sessions::builder) takes
/// any store.
///
/// ```
/// # #[cfg(feature = "memory")] {
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use std::time::Duration;
///
/// use async_trait::async_trait;
/// use bytes::Bytes;
/// use unsticky::Result;
/// use unsticky::store::{
///     Created, Deleted, Diagnose, MemoryStore, Replaced, Store, StoreKey, Stored,
/// };
///
/// #[derive(Debug)]
/// struct Counting<S> {
///     inner: S,
///     loads: AtomicU64,
/// }
///
/// #[async_trait]
/// impl<S: Store> Store for Counting<S> {
///     async fn create(&self, key: &StoreKey, bytes: Bytes, ttl: Duration) -> Result<Created> {
///         self.inner.create(key, bytes, ttl).await
///     }
///
///     async fn load(&self, key: &StoreKey) -> Result<Option<Stored>> {
///         self.loads.fetch_add(1, Ordering::Relaxed);
///         self.inner.load(key).await
///     }
///
///     async fn replace(
///         &self,
///         key: &StoreKey,
///         bytes: Bytes,
///         ttl: Duration,
///         expected: &Stored,
///     ) -> Result<Replaced> {
///         self.inner.replace(key, bytes, ttl, expected).await
///     }
///
///     async fn delete(&self, key: &StoreKey, expected: Option<&Stored>) -> Result<Deleted> {
///         self.inner.delete(key, expected).await
///     }
///
///     fn diagnosis(&self) -> Option<&dyn Diagnose> {
///         self.inner.diagnosis()
///     }
/// }
///
/// let store = Counting { inner: MemoryStore::new(), loads: AtomicU64::new(0) };
/// let sessions = unsticky::Sessions::builder(store).build();
/// assert!(sessions.is_ok());
/// # }
/// ```
///
/// [`Error::unavailable`]: crate::Error::unavailable
/// [`Error::refused`]: crate::Error::refused
/// [`Error::too_large`]: crate::Error::too_large
/// [`Error::outcome_unknown`]: crate::Error::outcome_unknown
#[doc(alias("SessionStore", "SessionRepository", "SessionBackend"))]
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Stores `bytes` under the key for `ttl`, if the key does not exist.
    ///
    /// # Errors
    ///
    /// As the [contract](Self#contract) says. If the key exists, the result is [`Created::Occupied`], not an
    /// error.
    async fn create(&self, key: &StoreKey, bytes: Bytes, ttl: Duration) -> Result<Created>;

    /// Reads the record under the key. Returns `None` if the key does not exist or has expired.
    ///
    /// # Errors
    ///
    /// As the [contract](Self#contract) says. A missing key is not an error.
    async fn load(&self, key: &StoreKey) -> Result<Option<Stored>>;

    /// Replaces the record under the key by `bytes`, for `ttl` from now, if the key still holds the `expected`
    /// record. Never creates a key.
    ///
    /// # Errors
    ///
    /// As the [contract](Self#contract) says. If the key holds another record or is missing, the result is
    /// [`Replaced::Conflict`] or [`Replaced::Missing`], not an error.
    async fn replace(
        &self,
        key: &StoreKey,
        bytes: Bytes,
        ttl: Duration,
        expected: &Stored,
    ) -> Result<Replaced>;

    /// Deletes the key, if it still holds the `expected` record. With `None`, deletes the key whichever record
    /// it holds.
    ///
    /// # Errors
    ///
    /// As the [contract](Self#contract) says. If the key holds another record or is missing, the result is
    /// [`Deleted::Conflict`] or [`Deleted::Missing`], not an error.
    async fn delete(&self, key: &StoreKey, expected: Option<&Stored>) -> Result<Deleted>;

    /// Returns the examination of the servers behind this store that
    /// [`Sessions::check`](crate::Sessions::check) runs.
    ///
    /// A store that cannot tell more than its four verbs do returns `None`; the check then tries the verbs.
    /// A decorator forwards the call to its inner store.
    fn diagnosis(&self) -> Option<&dyn Diagnose>;
}

/// The version of a record under its key. Only the store that made it can interpret it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version(u64);

impl Version {
    /// Makes a version from the backend's own number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Returns the backend's own number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A record as the store holds it: the bytes and their version.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stored {
    /// The bytes that were stored.
    pub bytes: Bytes,
    /// The version of these bytes.
    pub version: Version,
}

impl Stored {
    /// Makes a record of these bytes and their version.
    #[must_use]
    pub const fn new(bytes: Bytes, version: Version) -> Self {
        Self { bytes, version }
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stored")
            .field("bytes", &format_args!("<{} bytes>", self.bytes.len()))
            .field("version", &self.version)
            .finish()
    }
}

/// The result of [`Store::create`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums)]
pub enum Created {
    /// The record was stored, under this version.
    Created(Version),
    /// The key exists already. Nothing was changed.
    Occupied,
}

/// The result of [`Store::replace`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums)]
pub enum Replaced {
    /// The record was stored, under this version.
    Replaced(Version),
    /// The key holds another record than the expected one. Nothing was changed. Contains the record that the
    /// key holds, if the backend's answer included it.
    Conflict(Option<Stored>),
    /// The key does not exist. Nothing was changed.
    Missing,
}

/// The result of [`Store::delete`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums)]
pub enum Deleted {
    /// The record was deleted.
    Deleted,
    /// The key holds another record than the expected one. Nothing was changed. Contains the record that the
    /// key holds, if the backend's answer included it.
    Conflict(Option<Stored>),
    /// The key does not exist.
    Missing,
}

/// Forwards the verbs of a pointer to the store behind it. The signatures that `async_trait` generates are
/// written out, because the macro would allocate a second future around that of the inner store.
macro_rules! forward {
    ($($pointer:ident),*) => {$(
        #[deny(clippy::missing_trait_methods)]
        impl<S: Store + ?Sized> Store for $pointer<S> {
            fn create<'a, 'b, 'c>(
                &'a self,
                key: &'b StoreKey,
                bytes: Bytes,
                ttl: Duration,
            ) -> BoxFuture<'c, Result<Created>>
            where
                'a: 'c,
                'b: 'c,
            {
                (**self).create(key, bytes, ttl)
            }

            fn load<'a, 'b, 'c>(&'a self, key: &'b StoreKey) -> BoxFuture<'c, Result<Option<Stored>>>
            where
                'a: 'c,
                'b: 'c,
            {
                (**self).load(key)
            }

            fn replace<'a, 'b, 'c, 'd>(
                &'a self,
                key: &'b StoreKey,
                bytes: Bytes,
                ttl: Duration,
                expected: &'c Stored,
            ) -> BoxFuture<'d, Result<Replaced>>
            where
                'a: 'd,
                'b: 'd,
                'c: 'd,
            {
                (**self).replace(key, bytes, ttl, expected)
            }

            fn delete<'a, 'b, 'c, 'd>(
                &'a self,
                key: &'b StoreKey,
                expected: Option<&'c Stored>,
            ) -> BoxFuture<'d, Result<Deleted>>
            where
                'a: 'd,
                'b: 'd,
                'c: 'd,
            {
                (**self).delete(key, expected)
            }

            fn diagnosis(&self) -> Option<&dyn Diagnose> {
                (**self).diagnosis()
            }
        }
    )*};
}

forward!(Arc, Box);
