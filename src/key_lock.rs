//! A queue for each record whose commits collide.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::store::StoreKey;

/// Where commits to one record that met a conflict wait for each other, so that the writers of one
/// process do not make each other's attempts void.
///
/// Nothing depends on it: compare-and-set decides, here and between processes. A record that has no
/// conflict never gets here.
#[derive(Debug, Default)]
pub(crate) struct KeyLocks(Mutex<HashMap<StoreKey, Arc<AsyncMutex<()>>>>);

impl KeyLocks {
    /// Waits for the commits to this key that came before. Whoever waits here or has a turn must be
    /// driven by a task: a future that is kept unpolled would keep its turn for ever.
    pub(crate) async fn wait(&self, key: &StoreKey) -> KeyGuard<'_> {
        // Made before the wait, so that a caller who gives up tidies up too.
        let mut turn = KeyGuard { key_locks: self, key: key.clone(), guard: None, waited: false };
        let queue = self.lock().entry(key.clone()).or_default().clone();
        turn.guard = queue.clone().try_lock_owned().ok();
        if turn.guard.is_none() {
            turn.waited = true;
            turn.guard = Some(queue.lock_owned().await);
        }
        turn
    }

    /// For a caller who has lost patience: as if all the others had come first.
    pub(crate) fn without_a_turn(&self, key: &StoreKey) -> KeyGuard<'_> {
        KeyGuard { key_locks: self, key: key.clone(), guard: None, waited: true }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<StoreKey, Arc<AsyncMutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A turn in the queue of a record; ends when dropped.
#[derive(Debug)]
pub(crate) struct KeyGuard<'a> {
    key_locks: &'a KeyLocks,
    key: StoreKey,
    guard: Option<OwnedMutexGuard<()>>,
    waited: bool,
}

impl KeyGuard<'_> {
    /// Whether others came first, so that what was read before is old.
    pub(crate) fn waited(&self) -> bool {
        self.waited
    }
}

impl Drop for KeyGuard<'_> {
    fn drop(&mut self) {
        self.guard = None;
        let mut key_locks = self.key_locks.lock();
        // Entries are cloned under this lock only: one that is not shared has nobody waiting.
        if key_locks.get(&self.key).is_some_and(|queue| Arc::strong_count(queue) == 1) {
            key_locks.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::samples::random_key;

    #[tokio::test]
    async fn waiters_take_turns_in_order_and_leave_no_entry() {
        let key_locks = KeyLocks::default();
        let (key, other) = (random_key(), random_key());
        let first = key_locks.wait(&key).await;
        let mut second = Box::pin(key_locks.wait(&key));
        let mut third = Box::pin(key_locks.wait(&key));
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        assert!(futures_util::poll!(third.as_mut()).is_pending());
        let other = key_locks.wait(&other).await;
        assert!(!first.waited() && !other.waited());
        drop(first);
        let second = second.await;
        assert!(second.waited());
        assert!(futures_util::poll!(third.as_mut()).is_pending());
        drop((second, third, other));
        assert!(key_locks.lock().is_empty());
    }
}
