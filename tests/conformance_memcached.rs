//! The contract of a store, for the Memcached store, on real servers.

#![cfg(all(feature = "testing", feature = "memcached"))]
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod support;

use std::time::Duration;

use support::servers::MemcachedServer;
use unsticky::store::{MemcachedStore, Store};
use unsticky::testing::{FaultStore, SpyStore, Subject};

/// With time for a machine that has much else to do: how long a call takes is not what is tested.
fn store(url: &str) -> MemcachedStore {
    let patience = Duration::from_secs(5);
    MemcachedStore::builder(url)
        .unwrap()
        .connect_timeout(patience)
        .response_timeout(patience)
        .build()
}

/// The Memcached store on a server of its own, in the wrapper.
fn wrapped<S: Store>(wrap: impl FnOnce(MemcachedStore) -> S) -> Subject {
    let server = MemcachedServer::start();
    let store = store(&server.url());
    // What the store itself refuses; what only the server refuses, a configuration must prevent.
    Subject::new(wrap(store)).max_record(1_000_000).keep(server)
}

mod one_server {
    use super::*;

    async fn setup() -> Subject {
        wrapped(|store| store)
    }

    unsticky::conformance!(setup);
}

mod two_servers {
    use super::*;

    async fn setup() -> Subject {
        let servers = [MemcachedServer::start(), MemcachedServer::start()];
        let url = format!("memcached://{},{}", servers[0].address(), servers[1].address());
        Subject::new(store(&url)).keep(servers)
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
