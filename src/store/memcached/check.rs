//! Examines the servers behind a Memcached store.

use async_trait::async_trait;

use crate::store::diagnose::{Diagnose, Probe};
use crate::store::memcached::MemcachedStore;

#[async_trait]
impl Diagnose for MemcachedStore {
    async fn diagnose(&self, probe: &Probe) {
        probe.try_store(self).await;
    }
}
