//! One server.

use std::sync::Arc;

use crate::store::diagnose::Probe;
use crate::store::redis::RedisStore;
use crate::store::redis::connection::SharedConnection;

/// Examines the only server of a store.
pub(super) async fn examine(store: &RedisStore, probe: &Probe, _link: &Arc<SharedConnection>) {
    probe.try_store(store).await;
}
