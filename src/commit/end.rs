//! Ends sessions when the request signs out, destroys its session, or replaces a session by signing in.

use crate::commands::pause;
use crate::commit::{Commit, Committed};
use crate::error::{Error, ErrorKind, Result};
use crate::event;
use crate::limits::PROMPT_ATTEMPTS;
use crate::record::loaded::Loaded;
use crate::record::plan::{self, EndReason};
use crate::record::values::Values;
use crate::store::{Deleted, Stored};

/// The result of an attempt to end a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndOutcome {
    Ended,
    /// The session no longer exists.
    Missing,
    /// This request may not end the session. A sign-out spares a session that no longer belongs to the same
    /// principal. A sign-in spares a session whose secret another request has replaced.
    Spared,
}

/// The result of one attempt to delete a session.
enum DeleteAttempt {
    Done(EndOutcome),
    /// Another request wrote first. `None` if the record must be read again.
    Conflict(Option<Stored>),
}

impl Commit<'_, '_> {
    /// Ends all known sessions. If at least one of them ended and none was spared, the response removes the
    /// browser's cookie.
    pub(super) async fn sign_out(&mut self) -> Result<Committed> {
        Ok(match self.end_all().await? {
            EndOutcome::Ended => self.cookie_removed(),
            EndOutcome::Missing => self.known_session_lost(true),
            EndOutcome::Spared => self.known_session_lost(false),
        })
    }

    /// Ends every known session. Returns `Missing` if none of them still existed. Returns `Spared` if one of
    /// them was spared, even if others ended: the browser may hold that session's newer cookie and must keep
    /// it. Returns `Ended` otherwise.
    pub(super) async fn end_all(&mut self) -> Result<EndOutcome> {
        let ending: Vec<_> = self.known_sessions().cloned().collect();
        let mut all = EndOutcome::Missing;
        for session in ending {
            match (self.end(&session, EndReason::SignOut).await?, &all) {
                (EndOutcome::Missing, _) | (_, EndOutcome::Spared) => {}
                (outcome, _) => all = outcome,
            }
        }
        Ok(all)
    }

    /// Ends a session if this request may end it.
    pub(super) async fn end(&mut self, loaded: &Loaded, reason: EndReason) -> Result<EndOutcome> {
        let outcome = self.try_end(loaded, reason).await?;
        if outcome != EndOutcome::Ended {
            // Either a value that this request took is still in the session, or the request that ended the
            // session may have taken the same value.
            self.check_taken_from(loaded, &Values::default())?;
        }
        Ok(outcome)
    }

    /// Deletes the session if its record is still as it was read. If another request wrote first, deletes the
    /// newer record, provided that this request may still end the session.
    async fn try_end(&mut self, loaded: &Loaded, reason: EndReason) -> Result<EndOutcome> {
        let may_end =
            |session: &Loaded| plan::ends(reason, &loaded.authority, &session.record.header);
        if !may_end(loaded) {
            return Ok(EndOutcome::Spared);
        }
        let mut newer;
        let mut current = loaded;
        for attempt in 0..self.settings.options.commit_attempts {
            let standing = match self.delete_unchanged(loaded, current, reason).await? {
                DeleteAttempt::Done(outcome) => return Ok(outcome),
                DeleteAttempt::Conflict(Some(stored)) => Some(loaded.newer(stored)?),
                DeleteAttempt::Conflict(None) => loaded.reread(self.commands).await?,
            };
            newer = match standing {
                Some(session) if !self.is_expired(&session) => session,
                _ => return Ok(EndOutcome::Missing),
            };
            if !may_end(&newer) {
                return Ok(EndOutcome::Spared);
            }
            current = &newer;
            if attempt >= PROMPT_ATTEMPTS {
                pause(&self.commands, &*self.settings.entropy, attempt).await?;
            }
        }
        Err(Error::new(ErrorKind::Contended, ""))
    }

    /// Deletes the session if its record is still the one in `current`.
    async fn delete_unchanged(
        &mut self,
        loaded: &Loaded,
        current: &Loaded,
        reason: EndReason,
    ) -> Result<DeleteAttempt> {
        self.check_taken_from(loaded, &current.record.values)?;
        let ended = || {
            event::signed_out(current.id, self.settings.who_of(current), reason.as_str());
        };
        let outcome = match self.commands.delete(&current.key, Some(&current.stored())).await? {
            // An expired session counts as gone, even if the store still held it.
            (Deleted::Deleted, _) if self.is_expired(current) => EndOutcome::Missing,
            (Deleted::Deleted, _) => {
                ended();
                EndOutcome::Ended
            }
            // A delete was in doubt: either this request or another one may have deleted the record.
            (Deleted::Missing, true) => {
                ended();
                self.check_end_is_certain(loaded)?;
                EndOutcome::Ended
            }
            (Deleted::Missing, false) => EndOutcome::Missing,
            (Deleted::Conflict(stored), _) => {
                event::conflict(current.id);
                return Ok(DeleteAttempt::Conflict(stored));
            }
        };
        Ok(DeleteAttempt::Done(outcome))
    }

    /// Checks that the values that this request took are unchanged. A request takes values only from its own
    /// session, so the other sessions whose tokens the request presented are not checked.
    fn check_taken_from(&self, loaded: &Loaded, values: &Values) -> Result<()> {
        match self.others.iter().any(|other| other.id == loaded.id) {
            true => Ok(()),
            false => self.changes.delta.check_taken(values),
        }
    }

    /// Fails if this request took a value from the session. Called if it is unknown which request deleted the
    /// session: another request may have taken the same value.
    fn check_end_is_certain(&self, loaded: &Loaded) -> Result<()> {
        self.check_taken_from(loaded, &Values::default()).map_err(|_| {
            Error::new(
                ErrorKind::OutcomeUnknown,
                "the session was deleted, either by this request or by another one that took the same value",
            )
        })
    }
}
