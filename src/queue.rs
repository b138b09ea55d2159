//! A queue for each session whose commits collide.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::session::SessionId;

/// Where commits of one session that met a conflict wait for each other, so that the writers of one
/// process do not make each other's attempts void.
///
/// Nothing depends on it: compare-and-set decides, here and between processes. A session that has no
/// conflict never gets here.
#[derive(Debug, Default)]
pub(crate) struct Queues(Mutex<HashMap<SessionId, Arc<AsyncMutex<()>>>>);

impl Queues {
    /// Waits for the commits of this session that came before.
    pub(crate) async fn wait(&self, id: SessionId) -> Turn<'_> {
        // Made before the wait, so that a caller who gives up tidies up too.
        let mut turn = Turn { queues: self, id, guard: None, waited: false };
        let queue = self.lock().entry(id).or_default().clone();
        turn.guard = queue.clone().try_lock_owned().ok();
        if turn.guard.is_none() {
            turn.waited = true;
            turn.guard = Some(queue.lock_owned().await);
        }
        turn
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SessionId, Arc<AsyncMutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A turn in the queue of a session; ends when dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    queues: &'a Queues,
    id: SessionId,
    guard: Option<OwnedMutexGuard<()>>,
    waited: bool,
}

impl Turn<'_> {
    /// Whether others came first, so that what was read before is old.
    pub(crate) fn waited(&self) -> bool {
        self.waited
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.guard = None;
        let mut queues = self.queues.lock();
        // Entries are cloned under this lock only: one that is not shared has nobody waiting.
        if queues.get(&self.id).is_some_and(|queue| Arc::strong_count(queue) == 1) {
            queues.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::OsEntropy;

    #[tokio::test]
    async fn turns_are_taken_one_after_the_other_and_leave_nothing_behind() {
        let queues = Queues::default();
        let id = SessionId::random(&OsEntropy).unwrap();
        let first = queues.wait(id).await;
        let mut second = Box::pin(queues.wait(id));
        let mut third = Box::pin(queues.wait(id));
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        assert!(futures_util::poll!(third.as_mut()).is_pending());
        let other = queues.wait(SessionId::random(&OsEntropy).unwrap()).await;
        assert!(!first.waited() && !other.waited());
        drop(first);
        let second = second.await;
        assert!(second.waited());
        assert!(futures_util::poll!(third.as_mut()).is_pending());
        drop((second, third, other));
        assert!(queues.lock().is_empty());
    }
}
