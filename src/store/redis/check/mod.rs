//! Examines the servers behind a Redis store.
//!
//! | file | content |
//! |---|---|
//! | `server` | one server, whichever its part is |
//! | `cluster` | the nodes of a cluster, and whether they cover all slots |
//! | `sentinel` | the Sentinels, and the servers that they watch |
//! | `findings` | what the answers of a server mean: pure |
//! | `certificate` | when a certificate ends: pure |
//! | `info` | the answer to `INFO`, taken apart |
//! | `role` | what a server is to be |

mod certificate;
mod cluster;
mod findings;
mod info;
mod role;
mod sentinel;
mod server;

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
                "The store has a connection of the application's own, so only the commands were tried.",
                "Examine the servers with the command unsticky check.",
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
