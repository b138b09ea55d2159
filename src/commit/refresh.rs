//! Extends a session's idle timeout when the session is used, and confirms its cookie.

use std::sync::Arc;

use crate::commands::Settled;
use crate::commit::Commit;
use crate::error::{Error, ErrorKind, Result};
use crate::event;
use crate::limits::PROMPT_ATTEMPTS;
use crate::record::authority::SecretStatus;
use crate::record::delta::View;
use crate::record::header::Update;
use crate::record::loaded::{Loaded, Standing};

/// The result of one attempt to refresh a session.
enum RefreshAttempt {
    /// The write was applied. Holds the session, which may include later writes by other requests.
    Done(Arc<Loaded>),
    /// Another request wrote first. `None` if the record must be read again.
    Conflict(Option<Arc<Loaded>>),
    /// The session no longer exists or has expired.
    Gone,
}

impl Commit<'_, '_> {
    /// Extends the idle timeout and records that the browser has sent the session's cookie back. A failure is
    /// not an error for the request, because the next request tries again.
    pub(super) async fn refresh(&mut self, loaded: Arc<Loaded>) -> Arc<Loaded> {
        let mut current = loaded;
        for _ in 0..PROMPT_ATTEMPTS {
            let attempt = match self.try_refresh(&current).await {
                // The other request's write extends the idle timeout but may not confirm the cookie. Only an
                // unconfirmed cookie is worth another attempt.
                Ok(RefreshAttempt::Conflict(None)) if self.settings.confirms(&current) => {
                    current.reread(self.commands).await.map(RefreshAttempt::Conflict)
                }
                attempt => attempt,
            };
            match attempt {
                Ok(RefreshAttempt::Done(refreshed))
                    if refreshed.secret_status() != SecretStatus::Superseded =>
                {
                    return refreshed;
                }
                Ok(RefreshAttempt::Conflict(Some(newer))) if self.settings.confirms(&newer) => {
                    current = newer;
                }
                Ok(_) => return current,
                Err(error) => {
                    event::refresh_failed(current.id, &error);
                    return current;
                }
            }
        }
        current
    }

    /// Extends the idle timeout if a refresh is due, and returns whether the session is still valid. Unlike
    /// [`refresh`](Self::refresh), this method returns errors, because the application asked for the
    /// extension.
    pub(crate) async fn touch(&mut self, loaded: Arc<Loaded>) -> Result<Standing> {
        let standing = self.keep_alive(loaded).await;
        self.report(standing.as_ref().err(), standing.is_err());
        standing
    }

    async fn keep_alive(&mut self, loaded: Arc<Loaded>) -> Result<Standing> {
        // If the session was expired when it was read, another request may have extended it since.
        let mut found = match self.is_expired(&loaded) {
            true => loaded.reread(self.commands).await?,
            false => Some(loaded),
        };
        for _ in 0..PROMPT_ATTEMPTS {
            let now = self.settings.now();
            let current = match Standing::of(found, now) {
                Standing::Valid(current) => current,
                lost => return Ok(lost),
            };
            let is_due = self.settings.refresh_due(&current.record.header, now);
            if !is_due && !self.settings.confirms(&current) {
                return Ok(Standing::Valid(current));
            }
            if !self.settings.is_listed(self.commands, &current).await? {
                return Ok(Standing::Lost { is_gone: true });
            }
            found = match self.try_refresh(&current).await? {
                RefreshAttempt::Done(refreshed) => return Ok(Standing::of(Some(refreshed), now)),
                RefreshAttempt::Conflict(Some(newer)) => Some(newer),
                RefreshAttempt::Conflict(None) => current.reread(self.commands).await?,
                RefreshAttempt::Gone => return Ok(Standing::Lost { is_gone: true }),
            };
        }
        Err(Error::new(ErrorKind::Contended, ""))
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
            Settled::Followed(stored) => RefreshAttempt::Done(loaded.newer(stored)?),
            Settled::Conflict(Some(stored)) => {
                RefreshAttempt::Conflict(Some(loaded.newer(stored)?))
            }
            Settled::Conflict(None) => RefreshAttempt::Conflict(None),
            Settled::Missing => RefreshAttempt::Gone,
        })
    }
}
