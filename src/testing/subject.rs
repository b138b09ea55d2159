//! The store under test, and what the conformance suite needs to know about it.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use crate::clock::manual::ManualClock;
use crate::store::Store;

/// The store that [`conformance!`](crate::conformance) checks, and what the suite needs to know about it.
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
    /// Creates a subject for a store whose records expire in real time and whose size limit is unknown.
    pub fn new(store: impl Store) -> Self {
        Self { store: Arc::new(store), clock: None, max_record: None, guards: Vec::new() }
    }

    /// Keeps `guard`, for example the handle of a test server, alive until the clause has ended.
    pub fn keep(mut self, guard: impl Any + Send) -> Self {
        self.guards.push(Box::new(guard));
        self
    }

    /// Sets the clock by which the store's records expire. The suite advances it instead of waiting. Default: the
    /// suite waits in real time.
    pub fn with_clock(mut self, clock: ManualClock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Sets the length of the longest record that the store accepts, in bytes. The suite checks that a record
    /// of this length is stored and that a record with one more byte is refused. Default: the limit is not
    /// checked.
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
