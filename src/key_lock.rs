//! A lock for each record whose commits collide.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::store::StoreKey;

/// Commits to one record that met a conflict take turns here, so that the writers of one process do not
/// invalidate each other's attempts.
///
/// Correctness does not depend on it: compare-and-set decides, in a process and between processes. A
/// record without conflicts never gets here.
#[derive(Debug, Default)]
pub(crate) struct KeyLocks(Mutex<HashMap<StoreKey, Arc<AsyncMutex<()>>>>);

impl KeyLocks {
    /// Waits until the commits to this key that came before have ended. Whoever waits here or holds
    /// the guard must be driven by a task: a future that is kept unpolled would hold the lock for ever.
    pub(crate) async fn lock(&self, key: &StoreKey) -> KeyGuard<'_> {
        // Made before the wait, so that a caller who gives up tidies up too.
        let mut guard = KeyGuard { locks: self, key: key.clone(), held: None, waited: false };
        let lock = self.map().entry(key.clone()).or_default().clone();
        guard.held = lock.clone().try_lock_owned().ok();
        if guard.held.is_none() {
            guard.waited = true;
            guard.held = Some(lock.lock_owned().await);
        }
        guard
    }

    /// For a caller that has waited long enough: it goes on as if it held the lock.
    pub(crate) fn without_lock(&self, key: &StoreKey) -> KeyGuard<'_> {
        KeyGuard { locks: self, key: key.clone(), held: None, waited: true }
    }

    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<StoreKey, Arc<AsyncMutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lock of a record, held until this is dropped.
#[derive(Debug)]
pub(crate) struct KeyGuard<'a> {
    locks: &'a KeyLocks,
    key: StoreKey,
    held: Option<OwnedMutexGuard<()>>,
    waited: bool,
}

impl KeyGuard<'_> {
    /// Whether other commits came first, so that what was read before is out of date.
    pub(crate) fn waited(&self) -> bool {
        self.waited
    }
}

impl Drop for KeyGuard<'_> {
    fn drop(&mut self) {
        self.held = None;
        let mut map = self.locks.map();
        // Entries are cloned under this mutex only: nobody waits for one that is not shared.
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
    async fn waiters_take_turns_in_order_and_leave_no_entry() {
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
