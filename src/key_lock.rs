//! A lock for each record on which commits conflict.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::store::StoreKey;

/// Locks that make commits with a conflict on the same record run one after the other, so that writers in one
/// process do not invalidate each other's attempts.
///
/// Correctness does not depend on these locks: compare-and-set ensures it, within a process and between
/// processes. Commits without a conflict take no lock.
#[derive(Debug, Default)]
pub(crate) struct KeyLocks(Mutex<HashMap<StoreKey, Arc<AsyncMutex<()>>>>);

impl KeyLocks {
    /// Waits until the earlier commits to this key have finished. The caller must run in a task while it
    /// waits or holds the guard: a future that is kept but not polled would hold the lock forever.
    pub(crate) async fn lock(&self, key: &StoreKey) -> KeyGuard<'_> {
        // Created before the wait, so that the entry is also removed if the caller stops waiting.
        let mut guard = KeyGuard { locks: self, key: key.clone(), held: None, waited: false };
        let lock = self.map().entry(key.clone()).or_default().clone();
        guard.held = lock.clone().try_lock_owned().ok();
        if guard.held.is_none() {
            guard.waited = true;
            guard.held = Some(lock.lock_owned().await);
        }
        guard
    }

    /// Returns a guard without the lock, for a caller that has waited long enough.
    pub(crate) fn without_lock(&self, key: &StoreKey) -> KeyGuard<'_> {
        KeyGuard { locks: self, key: key.clone(), held: None, waited: true }
    }

    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<StoreKey, Arc<AsyncMutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds a record's lock until the guard is dropped. Holds no lock if the caller has waited long enough; see
/// [`KeyLocks::without_lock`].
#[derive(Debug)]
pub(crate) struct KeyGuard<'a> {
    locks: &'a KeyLocks,
    key: StoreKey,
    held: Option<OwnedMutexGuard<()>>,
    waited: bool,
}

impl KeyGuard<'_> {
    /// Returns whether the caller had to wait. If so, the record that the caller has read may be outdated.
    pub(crate) fn waited(&self) -> bool {
        self.waited
    }
}

impl Drop for KeyGuard<'_> {
    fn drop(&mut self) {
        self.held = None;
        let mut map = self.locks.map();
        // Entries are cloned only under this mutex, so no other commit waits for an entry with one owner.
        if map.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            map.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::samples::random_key;

    #[tokio::test]
    async fn waiters_get_lock_in_order_and_leave_no_entry() {
        let locks = KeyLocks::default();
        let (key, other) = (random_key(), random_key());
        let first = locks.lock(&key).await;
        let mut second = Box::pin(locks.lock(&key));
        let mut third = Box::pin(locks.lock(&key));
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        assert!(futures_util::poll!(third.as_mut()).is_pending());
        let other = locks.lock(&other).await;
        assert!(!first.waited() && !other.waited());
        drop(first);
        let second = second.await;
        assert!(second.waited());
        assert!(futures_util::poll!(third.as_mut()).is_pending());
        drop((second, third, other));
        assert!(locks.map().is_empty());
    }
}
