//! The contract for stores.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::error::Result;
use crate::store::diagnose::Diagnose;
use crate::store::key::StoreKey;

/// Stores records as bytes under keys, with four atomic operations ("verbs") that each act on one key.
///
/// A store does not know what a session is. The core of this crate handles encoding, deadlines, conflicts and
/// policy, so an implementation is short; the `custom_store` example is a complete one. Test your
/// implementation with `unsticky::testing::conformance!` (in the `testing` feature), which checks every part
/// of this contract that can be observed from outside.
///
/// # Contract
///
/// - **Atomicity.** Each verb takes effect entirely or not at all, at a single moment between the call and
///   its answer. Concurrent verbs on one key behave as if they had run one after the other.
/// - **Versions.** Every successful `create` and `replace` gives the key a version that it has never had
///   before, even if the key was deleted and created again. The core changes the first
///   [`TAG_LEN`](crate::store::TAG_LEN) bytes of `bytes`, the *write tag*, in every write, so a backend that
///   has no versions of its own can use the write tag as the version.
/// - **Compare-and-set.** `replace` and a conditional `delete` receive the record that the key is expected to
///   hold: its version, as this store returned it, and the bytes that this store returned or received
///   together with that version. A store may compare the version, the write tag or the whole value, whichever
///   suits its backend. A decorator that changes the bytes, for example to encrypt them, passes on expected
///   bytes that its inner store does not hold. Such a decorator therefore needs an inner store that compares
///   versions, as all stores in this crate do.
/// - **Time to live.** `ttl` is at least one millisecond. A store must keep a key for at least `ttl`, so a
///   store whose backend counts in coarser units must round *up*. It may keep the key a few seconds longer,
///   because the core enforces all deadlines itself, but it must not keep the key forever. Once a key has
///   expired, every verb must treat it as missing. `replace` sets a new time to live, which may be longer or
///   shorter.
/// - **Bytes** are opaque and binary. A store must accept every length from
///   [`TAG_LEN`](crate::store::TAG_LEN) up to 64 KiB, and may accept more. It must refuse a write that
///   exceeds the backend's limit, and leave the old record unchanged.
/// - **Keys** are at most 200 bytes of printable ASCII without spaces.
/// - **Errors.** [`Error::unavailable`], [`Error::refused`] and [`Error::too_large`] mean that nothing was
///   written. If a write may have reached the backend but its answer was lost, the error must be
///   [`Error::outcome_unknown`], and the store must never retry the write itself.
/// - **Cancellation.** If the future of a call is dropped, the write may or may not take effect. Other calls
///   are not affected: no later call ever receives the answer to a dropped one.
/// - **Time.** Every call ends within a bounded time, with an answer or an error. The core drops a call that
///   takes longer than its share of the request's time limit.
/// - **Construction** does no I/O, so an application can start while the backend is down.
///
/// The trait has no default methods, so a decorator that does not forward a verb does not compile.
///
/// # Example
///
/// This decorator counts the calls to `load`. [`Sessions::builder`](crate::Sessions::builder) takes any
/// store.
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
    /// See *Errors* in the [contract](Self#contract). If the key exists, the result is [`Created::Occupied`],
    /// not an error.
    async fn create(&self, key: &StoreKey, bytes: Bytes, ttl: Duration) -> Result<Created>;

    /// Reads the record under the key. Returns `None` if the key does not exist or has expired.
    ///
    /// # Errors
    ///
    /// See *Errors* in the [contract](Self#contract). A missing key is not an error.
    async fn load(&self, key: &StoreKey) -> Result<Option<Stored>>;

    /// Replaces the record under the key with `bytes`, for `ttl` from now, if the key still holds the
    /// `expected` record. Never creates a key.
    ///
    /// # Errors
    ///
    /// See *Errors* in the [contract](Self#contract). If the key holds a different record, the result is
    /// [`Replaced::Conflict`]; if the key is missing, it is [`Replaced::Missing`]. Neither is an error.
    async fn replace(
        &self,
        key: &StoreKey,
        bytes: Bytes,
        ttl: Duration,
        expected: &Stored,
    ) -> Result<Replaced>;

    /// Deletes the key if it still holds the `expected` record. With `None`, deletes the key regardless of
    /// the record that it holds.
    ///
    /// # Errors
    ///
    /// See *Errors* in the [contract](Self#contract). If the key holds a different record, the result is
    /// [`Deleted::Conflict`]; if the key is missing, it is [`Deleted::Missing`]. Neither is an error.
    async fn delete(&self, key: &StoreKey, expected: Option<&Stored>) -> Result<Deleted>;

    /// Returns the [`Diagnose`] implementation with which [`Sessions::check`](crate::Sessions::check)
    /// examines the servers behind this store.
    ///
    /// Return `None` if the store can report nothing beyond what its four verbs show; the check then tries
    /// only the verbs. A decorator forwards the call to its inner store.
    fn diagnosis(&self) -> Option<&dyn Diagnose>;
}

/// The version of a record under its key. Only the store that assigned a version can interpret it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version(u64);

impl Version {
    /// Creates a version from the backend's own number.
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
    /// Creates a record from these bytes and their version.
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
    /// The key already exists. Nothing was changed.
    Occupied,
}

/// The result of [`Store::replace`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums)]
pub enum Replaced {
    /// The record was stored, under this version.
    Replaced(Version),
    /// The key holds a record other than the expected one. Nothing was changed. Contains the record that the
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
    /// The key holds a record other than the expected one. Nothing was changed. Contains the record that the
    /// key holds, if the backend's answer included it.
    Conflict(Option<Stored>),
    /// The key does not exist.
    Missing,
}

/// Implements [`Store`] for a pointer by forwarding the verbs to the store behind it. The signatures that
/// `async_trait` generates are written out, because the macro would allocate a second future around the inner
/// store's future.
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
