//! Examines the servers behind a Redis store.
//!
//! | file | content |
//! |---|---|
//! | `server` | examines one server, whatever its role |
//! | `cluster` | examines the nodes of a cluster, and whether they serve all slots |
//! | `sentinel` | examines the Sentinels and the servers that they watch |
//! | `unreachable` | suggests a remedy for a server that cannot be used (pure functions) |
//! | `findings` | turns a server's answers into findings (pure functions) |
//! | `certificate` | checks when a certificate expires (pure functions) |
//! | `info` | parses the answer to `INFO` |
//! | `role` | defines the roles that a server may be expected to have |

mod certificate;
mod cluster;
mod findings;
mod info;
mod role;
mod sentinel;
mod server;
mod unreachable;

use async_trait::async_trait;
use futures_util::future::join;

use crate::check::Finding;
use crate::store::diagnose::{Diagnose, Probe};
use crate::store::redis::topology::Topology;
use crate::store::redis::{RedisStore, Route};

#[async_trait]
impl Diagnose for RedisStore {
    async fn diagnose(&self, probe: &Probe) {
        let Route::Own(own) = &self.route else {
            probe.report(Finding::note(
                "opaque",
                "The store uses a connection that the application made (RedisStore::from_connection), \
                 so only the \
                 commands were tried and the server was not examined.",
                "Run unsticky check with the server's address.",
            ));
            return probe.try_store(self).await;
        };
        let Ok(topology) = own.topology() else { return probe.try_store(self).await };
        let servers = async {
            match &*topology {
                Topology::One(link) => server::examine(self, probe, link).await,
                Topology::Master(master) => sentinel::examine(self, probe, master).await,
                Topology::Cluster(cluster) => cluster::examine(self, probe, cluster).await,
            }
        };
        join(server::examine_client(probe, &own.settings), servers).await;
    }
}
