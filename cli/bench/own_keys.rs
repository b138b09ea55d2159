//! A store that remembers the measurement's keys, so that they can be removed. It also limits their time to
//! live, so that they expire soon even if they are not removed.

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

    /// Deletes all keys, `at_once` of them at a time. Returns how many are left when the time is up.
    pub(crate) async fn remove_all(&self, at_once: u32, time: Duration) -> usize {
        let keys: Vec<_> = self.keys().iter().cloned().collect();
        let at_once = usize::try_from(at_once).unwrap_or(1);
        // A key that cannot be deleted remains in the set.
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
        // Remembered before the command is sent, because its answer may be lost.
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
