//! The contract of a store, for the Redis store, on real Valkey servers.

#![cfg(all(feature = "testing", feature = "redis"))]
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod support;

mod valkey {
    use unsticky::store::RedisStore;
    use unsticky::testing::Subject;

    use super::support::servers::ValkeyServer;

    async fn setup() -> Subject {
        let server = ValkeyServer::start();
        Subject::new(RedisStore::connect(&server.url()).unwrap()).keep(server)
    }

    unsticky::conformance!(setup);
}
