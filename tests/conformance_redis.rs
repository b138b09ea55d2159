//! The store contract, checked for the Redis store on real servers.

#![cfg(all(feature = "testing", feature = "redis"))]
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::backend::patient;
use support::servers::RedisServer;
use unsticky::store::{RedisStore, Store};
use unsticky::testing::{FaultStore, SpyStore, Subject};

/// A generous timeout, because a busy machine may be slow and these tests do not measure speed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Returns a wrapped Redis store on its own server.
fn wrapped<S: Store>(wrap: impl FnOnce(Arc<dyn Store>) -> S) -> Subject {
    let server = RedisServer::start();
    Subject::new(wrap(patient(&server.url(), PATIENCE))).keep(server)
}

mod built_in_connection {
    unsticky::conformance!(async || super::wrapped(|store| store));
}

mod application_connection {
    use super::*;

    async fn setup() -> Subject {
        let server = RedisServer::start();
        let client = redis::Client::open(server.url()).unwrap();
        let patience = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        let connection = client.get_multiplexed_async_connection_with_config(&patience);
        let connection = connection.await.unwrap();
        Subject::new(RedisStore::from_connection(connection)).keep(server)
    }

    unsticky::conformance!(setup);
}

mod through_spy_store {
    unsticky::conformance!(async || super::wrapped(super::SpyStore::new));
}

mod through_fault_store {
    unsticky::conformance!(async || super::wrapped(super::FaultStore::new));
}

#[tokio::test]
async fn suite_leaves_other_data_untouched() {
    use unsticky::testing::clauses;

    let server = RedisServer::start();
    let foreign = [("unsticky:0:s:somebody-elses", "session"), ("other", "data")];
    for (key, value) in foreign {
        server.cli(&["SET", key, value]);
    }
    let subject = Subject::new(patient(&server.url(), PATIENCE));
    clauses::unconditional_delete_deletes_record(&subject).await;
    clauses::concurrent_creates_have_exactly_one_winner(&subject).await;
    clauses::expired_key_is_missing_for_every_verb(&subject).await;
    for (key, value) in foreign {
        assert_eq!(server.cli(&["GET", key]), value);
    }
    assert_eq!(server.calls("flushall") + server.calls("flushdb"), 0);
}
