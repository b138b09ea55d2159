//! Sentinels, and the servers that they watch.

use crate::store::diagnose::Probe;
use crate::store::redis::RedisStore;
use crate::store::redis::sentinel::Master;

/// Examines the Sentinels, the master and its replicas.
pub(super) async fn examine(store: &RedisStore, probe: &Probe, _master: &Master) {
    probe.try_store(store).await;
}
