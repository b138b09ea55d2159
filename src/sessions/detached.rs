//! The store of detached sessions.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::cookie::parse::Presented;
use crate::error::Result;
use crate::session::Session;
use crate::settings::Sessions;
use crate::store::{Created, Deleted, Diagnose, Replaced, Store, StoreKey, Stored, Version};

/// The store of one detached session. It lives as long as the session's handles.
///
/// `MemoryStore` is an optional feature, but this store exists in every build.
#[derive(Debug, Default)]
pub(crate) struct Detached(Mutex<HashMap<StoreKey, Stored>>);

impl Detached {
    fn with<T>(&self, verb: impl FnOnce(&mut HashMap<StoreKey, Stored>) -> T) -> Result<T> {
        Ok(verb(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

#[async_trait]
impl Store for Detached {
    async fn create(&self, key: &StoreKey, bytes: Bytes, _: Duration) -> Result<Created> {
        self.with(|records| match records.entry(key.clone()) {
            Entry::Occupied(_) => Created::Occupied,
            Entry::Vacant(entry) => {
                Created::Created(entry.insert(Stored { bytes, version: Version::new(0) }).version)
            }
        })
    }

    async fn load(&self, key: &StoreKey) -> Result<Option<Stored>> {
        self.with(|records| records.get(key).cloned())
    }

    async fn replace(
        &self,
        key: &StoreKey,
        bytes: Bytes,
        _: Duration,
        expected: &Stored,
    ) -> Result<Replaced> {
        self.with(|records| match records.get_mut(key) {
            Some(stored) if stored.version == expected.version => {
                *stored = Stored { bytes, version: Version::new(stored.version.get() + 1) };
                Replaced::Replaced(stored.version)
            }
            Some(stored) => Replaced::Conflict(Some(stored.clone())),
            None => Replaced::Missing,
        })
    }

    async fn delete(&self, key: &StoreKey, expected: Option<&Stored>) -> Result<Deleted> {
        self.with(|records| match records.get(key) {
            None => Deleted::Missing,
            Some(stored) if expected.is_some_and(|expected| expected.version != stored.version) => {
                Deleted::Conflict(Some(stored.clone()))
            }
            Some(_) => {
                records.remove(key);
                Deleted::Deleted
            }
        })
    }

    fn diagnosis(&self) -> Option<&dyn Diagnose> {
        None
    }
}

impl Session {
    /// Returns an anonymous, empty session that needs no server, for unit tests of handlers.
    ///
    /// The session's records are kept in the handle itself and do not expire.
    ///
    /// ```
    /// use unsticky::{Key, Session};
    ///
    /// const VISITS: Key<u32> = Key::new("visits");
    ///
    /// async fn greet(session: Session) -> unsticky::Result<String> {
    ///     session.update(VISITS, |visits| *visits += 1)?;
    ///     let name = session.principal();
    ///     Ok(format!("hello {}", name.as_deref().unwrap_or("stranger")))
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = Session::detached();
    /// session.sign_in("alice")?;
    /// assert_eq!(greet(session.clone()).await?, "hello alice");
    /// assert_eq!(session.get(VISITS)?, Some(1));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn detached() -> Self {
        let sessions = Sessions::builder(Detached::default()).unchecked();
        Self::new(sessions, Presented::default())
    }
}
