//! Creates new sessions: on their own, after ending the known sessions, or before ending the sessions that a
//! sign-in replaces.

use std::sync::Arc;

use futures_util::future::{OptionFuture, join3};
use tokio::time::timeout;

use crate::clock::Millis;
use crate::commands::{Commands, Write};
use crate::commit::end::EndOutcome;
use crate::commit::{Commit, Committed};
use crate::directory::{DirectoryHandle, DirectorySnapshot};
use crate::error::{Error, ErrorKind, Result};
use crate::event;
use crate::limits::NEW_IDS;
use crate::record::delta::View;
use crate::record::header::{Header, Update};
use crate::record::loaded::{Loaded, Record};
use crate::record::plan::EndReason;
use crate::record::tag::Tags;
use crate::record::token::{Secret, SessionId, Token};
use crate::record::values::{OnSignIn, Values};
use crate::store::{Created, StoreKey, Stored, Version};

/// A session that is not in the store yet.
struct NewSession {
    token: Token,
    key: StoreKey,
    record: Record,
    write: Write,
    /// When the session was created.
    now: Millis,
}

impl Commit<'_, '_> {
    /// Creates a session without ending another one.
    pub(super) async fn create_alone(&mut self) -> Result<Committed> {
        // A value that the request took belongs to another session, and this write cannot remove it from that
        // session, so the check rejects the commit.
        let nothing = Values::default();
        self.changes.delta.check_taken(&nothing)?;
        let view = self.initial_values(&nothing)?;
        let created = self.write_new(&view, &nothing).await?;
        self.report_created(&created);
        if created.loaded.is_none() && self.changes.is_ended() && self.is_removable {
            // The request destroyed its session and stored nothing afterwards.
            return Ok(self.cookie_removed());
        }
        Ok(created)
    }

    /// Ends the known sessions, then creates a new one.
    pub(super) async fn end_then_create(&mut self) -> Result<Committed> {
        let nothing = Values::default();
        // Computed before any session ends: if the function passed to `transact` fails, nothing may have
        // changed.
        let view = self.initial_values(&nothing)?;
        let ended = self.end_all().await?;
        if ended != EndOutcome::Ended {
            let is_loss = self.is_loss(view.matters_to(&nothing));
            let failure = if is_loss { self.changes_rejected().failure } else { None };
            let is_gone = ended == EndOutcome::Missing;
            return Ok(Committed { failure, ..self.known_session_lost(is_gone) });
        }
        // The old session is gone from here on, even if the new one cannot be created.
        match self.write_new(&view, &nothing).await {
            Ok(Committed { loaded: None, .. }) => Ok(self.cookie_removed()),
            Ok(created) => {
                self.report_created(&created);
                Ok(created)
            }
            Err(error) => {
                let failure = self.is_loss(view.matters_to(&nothing)).then_some(error);
                Ok(Committed { failure, ..self.cookie_removed() })
            }
        }
    }

    /// Creates the new session for a sign-in, then ends the sessions that it replaces. In this order, a
    /// sign-in that cannot be written ends none of them.
    ///
    /// If a replaced session cannot be ended, the sign-in fails and the new session is deleted. Otherwise the
    /// next request would present both tokens and be treated as anonymous, or the account would have one
    /// session too many. Replaced sessions that have already ended are not restored.
    pub(super) async fn create_then_end(&mut self) -> Result<Committed> {
        let ending = self.sessions_to_end();
        self.enrolment.replacing = self.of_the_same_principal(&ending);
        let base = self.values_carried_over();
        let view = self.initial_values(&base)?;
        let created = self.write_new(&view, &base).await?;
        for session in ending {
            if let Err(error) = self.end_replaced(&session).await {
                self.undo_create(&created).await;
                return Err(error);
            }
        }
        self.report_created(&created);
        Ok(created)
    }

    /// Returns the sessions that end when this request signs in.
    fn sessions_to_end(&self) -> Vec<Arc<Loaded>> {
        if self.changes.is_ended() {
            return self.known_sessions().cloned().collect();
        }
        // If this request may no longer change its session, it may not end that session either.
        self.loaded.iter().chain(&self.others).cloned().collect()
    }

    /// Returns the ids of the `sessions` that belong to the principal who signs in. Only these are in that
    /// principal's directory. If another request has signed in with one of the `sessions` since this request
    /// read it, that session's id is not returned, so the session counts towards the account's limit.
    fn of_the_same_principal(&self, sessions: &[Arc<Loaded>]) -> Vec<SessionId> {
        let principal = self.changes.principal();
        let is_same =
            |session: &&Arc<Loaded>| session.record.header.principal.as_ref() == principal;
        sessions.iter().filter(is_same).map(|session| session.id).collect()
    }

    /// Returns the values with which the new session for a sign-in starts: those of the request's anonymous
    /// session, unless the request has destroyed it. [`initial_values`](Self::initial_values) then drops the
    /// values that do not survive a sign-in.
    fn values_carried_over(&self) -> Values {
        match &self.loaded {
            Some(loaded)
                if !self.changes.is_ended() && loaded.record.header.principal.is_none() =>
            {
                loaded.record.values.clone()
            }
            _ => Values::default(),
        }
    }

    /// Ends a session that a new one replaces.
    async fn end_replaced(&mut self, session: &Loaded) -> Result<()> {
        let reason = match self.changes.is_ended() {
            true => EndReason::SignOut,
            false => EndReason::SignIn,
        };
        // If the replaced session stayed alive, the browser would also present that session's newer token, or
        // the account would have one session more than the directory has counted.
        let must_end = !self.others.is_empty() || self.enrolment.replacing.contains(&session.id);
        match self.end(session, reason).await? {
            EndOutcome::Spared if must_end => Err(Error::new(
                ErrorKind::Contended,
                "another request changed the session in the meantime",
            )),
            _ => Ok(()),
        }
    }

    /// Deletes the new session after a later step of its sign-in has failed.
    async fn undo_create(&mut self, created: &Committed) {
        if let Some(created) = &created.loaded {
            delete_unused(self.commands, &created.key, Some(&created.stored()), 2).await;
        }
    }

    /// Applies the changes of this request to the values with which a new session starts.
    fn initial_values(&mut self, base: &Values) -> Result<View> {
        let mut view = self.changes.delta.replay(base, OnSignIn::First)?;
        self.transact(base, &mut view)?;
        Ok(view)
    }

    /// Writes a new session with these values, or nothing if there is nothing to store. The caller emits the
    /// event.
    async fn write_new(&mut self, view: &View, base: &Values) -> Result<Committed> {
        if self.changes.principal().is_none() && !view.differs_from(base) {
            return Ok(Committed::default());
        }
        self.check_sign_in_window()?;
        let (mut directory, mut orphan) = (None, None);
        let mut failure =
            Error::new(ErrorKind::Randomness, "every new session id was already taken");
        for _ in 0..NEW_IDS {
            let new = self.new_session(view, base)?;
            match self.create(new, &mut directory, &mut orphan).await {
                Ok(Some(created)) => match self.list_created(created, directory.take()).await? {
                    Some(listed) => return Ok(listed),
                    None => failure = Error::new(ErrorKind::Contended, ""),
                },
                Ok(None) => {}
                // Even if the store applied the write, the session cannot be used: its secret is never sent,
                // and no directory lists it.
                Err(error) if error.kind() == ErrorKind::OutcomeUnknown => {
                    failure = Error::unavailable(error);
                }
                Err(error) => return Err(error),
            }
        }
        delete_orphan(self.commands, orphan).await;
        Err(failure)
    }

    /// Writes the record of a new session. At the same time, reads the directory that must list the session,
    /// unless it was already read. Returns `None` if the id is already taken, either by an earlier copy of
    /// this command or by chance.
    ///
    /// `orphan` is the key of an earlier attempt whose `create` got no answer. That key is deleted at the
    /// same time.
    async fn create(
        &mut self,
        new: NewSession,
        directory: &mut Option<DirectorySnapshot>,
        orphan: &mut Option<StoreKey>,
    ) -> Result<Option<Committed>> {
        if directory.is_none() {
            *directory = self.begun_directory(new.token.id, &new.record.header);
        }
        let (created, read, ()) = {
            let unread = self.directory_to_read(&new.record.header).filter(|_| directory.is_none());
            let read = OptionFuture::from(unread.as_ref().map(DirectoryHandle::read));
            let create = self.commands.create(&new.key, &new.write);
            join3(create, read, delete_orphan(self.commands, orphan.take())).await
        };
        let created = match created {
            Ok(Created::Created(version)) => Ok(Some(self.created(new, version))),
            Ok(Created::Occupied) => Ok(None),
            Err(error) => {
                *orphan = Some(new.key).filter(|_| error.kind() == ErrorKind::OutcomeUnknown);
                Err(error)
            }
        };
        match read {
            None => {}
            Some(Ok(read)) => {
                self.keep_mark_of(&read);
                *directory = Some(read);
            }
            Some(Err(error)) => {
                match created {
                    Ok(Some(created)) => self.undo_create(&created).await,
                    Ok(None) | Err(_) => delete_orphan(self.commands, orphan.take()).await,
                }
                return Err(error);
            }
        }
        created
    }

    /// Enrols the session that was created, if it is signed in, and deletes it if it cannot be enrolled.
    /// Returns `None` if another request has ended it in the meantime.
    async fn list_created(
        &mut self,
        created: Committed,
        directory: Option<DirectorySnapshot>,
    ) -> Result<Option<Committed>> {
        if let Some(session) = &created.loaded
            && let header = &session.record.header
            && self.needs_enrolment(None, header)
        {
            let listed = self.enrol(session.id, None, header, directory).await;
            if !matches!(listed, Ok(true)) {
                self.undo_create(&created).await;
                return listed.map(|_| None);
            }
        }
        Ok(Some(created))
    }

    /// Prepares a new session with a random id and secret.
    fn new_session(&self, view: &View, base: &Values) -> Result<NewSession> {
        let entropy = &*self.settings.entropy;
        let token = Token { id: SessionId::random(entropy)?, secret: Secret::random(entropy)? };
        let now = self.settings.now();
        let tag = self.settings.tag()?;
        let digest = token.secret.digest(self.settings.cookie.name());
        let header = Header::new(digest, now, &self.settings.options.lifetime, tag);
        let plain = Update::plain(now, tag, &self.settings.options.lifetime);
        let header = header.updated(&self.header_update(None, plain));
        // This is the session's first write, so its record has no earlier tag.
        let header = Header { tags: Tags::first(tag), ..header };
        let (record, write) = self.encode(header, view, base, now)?;
        Ok(NewSession { key: self.settings.key(token.id), token, record, write, now })
    }

    fn created(&self, new: NewSession, version: Version) -> Committed {
        let NewSession { token, key, record, now, .. } = new;
        let cookie = Some(self.cookie(&record.header, &token, now));
        let loaded = Loaded::new(token.id, key, record, version, false);
        Committed { cookie, ..Committed::at(Arc::new(loaded)) }
    }

    fn report_created(&self, created: &Committed) {
        if let Some(loaded) = &created.loaded {
            event::created(loaded.id);
            self.report_signed_in(loaded.id);
        }
    }
}

/// Deletes a session whose cookie is never sent. Takes at most `1 / part` of the time left. If the delete
/// fails, the session stays in the store, but its secret is never sent, so it cannot be used.
async fn delete_unused(
    commands: Commands<'_>,
    key: &StoreKey,
    expected: Option<&Stored>,
    part: u32,
) {
    let _ = timeout(commands.time_left() / part, commands.delete(key, expected)).await;
}

/// Deletes the session that a `create` without an answer may have left behind. If a copy of that `create`
/// arrives later, its record stays in the store until the idle timeout.
async fn delete_orphan(commands: Commands<'_>, orphan: Option<StoreKey>) {
    if let Some(key) = orphan {
        // Limited to a small part of the time left, because the request waits for this delete, and the server
        // did not answer the `create` either.
        delete_unused(commands, &key, None, 8).await;
    }
}
