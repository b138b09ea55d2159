//! Saves after conflicts: if another request wrote first, applies the changes again to the newer record.

use std::sync::Arc;

use crate::commands::pause;
use crate::commit::save::SaveAttempt;
use crate::commit::{Commit, Committed};
use crate::error::{Error, ErrorKind, Result};
use crate::event;
use crate::key_lock::KeyGuard;
use crate::limits::PROMPT_ATTEMPTS;
use crate::record::loaded::Loaded;
use crate::record::plan::{self, Merge};
use crate::record::token::Secret;
use crate::store::Stored;

impl<'a> Commit<'a, '_> {
    /// Writes the changes to the session. If other requests have changed the session, applies the changes to
    /// the newer record, provided that this request may still change it.
    pub(super) async fn save(&mut self, loaded: Arc<Loaded>) -> Result<Committed> {
        // If the session was expired when it was read, another request may have extended it since. After the
        // response has been sent, the record that was read for the response is too old to base a decision on.
        let is_reread = self.is_expired(&loaded) || self.outlived;
        let current = match is_reread {
            true => Box::pin(self.reread_listed(&loaded)).await?,
            false => Some(loaded.clone()),
        };
        self.replay_until_saved(loaded, current, is_reread).await
    }

    /// Reads the session again. In strict mode, returns `None` if the directory no longer lists it.
    async fn reread_listed(&mut self, loaded: &Arc<Loaded>) -> Result<Option<Arc<Loaded>>> {
        let Some(newer) = loaded.reread(self.commands).await? else { return Ok(None) };
        Ok(self.settings.is_listed(self.commands, &newer).await?.then_some(newer))
    }

    /// Attempts to save until there is no conflict, up to the configured number of attempts. After each
    /// conflict, applies the changes again to the newer record, provided that this request may still change
    /// it.
    ///
    /// `current` is the session to start from, or `None` if it is gone. `is_reread` says whether `current`
    /// was read for this commit.
    async fn replay_until_saved(
        &mut self,
        loaded: Arc<Loaded>,
        mut current: Option<Arc<Loaded>>,
        is_reread: bool,
    ) -> Result<Committed> {
        let mut last = loaded.clone();
        let mut drawn = None;
        let mut guard = None;
        for attempt in 0..self.settings.options.commit_attempts {
            // `save` has just checked that the record that was read before this commit has not expired.
            let is_known_alive = attempt == 0 && !is_reread;
            let living =
                current.take().filter(|session| is_known_alive || !self.is_expired(session));
            let new_secret = match self.decide_on_newer(living.as_deref(), &last)? {
                Merge::Write { new_secret } => new_secret,
                Merge::StartFresh => return Box::pin(self.create_alone()).await,
                Merge::Gone { fails } => {
                    return Ok(self.lost_during_save(loaded, living.is_none(), fails));
                }
            };
            let Some(living) = living else {
                return Ok(self.lost_during_save(loaded, true, false));
            };
            last = living;
            let secret = self.secret_if(new_secret, &mut drawn)?;
            let is_fresh = attempt > 0 || is_reread;
            let stored = match self.try_save(&last, secret, is_fresh).await {
                Ok(SaveAttempt::Done(committed)) => return Ok(committed),
                Ok(SaveAttempt::Conflict(stored)) => stored,
                Err(error) => return self.failed_save(loaded, &last, error),
            };
            // Boxed: conflicts are rare, and this future would make the future of every commit larger.
            current = Box::pin(self.after_conflict(&last, stored, &mut guard, attempt)).await?;
        }
        Err(Error::new(ErrorKind::Contended, ""))
    }

    /// Determines what this request may do to the current record. If the session is gone (`living` is
    /// `None`), judges by `last`, the record that was read last.
    fn decide_on_newer(&self, living: Option<&Loaded>, last: &Loaded) -> Result<Merge> {
        let requested = self.changes.requested(&living.unwrap_or(last).record.header);
        let secret_status = living.map(Loaded::secret_status);
        match plan::merge(secret_status, requested, self.outlived) {
            // The cookie with the new secret can no longer be sent.
            Merge::Write { new_secret: true } if self.outlived => {
                Err(Error::new(ErrorKind::HeadSent, ""))
            }
            merge => Ok(merge),
        }
    }

    /// Returns the new secret if the save needs one. All attempts use the same secret.
    fn secret_if(&self, is_needed: bool, drawn: &mut Option<Secret>) -> Result<Option<Secret>> {
        if is_needed && drawn.is_none() {
            *drawn = Some(Secret::random(&*self.settings.entropy)?);
        }
        Ok(drawn.filter(|_| is_needed))
    }

    /// Returns the session to which the changes are applied again after a conflict, or `None` if it is gone.
    /// After the first conflict, waits for the commits in this process that had an earlier conflict on the
    /// same session.
    async fn after_conflict(
        &mut self,
        last: &Loaded,
        stored: Option<Stored>,
        guard: &mut Option<KeyGuard<'a>>,
        attempt: u32,
    ) -> Result<Option<Arc<Loaded>>> {
        let is_stale = match guard {
            None => {
                let own = self.commands.key_guard(self.settings, &last.key).await;
                guard.insert(own).waited()
            }
            Some(_) if attempt < PROMPT_ATTEMPTS => false,
            Some(_) => {
                pause(&self.commands, &*self.settings.entropy, attempt).await?;
                true
            }
        };
        let stored = match stored {
            Some(stored) if !is_stale => Some(stored),
            _ => self.commands.load(&last.key).await?,
        };
        stored.map(|stored| last.newer(stored)).transpose()
    }

    /// Returns the result of the save after an attempt failed.
    fn failed_save(
        &mut self,
        loaded: Arc<Loaded>,
        last: &Loaded,
        error: Error,
    ) -> Result<Committed> {
        if error.kind() != ErrorKind::Gone {
            return Err(error);
        }
        // In strict mode, a session that the directory no longer lists counts as gone.
        let requested = self.changes.requested(&last.record.header);
        Ok(self.lost_during_save(loaded, true, requested.steps_up || requested.supersedes))
    }

    /// Returns the result if the session is gone or this request may no longer change it. The session is not
    /// created again and no cookie is sent. If `fails` is set, this is an error even if no value was changed.
    fn lost_during_save(&mut self, loaded: Arc<Loaded>, is_gone: bool, fails: bool) -> Committed {
        let base = self.changes.base_values(Some(&loaded));
        let matters = fails || self.changes.delta.view().matters_to(base);
        let failure = self.is_loss(matters).then(|| {
            event::gone(loaded.id, self.settings.who_of(&loaded));
            self.settings.gone("")
        });
        Committed { failure, ..Committed::lost(loaded, is_gone) }
    }
}
