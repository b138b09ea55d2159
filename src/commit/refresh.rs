//! Using a session: its idle timeout is extended, and its cookie is confirmed.

use std::sync::Arc;

use crate::commands::Settled;
use crate::commit::{Commit, Committed};
use crate::error::Result;
use crate::event;
use crate::limits::PROMPT_ATTEMPTS;
use crate::record::delta::View;
use crate::record::header::Update;
use crate::record::loaded::Loaded;

/// How one attempt of a refresh went.
enum RefreshAttempt {
    Done(Arc<Loaded>),
    /// Another request wrote first.
    Conflict(Arc<Loaded>),
    Gone,
}

impl Commit<'_, '_> {
    /// Extends the idle timeout, and notes that the browser has sent the session's cookie back. The
    /// request goes on if that fails: another request has written, or the next one will try again.
    pub(super) async fn refresh(&mut self, loaded: Arc<Loaded>) -> Arc<Loaded> {
        let mut current = loaded;
        for _ in 0..PROMPT_ATTEMPTS {
            match self.try_refresh(&current).await {
                Ok(RefreshAttempt::Done(refreshed)) => return refreshed,
                // The other write may not have confirmed the cookie; only for that it is tried again.
                Ok(RefreshAttempt::Conflict(newer)) if self.settings.confirms(&newer) => {
                    current = newer;
                }
                Ok(RefreshAttempt::Conflict(_) | RefreshAttempt::Gone) => return current,
                Err(error) => {
                    event::refresh_failed(current.id, &error);
                    return current;
                }
            }
        }
        current
    }

    async fn try_refresh(&mut self, loaded: &Arc<Loaded>) -> Result<RefreshAttempt> {
        let now = self.settings.now();
        if loaded.record.header.clocks.expired(now) {
            return Ok(RefreshAttempt::Gone);
        }
        let update = Update {
            is_unconfirmed: loaded.authority.is_presented.then_some(false),
            is_activity: self.is_activity,
            ..Update::plain(now, self.settings.tag()?, &self.settings.options.lifetime)
        };
        let header = loaded.record.header.updated(&update);
        let values = &loaded.record.values;
        let (record, write) = self.encode(header, &View::default(), values, now)?;
        Ok(match self.commands.replace(&loaded.key, &write, &loaded.stored()).await? {
            Settled::Applied(version) => RefreshAttempt::Done(loaded.at(record, version)),
            Settled::Followed(stored) => {
                let refreshed = loaded.at(record, stored.version);
                let committed = Committed::as_read_back(&refreshed, stored, None)?;
                committed.loaded.map_or(RefreshAttempt::Gone, RefreshAttempt::Done)
            }
            Settled::Conflict(Some(stored)) => RefreshAttempt::Conflict(loaded.newer(stored)?),
            Settled::Conflict(None) if self.settings.confirms(loaded) => {
                let newer = loaded.reread(self.commands).await?;
                newer.map_or(RefreshAttempt::Gone, RefreshAttempt::Conflict)
            }
            Settled::Conflict(None) | Settled::Missing => RefreshAttempt::Gone,
        })
    }
}
