//! The contract of a store, for the Redis store, on real servers.

#![cfg(all(feature = "testing", feature = "redis"))]
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod support;

use std::time::Duration;

use support::servers::RedisServer;
use unsticky::store::{RedisStore, Store};
use unsticky::testing::{FaultStore, SpyStore, Subject};

/// With time for a machine that has much else to do: how long a call takes is not what is tested.
fn store(url: &str) -> RedisStore {
    let patience = Duration::from_secs(5);
    RedisStore::builder(url).unwrap().connect_timeout(patience).response_timeout(patience).build()
}

/// The Redis store on a server of its own, in the wrapper.
fn wrapped<S: Store>(wrap: impl FnOnce(RedisStore) -> S) -> Subject {
    let server = RedisServer::start();
    Subject::new(wrap(store(&server.url()))).keep(server)
}

mod our_connection {
    use super::*;

    async fn setup() -> Subject {
        wrapped(|store| store)
    }

    unsticky::conformance!(setup);
}

mod their_connection {
    use super::*;

    async fn setup() -> Subject {
        let server = RedisServer::start();
        let client = redis::Client::open(server.url()).unwrap();
        let patience = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(5)))
            .set_response_timeout(Some(Duration::from_secs(5)));
        let connection = client.get_multiplexed_async_connection_with_config(&patience);
        let connection = connection.await.unwrap();
        Subject::new(RedisStore::from_connection(connection)).keep(server)
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

#[tokio::test]
async fn the_suite_runs_beside_other_data() {
    use unsticky::testing::clauses;

    let server = RedisServer::start();
    let foreign = [("unsticky:0:s:somebody-elses", "session"), ("other", "data")];
    for (key, value) in foreign {
        server.cli(&["SET", key, value]);
    }
    let subject = Subject::new(store(&server.url()));
    clauses::a_delete_at_any_version_deletes(&subject).await;
    clauses::of_many_concurrent_creates_exactly_one_wins(&subject).await;
    clauses::an_expired_key_is_gone_for_every_verb(&subject).await;
    for (key, value) in foreign {
        assert_eq!(server.cli(&["GET", key]), value);
    }
    assert_eq!(server.calls("flushall") + server.calls("flushdb"), 0);
}
