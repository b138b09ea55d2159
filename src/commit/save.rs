//! The changes of a request are written to its session.

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

/// How one attempt of a save went.
pub(super) enum SaveAttempt {
    /// It is done.
    Done(Committed),
    /// Another request wrote first. `None`: the record is gone, or must be read again.
    Conflict(Option<Stored>),
}

/// A save that is ready to be sent.
struct PreparedSave {
    record: Record,
    write: Write,
    /// A Set-Cookie header, if the session gets a new secret.
    cookie: Option<String>,
}

impl Commit<'_, '_> {
    /// Writes the changes to the session, or to what other requests have made of it, as far as this
    /// request may.
    pub(super) async fn save(&mut self, loaded: Arc<Loaded>) -> Result<Committed> {
        // Another request may have kept alive a session that has expired as it was read. After the
        // response was sent, what was read for it is too old to decide on.
        let is_reread = self.is_expired(&loaded) || self.outlived;
        let current = match is_reread {
            true => Box::pin(self.reread_listed(&loaded)).await?,
            false => Some(loaded.clone()),
        };
        self.replay_until_saved(loaded, current, is_reread).await
    }

    /// The session as it stands now. In strict mode only if it is still listed.
    async fn reread_listed(&mut self, loaded: &Arc<Loaded>) -> Result<Option<Arc<Loaded>>> {
        let Some(newer) = loaded.reread(self.commands).await? else { return Ok(None) };
        Ok(self.settings.is_listed(self.commands, &newer).await?.then_some(newer))
    }

    /// One attempt to write the changes to the session as it was read. `is_fresh`: it was read for this
    /// commit.
    pub(super) async fn try_save(
        &mut self,
        current: &Arc<Loaded>,
        secret: Option<Secret>,
        is_fresh: bool,
    ) -> Result<SaveAttempt> {
        let view = self.replay_changes_on(&current.record)?;
        if secret.is_none() && !view.differs_from(&current.record.values) {
            return self.skip_write(current, is_fresh).await;
        }
        let prepared = self.prepare_save(current, secret, &view)?;
        let (base, header) = (&current.record.header, &prepared.record.header);
        if self.needs_enrolment(Some(base), header) {
            Box::pin(self.enrol(current.id, Some(base), header)).await?;
        }
        let settled = self.commands.replace(&current.key, &prepared.write, current.base()).await?;
        self.settle_save(current, prepared, settled)
    }

    /// The record that the save writes, and the cookie for its secret if that is a new one.
    fn prepare_save(
        &self,
        current: &Loaded,
        secret: Option<Secret>,
        view: &View,
    ) -> Result<PreparedSave> {
        let Record { header, values } = &current.record;
        let now = self.settings.now();
        let tag = self.settings.tag()?;
        let digest = secret.map(|secret| secret.digest(self.settings.cookie.name()));
        let update = Update { digest, ..Update::plain(now, tag, &self.settings.options.lifetime) };
        let header = header.updated(&self.header_update(Some(current), update));
        let (record, write) = self.encode(header, view, values, now)?;
        let cookie = secret
            .map(|secret| self.cookie(&record.header, &Token { id: current.id, secret }, now));
        Ok(PreparedSave { record, write, cookie })
    }

    /// What the store's answer makes of the attempt.
    fn settle_save(
        &self,
        current: &Loaded,
        prepared: PreparedSave,
        settled: Settled,
    ) -> Result<SaveAttempt> {
        let (version, later) = match settled {
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
        Ok(SaveAttempt::Done(match later {
            Some(stored) => Committed::with_later_writes(&saved, stored, cookie)?,
            None => Committed { cookie, ..Committed::at(saved) },
        }))
    }

    fn report_saved(&self, session: &Loaded, has_new_secret: bool) {
        match self.changes.signing_in() {
            Some(_) => event::signed_in(session.id),
            None if has_new_secret => event::rotated(session.id),
            None => {}
        }
    }

    /// The changes leave the record as it is, so nothing is written. No conflict can show then that the
    /// record was not the newest one, so it is read again if a `transact` has decided on it.
    async fn skip_write(&mut self, current: &Arc<Loaded>, is_fresh: bool) -> Result<SaveAttempt> {
        if self.settings.confirms(current) {
            // The save would have confirmed the cookie as well.
            return Ok(SaveAttempt::Done(Committed::at(self.refresh(current.clone()).await)));
        }
        if is_fresh || self.decide.is_none() {
            return Ok(SaveAttempt::Done(Committed::at(current.clone())));
        }
        Ok(match Box::pin(self.commands.load(&current.key)).await? {
            Some(stored) if stored.version == current.version => {
                SaveAttempt::Done(Committed::at(current.clone()))
            }
            stored => SaveAttempt::Conflict(stored),
        })
    }
}
