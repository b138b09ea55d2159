//! A cluster.

use std::sync::Arc;

use crate::store::diagnose::Probe;
use crate::store::redis::RedisStore;
use crate::store::redis::cluster::Cluster;

/// Examines each node of a cluster.
pub(super) async fn examine(store: &RedisStore, probe: &Probe, _cluster: &Arc<Cluster>) {
    probe.try_store(store).await;
}
