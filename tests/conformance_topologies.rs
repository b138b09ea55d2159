//! The store contract, checked for the Redis store on a Redis Cluster and behind Sentinels.

#![cfg(all(feature = "testing", feature = "redis"))]
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod support;

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use support::backend::patient;
use support::topologies::{MASTER, RedisCluster, SentinelSet};
use unsticky::testing::Subject;

/// A generous timeout, because a busy machine may be slow and these tests do not measure speed.
const PATIENCE: Duration = Duration::from_secs(5);

/// A replica that is promoted to master may lack the last writes, so this timeout prevents a failover
/// when a busy machine pauses.
const NO_FAILOVER: &str = "60000";

/// The servers of one kind, shared by all tests that run at the same time, because starting the servers takes
/// longer than most of the tests.
struct Shared<T>(Mutex<Weak<T>>);

impl<T: Send + Sync + 'static> Shared<T> {
    const fn new() -> Self {
        Self(Mutex::new(Weak::new()))
    }

    fn subject(&self, start: impl FnOnce() -> T, url: impl FnOnce(&T) -> String) -> Subject {
        let mut shared = self.0.lock().unwrap();
        let servers = shared.upgrade().unwrap_or_else(|| {
            let servers = Arc::new(start());
            *shared = Arc::downgrade(&servers);
            servers
        });
        Subject::new(patient(&url(&servers), PATIENCE)).keep(servers)
    }
}

mod cluster {
    use super::*;

    async fn setup() -> Subject {
        static CLUSTER: Shared<RedisCluster> = Shared::new();
        let start = || RedisCluster::start_with(&["--cluster-node-timeout", NO_FAILOVER]);
        CLUSTER.subject(start, RedisCluster::url)
    }

    unsticky::conformance!(setup);
}

mod sentinel {
    use super::*;

    async fn setup() -> Subject {
        static SET: Shared<SentinelSet> = Shared::new();
        let start = || {
            let set = SentinelSet::start();
            for sentinel in set.sentinels() {
                let never = ["down-after-milliseconds", NO_FAILOVER];
                sentinel.cli(&[&["SENTINEL", "SET", MASTER], &never[..]].concat());
            }
            set
        };
        SET.subject(start, SentinelSet::url)
    }

    unsticky::conformance!(setup);
}
