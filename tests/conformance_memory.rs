//! The contract of a store, for the memory store and for everything that wraps a store.

#![cfg(all(feature = "testing", feature = "memory"))]

use std::sync::Arc;

use unsticky::store::{MemoryStore, Store};
use unsticky::testing::{FaultStore, ManualClock, SpyStore, Subject};

/// The memory store on a clock that need not be waited for, in the wrapper.
fn wrapped<S: Store>(wrap: impl FnOnce(MemoryStore) -> S) -> Subject {
    let clock = ManualClock::new();
    Subject::new(wrap(MemoryStore::with_clock(clock.clone()))).with_clock(clock)
}

mod manual_clock {
    use super::*;

    async fn setup() -> Subject {
        wrapped(|store| store)
    }

    unsticky::conformance!(setup);
}

mod system_clock {
    use super::*;

    async fn setup() -> Subject {
        Subject::new(MemoryStore::new())
    }

    unsticky::conformance!(setup);
}

mod spied_on {
    use super::*;

    async fn setup() -> Subject {
        wrapped(SpyStore::new)
    }

    unsticky::conformance!(setup);
}

mod without_faults {
    use super::*;

    async fn setup() -> Subject {
        wrapped(FaultStore::new)
    }

    unsticky::conformance!(setup);
}

mod behind_an_arc {
    use super::*;

    async fn setup() -> Subject {
        wrapped(|store| -> Arc<dyn Store> { Arc::new(store) })
    }

    unsticky::conformance!(setup);
}

mod behind_a_box {
    use super::*;

    async fn setup() -> Subject {
        wrapped(|store| -> Box<dyn Store> { Box::new(store) })
    }

    unsticky::conformance!(setup);
}
