//! The store contract, checked for the memory store and for all store wrappers.

#![cfg(all(feature = "testing", feature = "memory"))]

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::late::faulty;
use unsticky::ErrorKind;
use unsticky::store::{MemoryStore, Store};
use unsticky::testing::{
    FaultStore, ManualClock, SpyStore, Subject, Verb, random_key, random_record,
};

/// Returns a wrapped memory store with a manual clock.
fn wrapped<S: Store>(wrap: impl FnOnce(MemoryStore) -> S) -> Subject {
    let clock = ManualClock::new();
    Subject::new(wrap(MemoryStore::with_clock(clock.clone()))).with_clock(clock)
}

mod manual_clock {
    unsticky::conformance!(async || super::wrapped(|store| store));
}

mod system_clock {
    use super::*;

    async fn setup() -> Subject {
        Subject::new(MemoryStore::new())
    }

    unsticky::conformance!(setup);
}

mod through_spy_store {
    unsticky::conformance!(async || super::wrapped(super::SpyStore::new));
}

mod through_fault_store {
    unsticky::conformance!(async || super::wrapped(super::FaultStore::new));
}

mod behind_arc {
    use super::*;

    async fn setup() -> Subject {
        wrapped(|store| -> Arc<dyn Store> { Arc::new(store) })
    }

    unsticky::conformance!(setup);
}

mod behind_box {
    use super::*;

    async fn setup() -> Subject {
        wrapped(|store| -> Box<dyn Store> { Box::new(store) })
    }

    unsticky::conformance!(setup);
}

/// Checks the tests' own double, which is not part of the crate.
#[tokio::test]
async fn postponed_command_is_applied_when_delivered() {
    let (store, late) = faulty(MemoryStore::new());
    let (key, hour) = (random_key(), Duration::from_secs(3600));
    let postponed = late.postpone(Verb::Create);
    assert!(!postponed.deliver().await);
    let error = store.create(&key, random_record(8), hour).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
    assert_eq!(store.load(&key).await.unwrap(), None);
    assert!(postponed.deliver().await);
    assert!(store.load(&key).await.unwrap().is_some());
    assert!(!postponed.deliver().await);
}
