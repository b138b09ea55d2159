//! The contract of a store, for the Memcached store, on real servers.

#![cfg(all(feature = "testing", feature = "memcached"))]
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod support;

use support::servers::MemcachedServer;
use unsticky::store::{MemcachedStore, Store};
use unsticky::testing::{FaultStore, SpyStore, Subject};

/// The Memcached store on a server of its own, in the wrapper.
fn wrapped<S: Store>(wrap: impl FnOnce(MemcachedStore) -> S) -> Subject {
    let server = MemcachedServer::start();
    let store = MemcachedStore::connect(&server.url()).unwrap();
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
        Subject::new(MemcachedStore::connect(&url).unwrap()).keep(servers)
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
