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

/// A place where records are kept: four verbs over bytes, each on one key and each atomic.
///
/// A store knows nothing of sessions. Codec, deadlines, conflicts and policy live in the core, so
/// a store is short. `unsticky::testing::conformance!` (feature `testing`) checks what can be
/// checked of this contract from outside.
///
/// # Contract
///
/// - **Atomic.** Each verb takes effect entirely or not at all, at one moment between its call and
///   its answer. Concurrent verbs on one key behave as if they had run one after the other.
/// - **Versions.** Every successful `create` and `replace` gives the key a version that it has not
///   had before, also after the key was deleted and created again. The first
///   [`TAG_LEN`](crate::store::TAG_LEN) bytes of `bytes` differ in every write that the core makes, so a backend
///   without versions of its own may use them.
/// - **Compare-and-set.** `replace` and the conditional `delete` are given the record that they
///   expect to find: the version that this store gave it, and the bytes that this store gave or was
///   given with that version. A store compares either, whichever its backend compares best: a
///   version number, the write tag, or the whole value. A decorator that stores other bytes than it is
///   given, such as an encrypting one, hands on bytes that its inner store does not hold, so it needs
///   an inner store that compares versions, as all stores of this crate do.
/// - **Time to live.** `ttl` is at least one millisecond. A key is not readable after it, and a
///   store that counts in coarser units rounds *up*. The core enforces deadlines itself, so a store
///   may keep a key a little longer, never shorter, and never for ever. `replace` sets the time to
///   live anew, to a longer or a shorter one.
/// - **Bytes** are opaque and binary; every length from [`TAG_LEN`](crate::store::TAG_LEN) to at least 64 KiB is stored.
///   A write that is over the backend's limit is refused and leaves the old bytes as they were.
/// - **Keys** are printable ASCII without spaces, at most 200 bytes.
/// - **Errors.** [`Error::unavailable`], [`Error::refused`] and [`Error::too_large`] say that nothing
///   was written. Whenever a write may have reached the backend and its answer was lost, the error
///   is [`Error::outcome_unknown`]; a store never repeats such a write on its own.
/// - **Cancellation.** Dropping a future may leave its own write done or undone, and disturbs no
///   other call: no later call ever receives its answer.
/// - **Time.** A call ends in bounded time with an answer or an error. The core gives up on a call
///   that outlasts its share of the request's deadline by dropping it.
/// - Nothing is done in the constructor: the application starts while the backend is down.
///
/// There are no default methods: a decorator that forgets a verb does not compile.
///
/// [`Error::unavailable`]: crate::Error::unavailable
/// [`Error::refused`]: crate::Error::refused
/// [`Error::too_large`]: crate::Error::too_large
/// [`Error::outcome_unknown`]: crate::Error::outcome_unknown
#[doc(alias("SessionStore", "SessionRepository", "SessionBackend"))]
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Stores `bytes` if the key does not exist.
    ///
    /// # Errors
    ///
    /// Those of the contract; a key that exists is [`Created::Occupied`], not an error.
    async fn create(&self, key: &StoreKey, bytes: Bytes, ttl: Duration) -> Result<Created>;

    /// Reads a key; `None` where it does not exist or its time is over.
    ///
    /// # Errors
    ///
    /// Those of the contract; a key that does not exist is not an error.
    async fn load(&self, key: &StoreKey) -> Result<Option<Stored>>;

    /// Stores `bytes` if the key still holds the `expected` record; never creates.
    ///
    /// # Errors
    ///
    /// Those of the contract; another record and a missing key are outcomes, not errors.
    async fn replace(
        &self,
        key: &StoreKey,
        bytes: Bytes,
        ttl: Duration,
        expected: &Stored,
    ) -> Result<Replaced>;

    /// Deletes the key if it still holds the `expected` record, or whatever it holds if that is
    /// `None`.
    ///
    /// # Errors
    ///
    /// Those of the contract; another record and a missing key are outcomes, not errors.
    async fn delete(&self, key: &StoreKey, expected: Option<&Stored>) -> Result<Deleted>;

    /// What examines the servers behind this store for [`Sessions::check`](crate::Sessions::check).
    ///
    /// `None` for a store that has nothing to add to what the four verbs show: the check then tries those.
    /// A decorator forwards the call.
    fn diagnosis(&self) -> Option<&dyn Diagnose>;
}

/// What a version of a key is called; opaque to everybody but the store that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version(u64);

impl Version {
    /// A version with the backend's own number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The backend's own number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A record as the store holds it.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stored {
    /// What was stored.
    pub bytes: Bytes,
    /// The version of these bytes.
    pub version: Version,
}

impl Stored {
    /// These bytes, stored under this version.
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

/// What [`Store::create`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums)]
pub enum Created {
    /// The record was stored.
    Created(Version),
    /// The key exists; nothing was changed.
    Occupied,
}

/// What [`Store::replace`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums)]
pub enum Replaced {
    /// The record was stored.
    Replaced(Version),
    /// The key holds another record; nothing was changed. The record that it holds, if the
    /// backend's answer included it.
    Conflict(Option<Stored>),
    /// The key does not exist; nothing was changed.
    Missing,
}

/// What [`Store::delete`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums)]
pub enum Deleted {
    /// The record was deleted.
    Deleted,
    /// The key holds another record; nothing was changed. The record that it holds, if the
    /// backend's answer included it.
    Conflict(Option<Stored>),
    /// The key does not exist.
    Missing,
}

/// The verbs of a pointer are those of the store it points to, with no future around theirs: what
/// `async_trait` would make of them is written out.
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
