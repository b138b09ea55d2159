//! What the conformance suite has to know of a store.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use crate::clock::manual::ManualClock;
use crate::store::Store;

/// A store to be checked, with what the suite has to know of it.
///
/// ```
/// # #[cfg(feature = "memory")] {
/// use unsticky::store::MemoryStore;
/// use unsticky::testing::{ManualClock, Subject};
///
/// let clock = ManualClock::new();
/// let subject = Subject::new(MemoryStore::with_clock(clock.clone())).with_clock(clock);
/// # }
/// ```
#[must_use]
pub struct Subject {
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Option<ManualClock>,
    pub(super) max_record: Option<usize>,
    guards: Vec<Box<dyn Any + Send>>,
}

impl Subject {
    /// This store; its records expire as the time of the day goes by, and no limit is known.
    pub fn new(store: impl Store) -> Self {
        Self { store: Arc::new(store), clock: None, max_record: None, guards: Vec::new() }
    }

    /// Drops `guard` only when the clause has ended: the handle of a server, say.
    pub fn keep(mut self, guard: impl Any + Send) -> Self {
        self.guards.push(Box::new(guard));
        self
    }

    /// The store's records expire by this clock, which the suite advances instead of waiting.
    pub fn with_clock(mut self, clock: ManualClock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// The longest record that the store takes; it must refuse one that is a byte longer.
    ///
    /// Nothing is checked about the limit by default.
    pub fn max_record(mut self, bytes: usize) -> Self {
        self.max_record = Some(bytes);
        self
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject")
            .field("store", &self.store)
            .field("clock", &self.clock)
            .field("max_record", &self.max_record)
            .finish_non_exhaustive()
    }
}
