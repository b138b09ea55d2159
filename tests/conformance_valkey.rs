//! The store contract, checked for the Redis store on real Valkey servers.

#![cfg(all(feature = "testing", feature = "redis"))]
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod support;

mod valkey {
    use std::time::Duration;

    use unsticky::testing::Subject;

    use super::support::backend::patient;
    use super::support::servers::ValkeyServer;

    async fn setup() -> Subject {
        let server = ValkeyServer::start();
        // The timeout is generous because a busy machine may be slow.
        let store = patient(&server.url(), Duration::from_secs(5));
        Subject::new(store).keep(server)
    }

    unsticky::conformance!(setup);
}
