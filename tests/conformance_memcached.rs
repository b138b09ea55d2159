//! The store contract, checked for the Memcached store on real servers.

#![cfg(all(feature = "testing", feature = "memcached"))]
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::backend::patient;
use support::servers::MemcachedServer;
use unsticky::store::Store;
use unsticky::testing::{FaultStore, SpyStore, Subject};

/// A generous timeout, because a busy machine may be slow and these tests do not measure speed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Returns a wrapped Memcached store on its own server.
fn wrapped<S: Store>(wrap: impl FnOnce(Arc<dyn Store>) -> S) -> Subject {
    let server = MemcachedServer::start();
    let store = patient(&server.url(), PATIENCE);
    // The store itself refuses larger records. A server with a lower limit would need a matching
    // configuration.
    Subject::new(wrap(store)).max_record(1_000_000).keep(server)
}

mod one_server {
    unsticky::conformance!(async || super::wrapped(|store| store));
}

mod two_servers {
    use super::*;

    async fn setup() -> Subject {
        let servers = [MemcachedServer::start(), MemcachedServer::start()];
        let url = format!("memcached://{},{}", servers[0].address(), servers[1].address());
        Subject::new(patient(&url, PATIENCE)).keep(servers)
    }

    unsticky::conformance!(setup);
}

mod through_spy_store {
    unsticky::conformance!(async || super::wrapped(super::SpyStore::new));
}

mod through_fault_store {
    unsticky::conformance!(async || super::wrapped(super::FaultStore::new));
}
