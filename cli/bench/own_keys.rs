//! The store, with the keys that the measurement has made remembered, so that they can be removed, and with
//! times to live that end soon whatever happens.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::time::timeout;
use unsticky::store::{Created, Deleted, Diagnose, Replaced, StoreKey, Stored};
use unsticky::{Result, Store};

use crate::bench::plan::KEY_LIFE;

pub(crate) struct OwnKeys {
    store: Arc<dyn Store>,
    keys: Mutex<HashSet<StoreKey>>,
}

impl OwnKeys {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, keys: Mutex::default() }
    }

    fn keys(&self) -> MutexGuard<'_, HashSet<StoreKey>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deletes every key, so many at once, and returns how many are left when the time is over.
    pub(crate) async fn remove_all(&self, at_once: u32, time: Duration) -> usize {
        let keys: Vec<_> = self.keys().iter().cloned().collect();
        let at_once = usize::try_from(at_once).unwrap_or(1);
        // One that cannot be deleted stays remembered.
        let deletions = stream::iter(keys).for_each_concurrent(at_once, async |key: StoreKey| {
            let _ = self.delete(&key, None).await;
        });
        let _ = timeout(time, deletions).await;
        self.keys().len()
    }
}

#[async_trait]
impl Store for OwnKeys {
    async fn create(&self, key: &StoreKey, bytes: Bytes, ttl: Duration) -> Result<Created> {
        // Before it is sent, since the answer may be lost.
        self.keys().insert(key.clone());
        self.store.create(key, bytes, ttl.min(KEY_LIFE)).await
    }

    async fn load(&self, key: &StoreKey) -> Result<Option<Stored>> {
        self.store.load(key).await
    }

    async fn replace(
        &self,
        key: &StoreKey,
        bytes: Bytes,
        ttl: Duration,
        expected: &Stored,
    ) -> Result<Replaced> {
        self.store.replace(key, bytes, ttl.min(KEY_LIFE), expected).await
    }

    async fn delete(&self, key: &StoreKey, expected: Option<&Stored>) -> Result<Deleted> {
        let deleted = self.store.delete(key, expected).await?;
        if !matches!(deleted, Deleted::Conflict(_)) {
            self.keys().remove(key);
        }
        Ok(deleted)
    }

    fn diagnosis(&self) -> Option<&dyn Diagnose> {
        self.store.diagnosis()
    }
}

impl fmt::Debug for OwnKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OwnKeys").field(&self.store).finish()
    }
}
