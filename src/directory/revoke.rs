//! Revocation: sessions are marked in the directory record, then deleted, then removed from the record.
//!
//! A listed session's sign-in may not have been written yet. Before the session counts as ended, that write
//! must be prevented. An anonymous session is written again, so that the write fails with a conflict. If the
//! session is missing, a tombstone is written under its id, so that a sign-in that lists its session before it
//! creates the record cannot create it afterwards.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::future::{join, join_all};
use tokio::time::timeout;

use crate::clock::Millis;
use crate::commands::{Settled, Write, pause};
use crate::directory::probe::EntryState;
use crate::directory::record::{DirectoryRecord, Generation, SKEW};
use crate::directory::{DirectoryHandle, DirectorySnapshot, DirectoryWrite};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{self, Actor, Label};
use crate::limits::{PROMPT_ATTEMPTS, TOMBSTONE_TTL};
use crate::record::codec as session_codec;
use crate::record::header::Update;
use crate::record::loaded::Loaded;
use crate::record::sign_in::Mark;
use crate::record::token::SessionId;
use crate::settings::DirectoryMode;
use crate::store::{Created, Deleted};

/// What a revocation did.
#[derive(Debug, Default)]
pub(crate) struct Revocation {
    /// The sessions that were alive and have been ended.
    pub(crate) ended: HashSet<SessionId>,
    /// Whether the directory is known to have listed all sessions.
    pub(crate) is_complete: bool,
    /// Whether there was a directory before the revocation.
    pub(crate) was_found: bool,
}

/// Which sessions to revoke.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RevocationTarget {
    One(SessionId),
    AllExcept(Option<SessionId>),
}

/// Why sessions are ended.
#[derive(Debug, Clone, Copy)]
pub(super) enum RevocationReason {
    Target(RevocationTarget),
    /// To make room for a sign-in.
    Limit,
    /// To make room for a sign-in. No request had used the sessions' cookies.
    Unconfirmed,
    /// An earlier revocation marked the sessions but could not delete them.
    Unfinished,
}

impl RevocationReason {
    /// Returns the reason's name in events.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Target(RevocationTarget::One(_)) => "revoked",
            Self::Target(RevocationTarget::AllExcept(None)) => "all",
            Self::Target(RevocationTarget::AllExcept(Some(_))) => "others",
            Self::Limit => "limit",
            Self::Unconfirmed => "unconfirmed",
            Self::Unfinished => "unfinished",
        }
    }
}

impl DirectoryHandle<'_> {
    /// Revokes sessions. With [`RevocationTarget::AllExcept`], every sign-in already under way fails as well.
    pub(crate) async fn revoke(&self, target: RevocationTarget) -> Result<Revocation> {
        let (mut guard, mut was_found) = (None, None);
        for attempt in 0..self.settings.options.commit_attempts {
            let DirectorySnapshot { mut record, stored } = self.read().await?;
            // A later attempt may find the record that an earlier one has written.
            let was_found = *was_found.get_or_insert(stored.is_some());
            let now = self.settings.now();
            match target {
                RevocationTarget::One(id) => {
                    if record.mark_revoked(|listed| listed == id).is_empty() {
                        return Ok(Revocation::default());
                    }
                }
                RevocationTarget::AllExcept(kept) => {
                    self.mark_all_except(kept, &mut record, now).await?;
                    if stored.is_none() {
                        record.incomplete_until =
                            Some(now.plus(self.settings.options.lifetime.absolute() + SKEW));
                    }
                }
            }
            let is_complete = record.incomplete_until.is_none_or(|until| until <= now);
            let revoked: HashSet<_> = record.revoked().into_iter().collect();
            if let DirectoryWrite::Written(written) = self.write(stored.as_ref(), record).await? {
                let (ended, failure) = self.carry_out(written, &revoked, target).await;
                if let RevocationTarget::AllExcept(_) = target {
                    // Emitted even after a failure: the directory has been written, so its next use ends the
                    // remaining sessions.
                    let (actor, reason) =
                        (Actor(self.actor), RevocationReason::Target(target).as_str());
                    event::all_revoked(self.who(), actor, ended.len(), was_found, reason);
                }
                return failure.map_or(Ok(Revocation { ended, is_complete, was_found }), Err);
            }
            self.back_off(&mut guard, attempt).await?;
        }
        Err(Error::new(ErrorKind::Contended, ""))
    }

    /// Revokes a session of this principal, even if the directory that listed it was lost. Returns whether
    /// the session was alive.
    pub(crate) async fn revoke_owned(&self, id: SessionId) -> Result<bool> {
        let target = RevocationTarget::One(id);
        if self.revoke(target).await?.ended.contains(&id) {
            return Ok(true);
        }
        match self.load_owned(id).await? {
            Some(unlisted) => self.delete(&unlisted, RevocationReason::Target(target), None).await,
            None => Ok(false),
        }
    }

    /// Marks all sessions except `kept` as revoked, and starts a new generation, so that every sign-in
    /// already under way fails.
    async fn mark_all_except(
        &self,
        kept: Option<SessionId>,
        record: &mut DirectoryRecord,
        now: Millis,
    ) -> Result<()> {
        if let Some(kept) = kept {
            self.check_kept(kept, record).await?;
        }
        record.mark_revoked(|listed| Some(listed) != kept);
        let mut mark = Mark::default();
        self.settings.entropy.fill(&mut mark)?;
        record.generation = Some(Generation { mark, since: now });
        Ok(())
    }

    /// Checks that the session to keep is alive. A session that was itself revoked in the meantime cannot
    /// revoke others.
    async fn check_kept(&self, kept: SessionId, record: &DirectoryRecord) -> Result<()> {
        // If the session is neither listed nor marked as revoked, it has ended, or the directory that listed
        // it was lost.
        let is_alive = record.lists(kept)
            || (self.settings.options.directory != DirectoryMode::Strict
                && !record.revoked().contains(&kept)
                && self.load_owned(kept).await?.is_some());
        if is_alive { Ok(()) } else { Err(self.settings.gone("")) }
    }

    /// Ends the revoked sessions and removes them from the record. Returns the targeted sessions that were
    /// alive, and an error if a targeted session could not be ended. The other sessions in `revoked` are left
    /// over from earlier revocations; a failure to end them is not an error.
    async fn carry_out(
        &self,
        written: DirectorySnapshot,
        revoked: &HashSet<SessionId>,
        target: RevocationTarget,
    ) -> (HashSet<SessionId>, Option<Error>) {
        let (targeted, left_over): (HashSet<SessionId>, _) = revoked
            .iter()
            .partition(|id| !matches!(target, RevocationTarget::One(only) if only != **id));
        // A failure to end one session does not stop the others.
        let (record, reason) = (&written.record, RevocationReason::Target(target));
        let ends = targeted.iter().map(async |id| (*id, self.end(*id, reason, record).await));
        let left_over = self.end_within_part(&left_over, 4, RevocationReason::Unfinished, record);
        let (results, mut ended) = join(join_all(ends), left_over).await;
        let (mut were_alive, mut failure) = (HashSet::new(), None);
        for (id, result) in results {
            match result {
                Ok(was_alive) => {
                    ended.insert(id);
                    were_alive.extend(was_alive.then_some(id));
                }
                Err(error) => failure = Some(error),
            }
        }
        self.remove_entries(written, &ended).await;
        (were_alive, failure)
    }

    /// Ends sessions within `1 / divisor` of the time left, and returns those that have certainly ended. The
    /// others stay marked as revoked. The time is limited because a sign-in must not fail when the server
    /// that holds another session is down. `record` provides the sessions' labels.
    pub(super) async fn end_within_part(
        &self,
        ids: &HashSet<SessionId>,
        divisor: u32,
        reason: RevocationReason,
        record: &DirectoryRecord,
    ) -> HashSet<SessionId> {
        let left = self.commands.time_left();
        let ends = ids.iter().map(async |id| {
            let end = timeout(left / divisor, self.end(*id, reason, record)).await;
            end.is_ok_and(|end| end.is_ok()).then_some(*id)
        });
        join_all(ends).await.into_iter().flatten().collect()
    }

    /// Removes ended sessions from the record. If the write fails, they are removed when the directory is
    /// next used.
    pub(super) async fn remove_entries(
        &self,
        snapshot: DirectorySnapshot,
        ended: &HashSet<SessionId>,
    ) {
        if !ended.is_empty() {
            let DirectorySnapshot { mut record, stored } = snapshot;
            record.remove(ended);
            let _ = self.write(stored.as_ref(), record).await;
        }
    }

    /// Ends a session, and returns whether it was alive.
    async fn end(
        &self,
        id: SessionId,
        reason: RevocationReason,
        record: &DirectoryRecord,
    ) -> Result<bool> {
        match self.prevent_creation(id).await? {
            Some(loaded) => self.delete(&loaded, reason, record.label(id)).await,
            None => Ok(false),
        }
    }

    /// Deletes a session of this principal, and returns whether it was alive.
    async fn delete(
        &self,
        session: &Loaded,
        reason: RevocationReason,
        label: Option<&str>,
    ) -> Result<bool> {
        // Deletes any version, because every later version under this id belongs to this principal as well.
        let (deleted, in_doubt) = self.commands.delete(&session.key, None).await?;
        let was_alive = deleted == Deleted::Deleted || in_doubt;
        if was_alive {
            self.report_revoked(session.id, label, reason);
        }
        Ok(was_alive)
    }

    pub(super) fn report_revoked(
        &self,
        id: SessionId,
        label: Option<&str>,
        reason: RevocationReason,
    ) {
        event::revoked(id, self.who(), Label(label), Actor(self.actor), reason.as_str());
    }

    /// Makes sure that these missing sessions have ended and can no longer be created. Returns those for
    /// which this is certain.
    pub(super) async fn ensure_ended(&self, missing: &[SessionId]) -> HashSet<SessionId> {
        let ended = missing.iter().map(async |id| {
            self.ensure_ended_unless(*id, |_| true).await.unwrap_or(false).then_some(*id)
        });
        join_all(ended).await.into_iter().flatten().collect()
    }

    /// Makes sure that a session has ended and can no longer be created. Returns `false` if the session is
    /// alive and `is_kept` returns `true` for it, or if it was written in the meantime.
    pub(super) async fn ensure_ended_unless(
        &self,
        id: SessionId,
        is_kept: impl Fn(&Loaded) -> bool,
    ) -> Result<bool> {
        let Some(loaded) = self.prevent_creation(id).await? else { return Ok(true) };
        if is_kept(&loaded) {
            return Ok(false);
        }
        let (deleted, _) = self.commands.delete(&loaded.key, Some(&loaded.stored())).await?;
        Ok(!matches!(deleted, Deleted::Conflict(_)))
    }

    /// Makes sure that no sign-in under way can still make this session one of the principal's. If the
    /// session already belongs to the principal, returns it instead.
    async fn prevent_creation(&self, id: SessionId) -> Result<Option<Arc<Loaded>>> {
        for attempt in 0..self.settings.options.commit_attempts {
            let is_prevented = match self.probe(id).await? {
                EntryState::Owned(loaded) => return Ok(Some(loaded)),
                EntryState::Foreign => true,
                EntryState::Missing => self.create_tombstone(id).await?,
                EntryState::Anonymous(loaded) => self.write_again(&loaded).await?,
            };
            if is_prevented {
                return Ok(None);
            }
            if attempt >= PROMPT_ATTEMPTS {
                pause(&self.commands, &*self.settings.entropy, attempt).await?;
            }
        }
        Err(Error::new(ErrorKind::Contended, ""))
    }

    /// Occupies the id of a missing session, so that the session cannot be created. Returns `false` if
    /// another write came first, or if the outcome of this write is unknown.
    async fn create_tombstone(&self, id: SessionId) -> Result<bool> {
        let write = self.tombstone()?;
        match self.commands.create(&self.settings.key(id), &write).await {
            Ok(Created::Created(_)) => Ok(true),
            Ok(Created::Occupied) => Ok(false),
            Err(error) if error.kind() == ErrorKind::OutcomeUnknown => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes an anonymous session again with the same content. A sign-in that has read the earlier version
    /// then runs into a conflict and enrols again. Returns `false` if another write came first.
    async fn write_again(&self, loaded: &Loaded) -> Result<bool> {
        let write = self.next_version(loaded)?;
        match self.commands.replace(&loaded.key, &write, &loaded.stored()).await? {
            Settled::Applied(_) | Settled::Followed(_) => Ok(true),
            Settled::Conflict(_) | Settled::Missing => Ok(false),
        }
    }

    /// Returns a write that occupies an id for [`TOMBSTONE_TTL`].
    fn tombstone(&self) -> Result<Write> {
        let tag = self.settings.tag()?;
        let bytes = session_codec::tombstone(tag, self.settings.now());
        Ok(Write { bytes, ttl: TOMBSTONE_TTL, tag })
    }

    /// Returns a write that stores the session again with the same content and a new tag.
    fn next_version(&self, loaded: &Loaded) -> Result<Write> {
        let (tag, now) = (self.settings.tag()?, self.settings.now());
        let update = Update::plain(now, tag, &self.settings.options.lifetime);
        let header = loaded.record.header.updated(&update);
        let values: Vec<_> = loaded.record.values.items().collect();
        let bytes = session_codec::encode_indexed(&header, &values).0;
        Ok(Write { bytes, ttl: header.clocks.ttl(now), tag })
    }
}
