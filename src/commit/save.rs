//! Makes one attempt to write the changes of a request to its session.

use std::sync::Arc;

use crate::commands::{Settled, Write};
use crate::commit::{Commit, Committed};
use crate::error::Result;
use crate::event;
use crate::record::delta::View;
use crate::record::header::Update;
use crate::record::loaded::{Loaded, Record};
use crate::record::token::{Secret, Token};
use crate::store::Stored;

/// The result of one attempt to save.
pub(super) enum SaveAttempt {
    /// The save succeeded, or nothing had to be written.
    Done(Committed),
    /// Another request wrote or deleted the record first. `None` if the record is gone or must be read again.
    Conflict(Option<Stored>),
}

/// A save that is ready to be sent.
struct PreparedSave {
    record: Record,
    write: Write,
    /// The `Set-Cookie` header, if the session gets a new secret.
    cookie: Option<String>,
}

impl Commit<'_, '_> {
    /// Makes one attempt to write the changes to `current`. `is_fresh` says whether `current` was read for
    /// this commit.
    pub(super) async fn try_save(
        &mut self,
        current: &Arc<Loaded>,
        secret: Option<Secret>,
        is_fresh: bool,
    ) -> Result<SaveAttempt> {
        let Some(prepared) = self.prepare_save(current, secret)? else {
            // Boxed: this case is rare, and its future would make the future of every commit larger.
            return Box::pin(self.skip_write(current, is_fresh)).await;
        };
        let (base, header) = (&current.record.header, &prepared.record.header);
        if self.needs_enrolment(Some(base), header) {
            Box::pin(self.enrol(current.id, Some(base), header, None)).await?;
        }
        let settled =
            self.commands.replace(&current.key, &prepared.write, &current.stored()).await?;
        self.settle_save(current, prepared, settled)
    }

    /// Returns the record to write, with the cookie if the session gets a new secret. Returns `None` if nothing
    /// would change.
    fn prepare_save(
        &mut self,
        current: &Arc<Loaded>,
        secret: Option<Secret>,
    ) -> Result<Option<PreparedSave>> {
        let view = self.changes_on(current)?;
        let Record { header, values } = &current.record;
        if secret.is_none() && !view.differs_from(values) {
            return Ok(None);
        }
        let now = self.settings.now();
        let tag = self.settings.tag()?;
        let digest = secret.map(|secret| secret.digest(self.settings.cookie.name()));
        let update = Update { digest, ..Update::plain(now, tag, &self.settings.options.lifetime) };
        let header = header.updated(&self.header_update(Some(current), update));
        let (record, write) = self.encode(header, &view, values, now)?;
        let cookie = secret
            .map(|secret| self.cookie(&record.header, &Token { id: current.id, secret }, now));
        Ok(Some(PreparedSave { record, write, cookie }))
    }

    /// Converts the store's answer into the result of the attempt.
    fn settle_save(
        &self,
        current: &Loaded,
        prepared: PreparedSave,
        settled: Settled,
    ) -> Result<SaveAttempt> {
        let (version, read_back) = match settled {
            Settled::Applied(version) => (version, None),
            Settled::Followed(stored) => (stored.version, Some(stored)),
            Settled::Missing => return Ok(SaveAttempt::Conflict(None)),
            Settled::Conflict(stored) => {
                event::conflict(current.id);
                return Ok(SaveAttempt::Conflict(stored));
            }
        };
        let PreparedSave { record, cookie, .. } = prepared;
        let has_new_secret = cookie.is_some();
        self.report_saved(current, has_new_secret);
        let saved = match has_new_secret {
            true => current.renewed(record, version),
            false => current.at(record, version),
        };
        Ok(SaveAttempt::Done(match read_back {
            Some(stored) => Committed::as_read_back(&saved, stored, cookie)?,
            None => Committed { cookie, ..Committed::at(saved) },
        }))
    }

    /// Applies the changes of this request to the values of `current`.
    fn changes_on(&mut self, current: &Arc<Loaded>) -> Result<View> {
        let Record { header, values } = &current.record;
        self.changes.delta.check_taken(values)?;
        let is_seen = self.loaded.as_ref().is_some_and(|loaded| Arc::ptr_eq(loaded, current));
        let mut view = match is_seen && !self.is_stale {
            // The handler has seen these values, so its functions need not run again.
            true => self.changes.delta.view().clone(),
            false => self.changes.delta.replay(values, self.changes.on_sign_in(header))?,
        };
        self.transact(values, &mut view)?;
        Ok(view)
    }

    fn report_saved(&self, session: &Loaded, has_new_secret: bool) {
        if has_new_secret && self.changes.signing_in().is_none() {
            let reason = self.changes.rotation_reason(&session.record.header);
            event::rotated(session.id, self.settings.who_of(session), reason);
        }
        self.report_signed_in(session.id);
    }

    /// Skips the write, because the changes leave the record as it is. Without a write, no conflict can
    /// reveal that `current` is outdated. If a decision was based on `current`, the record is therefore read
    /// again, unless it was read for this commit.
    async fn skip_write(&mut self, current: &Arc<Loaded>, is_fresh: bool) -> Result<SaveAttempt> {
        if !is_fresh && self.decide.is_some() {
            match Box::pin(self.commands.load(&current.key)).await? {
                Some(stored) if stored.version == current.version => {}
                stored => return Ok(SaveAttempt::Conflict(stored)),
            }
        }
        Ok(SaveAttempt::Done(Committed::at(match self.settings.confirms(current) {
            // The save would have confirmed the cookie as well.
            true => self.refresh(current.clone()).await,
            false => current.clone(),
        })))
    }
}
