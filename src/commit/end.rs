//! Sessions are ended: by a sign-out, or because a sign-in replaces them.

use crate::commands::pause;
use crate::commit::{Commit, Committed};
use crate::error::{Error, ErrorKind, Result};
use crate::event;
use crate::limits::PROMPT_ATTEMPTS;
use crate::record::loaded::Loaded;
use crate::record::plan::{self, EndReason};
use crate::record::values::Values;
use crate::store::{Deleted, Stored};

/// What became of a session that was to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndOutcome {
    Ended,
    /// There was no such session any more.
    Missing,
    /// This request may not end it: somebody else has signed in on it, or a sign-in was to replace it and
    /// another request has given it a new secret.
    Spared,
}

/// How one attempt to delete a session went.
enum DeleteAttempt {
    Done(EndOutcome),
    /// Another request wrote first. `None`: the record must be read again.
    Conflict(Option<Stored>),
}

impl Commit<'_, '_> {
    /// Signs out of the known sessions. The browser is told to forget their cookie if any has ended.
    pub(super) async fn sign_out(&mut self) -> Result<Committed> {
        Ok(match self.end_all().await? {
            EndOutcome::Ended => self.cookie_removed(),
            EndOutcome::Missing => self.known_session_lost(true),
            EndOutcome::Spared => self.known_session_lost(false),
        })
    }

    /// Ends every known session: `Ended` if any has ended, `Missing` if there was none. `Spared` if one
    /// of them is spared: the browser may hold its newer cookie, which must stay.
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

    /// Ends a session, if this request may.
    pub(super) async fn end(&mut self, loaded: &Loaded, reason: EndReason) -> Result<EndOutcome> {
        let outcome = self.try_end(loaded, reason).await?;
        if outcome != EndOutcome::Ended {
            // A value that was taken from the session is still there, or the request that has ended the
            // session may have taken it too.
            self.check_taken_from(loaded, &Values::default())?;
        }
        Ok(outcome)
    }

    /// Deletes the session as it was read. After a conflict, deletes the newer record, if this request may
    /// end that one as well.
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

    /// Deletes the session if it still is as `current` was read.
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
            // An expired session is gone, even if the store still held it.
            (Deleted::Deleted, _) if self.is_expired(current) => EndOutcome::Missing,
            (Deleted::Deleted, _) => {
                ended();
                EndOutcome::Ended
            }
            // The answer to an earlier copy of this command was lost.
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

    /// Values are taken from the request's own session, not from the others that it presented.
    fn check_taken_from(&self, loaded: &Loaded, values: &Values) -> Result<()> {
        match self.others.iter().any(|other| other.id == loaded.id) {
            true => Ok(()),
            false => self.changes.delta.check_taken(values),
        }
    }

    /// It is unknown which request has ended the session. That is an error only if a value was taken from
    /// it: both requests may have taken the same one.
    fn check_end_is_certain(&self, loaded: &Loaded) -> Result<()> {
        self.check_taken_from(loaded, &Values::default()).map_err(|_| {
            Error::new(
                ErrorKind::OutcomeUnknown,
                "the session ended, by this request or by another that took the same value",
            )
        })
    }
}
