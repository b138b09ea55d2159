//! One value per runtime that uses a store.

use std::convert::Infallible;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use tokio::runtime::{Handle, Id};
use tokio::sync::oneshot;

/// Holds one value per runtime. A value is created when its runtime first asks for it, and dropped when that
/// runtime ends.
///
/// A task or a socket is driven by the runtime on which it was created. An actix application has one
/// single-threaded runtime per worker. If workers shared tasks or sockets, a handler that blocks its worker
/// would delay the answers to the other workers.
pub(super) struct PerRuntime<T> {
    places: Arc<Places<T>>,
}

/// There are few runtimes, so a linear search is faster than a hash table.
struct Places<T>(RwLock<Vec<(Id, Place<T>)>>);

struct Place<T> {
    value: Arc<T>,
    /// Dropped with the store, which ends the task that waits for the runtime to end.
    _store: oneshot::Sender<Infallible>,
}

impl<T: Send + Sync + 'static> PerRuntime<T> {
    pub(super) fn new() -> Self {
        Self { places: Arc::new(Places(RwLock::default())) }
    }

    /// Returns the value for the current runtime, or `None` outside a runtime.
    pub(super) fn get(&self, make: impl FnOnce() -> T) -> Option<Arc<T>> {
        let runtime = Handle::try_current().ok()?;
        let id = runtime.id();
        if let Some(value) = of(&self.places.read(), id) {
            return Some(value);
        }
        let (store, store_dropped) = oneshot::channel();
        let value = {
            let mut places = self.places.write();
            // Another thread on the same runtime may have been faster.
            if let Some(value) = of(&places, id) {
                return Some(value);
            }
            let value = Arc::new(make());
            places.push((id, Place { value: Arc::clone(&value), _store: store }));
            value
        };
        let release = ReleaseOnDrop { places: Arc::downgrade(&self.places), id };
        // Done without holding the lock, because a runtime that is shutting down drops the task immediately.
        runtime.spawn(async move {
            let _release = release;
            let _ = store_dropped.await;
        });
        Some(value)
    }
}

fn of<T>(places: &[(Id, Place<T>)], id: Id) -> Option<Arc<T>> {
    places.iter().find(|(of, _)| *of == id).map(|(_, place)| Arc::clone(&place.value))
}

impl<T> Places<T> {
    fn read(&self) -> RwLockReadGuard<'_, Vec<(Id, Place<T>)>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Vec<(Id, Place<T>)>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes the entry of a runtime when the runtime drops its tasks. A later runtime may have the same id, and
/// must not get the value of a runtime that has ended.
struct ReleaseOnDrop<T> {
    places: Weak<Places<T>>,
    id: Id,
}

impl<T> Drop for ReleaseOnDrop<T> {
    fn drop(&mut self) {
        if let Some(places) = self.places.upgrade() {
            let gone: Vec<_> = places.write().extract_if(.., |(of, _)| *of == self.id).collect();
            // Dropped without holding the lock, because this may drop connections.
            drop(gone);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::{Builder, Runtime};

    use super::*;

    fn runtime() -> Runtime {
        Builder::new_current_thread().build().unwrap()
    }

    #[test]
    fn each_runtime_has_its_own_value_until_it_ends() {
        let values = PerRuntime::new();
        assert!(values.get(|| 0).is_none(), "there is no runtime here");
        let (one, two) = (runtime(), runtime());
        assert_eq!(one.block_on(async { values.get(|| 1) }).as_deref(), Some(&1));
        assert_eq!(two.block_on(async { values.get(|| 2) }).as_deref(), Some(&2));
        assert_eq!(one.block_on(async { values.get(|| 3) }).as_deref(), Some(&1));
        drop(one);
        assert_eq!(values.places.read().len(), 1);
        for n in 0..1000 {
            let value = runtime().block_on(async { values.get(|| n) });
            assert_eq!(value.as_deref(), Some(&n));
        }
        assert_eq!(values.places.read().len(), 1);
        assert_eq!(two.block_on(async { values.get(|| 4) }).as_deref(), Some(&2));
    }

    #[test]
    fn dropped_store_leaves_no_task() {
        let runtime = runtime();
        runtime.block_on(async {
            let values = PerRuntime::new();
            values.get(|| ()).unwrap();
            assert_eq!(Handle::current().metrics().num_alive_tasks(), 1);
            drop(values);
            tokio::task::yield_now().await;
            assert_eq!(Handle::current().metrics().num_alive_tasks(), 0);
        });
    }
}
