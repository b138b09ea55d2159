//! Lists the principal's live sessions.

use std::sync::Arc;

use futures_util::future::try_join_all;

use crate::directory::DirectoryHandle;
use crate::directory::probe::EntryState;
use crate::directory::revoke::RevocationReason;
use crate::error::Result;
use crate::record::loaded::Loaded;

impl DirectoryHandle<'_> {
    /// Returns the live sessions with their labels, the newest sign-in first. Removes ended sessions from the
    /// record.
    pub(crate) async fn list(&self) -> Result<Vec<(Arc<Loaded>, Option<Arc<str>>)>> {
        let snapshot = self.read().await?;
        let now = self.settings.now();
        let probes = snapshot.record.listed().rev().map(async |entry| {
            let state = self.probe(entry.id).await?;
            Ok((entry, state))
        });
        let mut alive = Vec::new();
        let mut missing = Vec::new();
        for (entry, state) in try_join_all(probes).await? {
            match state {
                EntryState::Owned(loaded) if !loaded.record.header.clocks.expired(now) => {
                    alive.push((loaded, entry.label.clone()));
                }
                EntryState::Missing | EntryState::Foreign if entry.is_settled(now) => {
                    missing.push(entry.id);
                }
                _ => {}
            }
        }
        let mut ended = self.ensure_ended(&missing).await;
        let revoked = snapshot.record.revoked().into_iter().collect();
        let reason = RevocationReason::Unfinished;
        ended.extend(self.end_within_part(&revoked, 4, reason, &snapshot.record).await);
        self.remove_entries(snapshot, &ended).await;
        Ok(alive)
    }
}
