//! The end of a request at the store: the plan's commands, and what becomes of a commit that meets a
//! newer record.

use std::sync::Arc;

use crate::clock::Millis;
use crate::commands::{Commands, Settled, Write, pause};
use crate::directory::DirectoryHandle;
use crate::directory::record::{Enrolment, Purpose, Reservation};
use crate::error::{Error, ErrorKind, Result};
use crate::event;
use crate::key_lock::KeyGuard;
use crate::limits::{NEW_IDS, PROMPT_ATTEMPTS};
use crate::record::authority::{Authority, SecretStatus};
use crate::record::changes::Changes;
use crate::record::delta::View;
use crate::record::header::{Authentication, Header, Update};
use crate::record::loaded::{Loaded, Lost, Record};
use crate::record::plan::{EndReason, Merge, Plan};
use crate::record::sign_in::{Mark, SIGN_IN_WINDOW};
use crate::record::tag::Tags;
use crate::record::token::{Secret, SessionId, Token};
use crate::record::transaction::Transaction;
use crate::record::values::Values;
use crate::record::{codec, plan};
use crate::settings::{DirectoryMode, Settings};
use crate::store::{Created, Deleted, Stored};

/// The function of a `transact`, with its result kept by the commands.
pub(crate) type Decide<'a> = dyn FnMut(&mut Transaction<'_>) -> Result<()> + Send + 'a;

/// What a commit led to.
#[derive(Debug, Default)]
pub(crate) struct Committed {
    /// The session as it stands now.
    pub(crate) loaded: Option<Arc<Loaded>>,
    /// A Set-Cookie header for it.
    pub(crate) cookie: Option<String>,
    /// The changes were not kept, or not all of them.
    pub(crate) failure: Option<Error>,
    /// The session that the request has lost: no cookie may leave that could overwrite a newer one.
    pub(crate) lost: Option<Lost>,
}

impl Committed {
    fn at(loaded: Arc<Loaded>) -> Self {
        Self { loaded: Some(loaded), ..Self::default() }
    }

    fn lost(session: Arc<Loaded>, is_gone: bool) -> Self {
        Self { lost: Some(Lost { session, is_gone }), ..Self::default() }
    }
}

/// One commit.
pub(crate) struct Commit<'a, 'd> {
    pub(crate) settings: &'a Settings,
    pub(crate) commands: Commands<'a>,
    pub(crate) loaded: Option<Arc<Loaded>>,
    /// The session that the request has lost before.
    pub(crate) lost: Option<Lost>,
    /// The sessions of a request with several valid tokens.
    pub(crate) others: Vec<Arc<Loaded>>,
    pub(crate) changes: Changes,
    pub(crate) is_activity: bool,
    /// The response has left: what was read for it is too old to decide on.
    pub(crate) outlived: bool,
    /// A cookie of our name came along that the browser may forget.
    pub(crate) is_removable: bool,
    pub(crate) decide: Option<&'d mut Decide<'d>>,
    pub(crate) enrolment: EnrolmentProgress,
}

/// How far a sign-in has come with its principal's directory.
#[derive(Debug, Default)]
pub(crate) struct EnrolmentProgress {
    /// The mark it found there, once it was entered.
    found: Option<Option<Mark>>,
    /// The session that was entered.
    entered: Option<SessionId>,
    /// The reservation that it was given there, if it has none of before.
    reservation: Option<Reservation>,
    /// A session that it made and cannot be sure of.
    abandoned: Option<Reservation>,
    /// Sessions that end with it.
    replacing: Vec<SessionId>,
}

/// What became of a session that was to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EndOutcome {
    Ended,
    /// It was no more.
    Missing,
    /// It is somebody else's by now, or has a secret that the request does not have.
    Spared,
}

/// What became of an extension of the idle timeout.
enum Refreshed {
    Done(Arc<Loaded>),
    /// Another request wrote first.
    Overtaken(Arc<Loaded>),
    Gone,
}

/// How far one attempt of a save came.
enum Attempt {
    Done(Committed),
    /// Another request wrote first; this stands there now.
    Overtaken(Option<Stored>),
}

impl<'a> Commit<'a, '_> {
    /// Carries out a plan. An error means that the session is as it was before; who had to go for its sign-in
    /// has gone.
    pub(crate) async fn run(mut self, plan: Plan) -> Result<Committed> {
        let outcome = self.carry_out(plan).await;
        let has_failed = outcome.as_ref().map_or(true, |committed| committed.failure.is_some());
        if has_failed && self.changes.signing_in().is_some() {
            Box::pin(self.release_reservations()).await;
        }
        outcome
    }

    /// Gives back the places of sessions that could not be written, as far as the store lets it.
    async fn release_reservations(&mut self) {
        let places = [self.enrolment.reservation, self.enrolment.abandoned];
        let Some(principal) = self.changes.principal() else { return };
        let directory = DirectoryHandle::new(self.settings, self.commands, principal);
        for reservation in places.into_iter().flatten() {
            let _ = directory.release(reservation).await;
        }
    }

    async fn carry_out(&mut self, plan: Plan) -> Result<Committed> {
        match (plan, self.loaded.clone()) {
            (Plan::Refresh, Some(loaded)) => {
                Ok(Committed::at(Box::pin(self.refresh(loaded)).await))
            }
            (Plan::Save { .. }, Some(loaded)) => self.save(loaded).await,
            (Plan::Nothing | Plan::Refresh | Plan::Save { .. }, loaded) => {
                Ok(Committed { loaded, lost: self.lost.take(), ..Committed::default() })
            }
            (Plan::Forget, _) => Ok(self.removed()),
            (Plan::Gone, _) => Ok(self.refused()),
            (Plan::Create, _) => Box::pin(self.create_alone()).await,
            (Plan::Delete, _) => Ok(match Box::pin(self.end_all()).await? {
                EndOutcome::Ended => self.removed(),
                // The browser may hold a newer cookie.
                ended => self.lost(ended == EndOutcome::Missing),
            }),
            (Plan::DeleteThenCreate, _) => Box::pin(self.end_then_create()).await,
            (Plan::CreateThenDelete, _) => Box::pin(self.create_then_end()).await,
        }
    }

    fn removed(&self) -> Committed {
        Committed { cookie: Some(self.settings.cookie.removal()), ..Committed::default() }
    }

    /// The session that came along is lost, and nothing is sent.
    fn lost(&self, is_gone: bool) -> Committed {
        let session = self.presented_sessions().next().cloned();
        let lost = session.map(|session| Lost { session, is_gone });
        Committed { lost, ..Committed::default() }
    }

    /// The changes cannot be made: not with this request's secret, or not any more.
    fn refused(&self) -> Committed {
        let is_gone = self.lost.as_ref().is_some_and(|lost| lost.is_gone);
        let failure = Some(self.settings.gone(""));
        if let Some(session) = self.presented_sessions().next() {
            event::gone(session.id);
        }
        Committed { failure, ..self.lost(is_gone) }
    }

    /// The sessions whose tokens came with the request.
    fn presented_sessions(&self) -> impl Iterator<Item = &Arc<Loaded>> {
        let lost = self.lost.as_ref().map(|lost| &lost.session);
        self.loaded.iter().chain(lost).chain(&self.others)
    }

    /// The values of a new session, on those of one that it takes over.
    fn initial_values(&mut self, base: &Values) -> Result<View> {
        let mut view = self.changes.delta.replay(base, true)?;
        self.decide(base, &mut view)?;
        Ok(view)
    }

    /// A new session that no other one ends for.
    async fn create_alone(&mut self) -> Result<Committed> {
        // Values are taken from a session, and this request has none.
        let nothing = Values::default();
        self.changes.delta.check_taken(&nothing)?;
        let view = self.initial_values(&nothing)?;
        let created = self.write_new(&view, &nothing).await?;
        self.report_created(&created);
        if created.loaded.is_none() && self.changes.is_ended() && self.is_removable {
            // Nothing came after the end.
            return Ok(self.removed());
        }
        Ok(created)
    }

    /// What came along ends, then a new session begins.
    async fn end_then_create(&mut self) -> Result<Committed> {
        // A decision that fails must leave everything as it is.
        let nothing = Values::default();
        let view = self.initial_values(&nothing)?;
        let ended = self.end_all().await?;
        if ended != EndOutcome::Ended {
            let is_change = self.decide.is_some() || view.differs_from(&nothing);
            let failure = if is_change { self.refused().failure } else { None };
            return Ok(Committed { failure, ..self.lost(ended == EndOutcome::Missing) });
        }
        // From here on the old session is no more, whatever becomes of the new one.
        match self.write_new(&view, &nothing).await {
            Ok(Committed { loaded: None, .. }) => Ok(self.removed()),
            Ok(created) => {
                self.report_created(&created);
                Ok(created)
            }
            Err(error) => Ok(Committed { failure: Some(error), ..self.removed() }),
        }
    }

    /// A session begins by a sign-in, and only then what came along ends: a sign-in that cannot be
    /// written changes nothing. One beside which another session cannot be ended fails, and is taken back: the next
    /// request would bring both tokens and be anonymous, or the account would have a session too many.
    async fn create_then_end(&mut self) -> Result<Committed> {
        let is_sign_out = self.changes.is_ended();
        let ending: Vec<_> = match is_sign_out {
            true => self.presented_sessions().cloned().collect(),
            // A session that this request has lost is not its own to end.
            false => self.loaded.iter().chain(&self.others).cloned().collect(),
        };
        // Others are not in the account's directory, or counted there if they have got there since.
        let is_listed = |session: &&Arc<Loaded>| {
            session.record.header.principal.as_ref() == self.changes.principal()
        };
        self.enrolment.replacing =
            ending.iter().filter(is_listed).map(|session| session.id).collect();
        // An anonymous session that this request has made beside those that came along goes on in it.
        let base = match &self.loaded {
            Some(loaded) if !is_sign_out && loaded.record.header.principal.is_none() => {
                loaded.record.values.clone()
            }
            _ => Values::default(),
        };
        let view = self.initial_values(&base)?;
        let created = self.write_new(&view, &base).await?;
        let reason = if is_sign_out { EndReason::SignOut } else { EndReason::SignIn };
        let several = !self.others.is_empty();
        for session in ending {
            let outcome = match self.end(&session, reason).await {
                // The browser would send its newer token as well; or it was not counted.
                Ok(EndOutcome::Spared)
                    if several || self.enrolment.replacing.contains(&session.id) =>
                {
                    Err(Error::new(ErrorKind::Contended, "the session was changed meanwhile"))
                }
                outcome => outcome,
            };
            if let Err(error) = outcome {
                // Without its cookie the new session is nobody's.
                if let Some(created) = &created.loaded {
                    let _ = self.commands.delete(&created.key, Some(created.version)).await;
                }
                return Err(error);
            }
        }
        self.report_created(&created);
        Ok(created)
    }

    /// A new session with these values, of which nobody is told yet; none where there is nothing to
    /// store.
    async fn write_new(&mut self, view: &View, base: &Values) -> Result<Committed> {
        if self.changes.principal().is_none() && !view.differs_from(base) {
            return Ok(Committed::default());
        }
        let mut lost_answer = None;
        for _ in 0..NEW_IDS {
            let entropy = &*self.settings.entropy;
            let token = Token { id: SessionId::random(entropy)?, secret: Secret::random(entropy)? };
            let now = self.settings.now();
            let tag = self.settings.tag()?;
            let digest = token.secret.digest(self.settings.cookie.name());
            let header = Header::new(digest, now, &self.settings.options.lifetime, tag);
            // Nothing came before the first write.
            let header = header.updated(
                &self.update(None, Update::plain(now, tag, &self.settings.options.lifetime)),
            );
            let header = Header { tags: Tags::first(tag), ..header };
            let (record, write) = self.encode(&header, view, base, now)?;
            if self.needs_enrolment(None, &header) {
                self.enrol(token.id, None, &header).await?;
            }
            let key = self.settings.key(token.id);
            match self.commands.create(&key, &write).await {
                Ok(Created::Created(version)) => {
                    let cookie = Some(self.cookie(&header, &token, now));
                    let authority = Authority::of(&header, false);
                    let loaded = Loaded { id: token.id, key, record, version, authority };
                    return Ok(Committed { cookie, ..Committed::at(Arc::new(loaded)) });
                }
                // By whoever has ended it, or by this command's own copy.
                Ok(Created::Occupied) => {
                    self.enrolment.abandoned = self.enrolment.reservation.take()
                }
                // If it was stored after all, it is nobody's: its secret was given to no one.
                Err(error) if error.kind() == ErrorKind::OutcomeUnknown => {
                    lost_answer = Some(error);
                    self.enrolment.abandoned = self.enrolment.reservation.take();
                }
                Err(error) => return Err(error),
            }
        }
        Err(match lost_answer {
            Some(error) => Error::unavailable(error),
            // Ended before they were written, for others that sign in at the same time.
            None if self.enrolment.entered.is_some() => Error::new(ErrorKind::Contended, ""),
            None => Error::new(ErrorKind::Randomness, "every new session id is taken"),
        })
    }

    fn report_created(&self, created: &Committed) {
        if let Some(loaded) = &created.loaded {
            event::created(loaded.id);
            if self.changes.principal().is_some() {
                event::signed_in(loaded.id);
            }
        }
    }

    /// Writes the changes to the session, on whatever it has become, as far as this request may.
    async fn save(&mut self, loaded: Arc<Loaded>) -> Result<Committed> {
        let mut secret = None;
        let mut current = Some(loaded.clone());
        let mut last = loaded.clone();
        let mut guard = None;
        // Others may have kept alive what is over as it was read; and after the response what was read is
        // too old to decide on.
        let is_over = loaded.record.header.clocks.expired(self.settings.now());
        if self.outlived || is_over {
            current = Box::pin(self.reread_listed(&loaded)).await?;
        }
        for attempt in 0..self.settings.options.commit_attempts {
            let now = self.settings.now();
            // The record decides, whatever the store still holds.
            let living = current.take().filter(|is| !is.record.header.clocks.expired(now));
            let secret_status = living.as_ref().map(|living| living.secret_status());
            let header = &living.as_ref().unwrap_or(&last).record.header;
            let requested = self.changes.requested(header);
            let new_secret = match plan::merge(secret_status, requested, self.outlived) {
                Merge::Write { new_secret: true } if self.outlived => {
                    return Err(Error::new(ErrorKind::HeadSent, ""));
                }
                Merge::Write { new_secret } => new_secret,
                Merge::StartFresh => return Box::pin(self.create_alone()).await,
                Merge::Gone { fails } => return Ok(self.gone(loaded, living.is_none(), fails)),
            };
            let Some(living) = living else { return Ok(self.gone(loaded, true, false)) };
            last = living;
            if new_secret && secret.is_none() {
                secret = Some(Secret::random(&*self.settings.entropy)?);
            }
            let secret = secret.filter(|_| new_secret);
            let is_fresh = attempt > 0 || self.outlived || is_over;
            let stored = match self.attempt(&last, secret, is_fresh).await {
                Ok(Attempt::Done(committed)) => return Ok(committed),
                Ok(Attempt::Overtaken(stored)) => stored,
                // Strict mode: the session is not listed any more.
                Err(error) if error.kind() == ErrorKind::Gone => {
                    return Ok(self.gone(loaded, true, requested.steps_up || requested.supersedes));
                }
                Err(error) => return Err(error),
            };
            // Rare, so the future of every commit need not hold it.
            let stored = Box::pin(self.overtaken(&last, stored, &mut guard, attempt)).await?;
            current = stored.map(|stored| last.newer(stored)).transpose()?;
        }
        Err(Error::new(ErrorKind::Contended, ""))
    }

    /// The session as it stands now; in strict mode only while it is listed.
    async fn reread_listed(&mut self, loaded: &Arc<Loaded>) -> Result<Option<Arc<Loaded>>> {
        let Some(newer) = loaded.reread(self.commands).await? else { return Ok(None) };
        Ok(self.settings.is_listed(self.commands, &newer).await?.then_some(newer))
    }

    /// One attempt to write the changes to the session as it was read. `is_fresh`: it was read for this
    /// commit.
    async fn attempt(
        &mut self,
        current: &Arc<Loaded>,
        secret: Option<Secret>,
        is_fresh: bool,
    ) -> Result<Attempt> {
        let base = &current.record;
        self.changes.delta.check_taken(&base.values)?;
        let only_surviving = self.changes.only_surviving(&base.header);
        let mut view = self.changes.delta.replay(&base.values, only_surviving)?;
        self.decide(&base.values, &mut view)?;
        if secret.is_none() && !view.differs_from(&base.values) {
            return self.skip_write(current, is_fresh).await;
        }
        let now = self.settings.now();
        let tag = self.settings.tag()?;
        let digest = secret.map(|secret| secret.digest(self.settings.cookie.name()));
        let update = Update { digest, ..Update::plain(now, tag, &self.settings.options.lifetime) };
        let header = base.header.updated(&self.update(Some(current), update));
        let (record, write) = self.encode(&header, &view, &base.values, now)?;
        let cookie =
            secret.map(|secret| self.cookie(&header, &Token { id: current.id, secret }, now));
        if self.needs_enrolment(Some(&base.header), &header) {
            Box::pin(self.enrol(current.id, Some(&base.header), &header)).await?;
        }
        let settled = self.commands.replace(&current.key, &write, current.base()).await?;
        let version = match &settled {
            Settled::Applied(version) => *version,
            Settled::Followed(stored) => stored.version,
            Settled::Missing => return Ok(Attempt::Overtaken(None)),
            Settled::Conflict(stored) => {
                event::conflict(current.id);
                return Ok(Attempt::Overtaken(stored.clone()));
            }
        };
        match (self.changes.signing_in(), secret) {
            (Some(_), _) => event::signed_in(current.id),
            (None, Some(_)) => event::rotated(current.id),
            (None, None) => {}
        }
        let saved = match secret {
            Some(_) => current.renewed(record, version),
            None => current.at(record, version),
        };
        Ok(Attempt::Done(match settled {
            Settled::Followed(stored) => followed(&saved, stored, cookie)?,
            _ => Committed { cookie, ..Committed::at(saved) },
        }))
    }

    /// The changes change nothing. No write will tell whether that was decided on the newest record, so
    /// where it matters it is read.
    async fn skip_write(&mut self, current: &Arc<Loaded>, is_fresh: bool) -> Result<Attempt> {
        if self.settings.confirms(current) {
            // With the write that is not needed.
            return Ok(Attempt::Done(Committed::at(self.refresh(current.clone()).await)));
        }
        if is_fresh || self.decide.is_none() {
            return Ok(Attempt::Done(Committed::at(current.clone())));
        }
        Ok(match Box::pin(self.commands.load(&current.key)).await? {
            Some(stored) if stored.version == current.version => {
                Attempt::Done(Committed::at(current.clone()))
            }
            stored => Attempt::Overtaken(stored),
        })
    }

    /// Another request wrote first: what to go on from, after those of this process that have met a
    /// conflict on the same session before.
    async fn overtaken(
        &mut self,
        current: &Loaded,
        stored: Option<Stored>,
        guard: &mut Option<KeyGuard<'a>>,
        attempt: u32,
    ) -> Result<Option<Stored>> {
        let is_stale = match guard {
            None => {
                let own = self.commands.key_guard(self.settings, &current.key).await;
                guard.insert(own).waited()
            }
            Some(_) if attempt < PROMPT_ATTEMPTS => false,
            Some(_) => {
                pause(&self.commands, &*self.settings.entropy, attempt).await?;
                true
            }
        };
        match stored {
            Some(stored) if !is_stale => Ok(Some(stored)),
            _ => self.commands.load(&current.key).await,
        }
    }

    /// The session is no more, or not this request's any more: it is not brought back, and no cookie of any
    /// kind is sent.
    fn gone(&self, loaded: Arc<Loaded>, is_gone: bool, fails: bool) -> Committed {
        let base = self.changes.base_values(Some(&loaded));
        let fails = fails || self.decide.is_some();
        let failure = (fails || self.changes.delta.view().differs_from(&base)).then(|| {
            event::gone(loaded.id);
            self.settings.gone("")
        });
        Committed { failure, ..Committed::lost(loaded, is_gone) }
    }

    /// Extends the idle timeout, and notes that the session's cookie came back. Whatever happens to it, the
    /// request goes on: somebody else has written, or the next request will try again.
    async fn refresh(&mut self, loaded: Arc<Loaded>) -> Arc<Loaded> {
        let mut current = loaded;
        for _ in 0..PROMPT_ATTEMPTS {
            match self.try_refresh(&current).await {
                Ok(Refreshed::Done(refreshed)) => return refreshed,
                // Another write extends the idle timeout, and confirms nothing unless it is of a cookie.
                Ok(Refreshed::Overtaken(newer)) if self.settings.confirms(&newer) => {
                    current = newer
                }
                Ok(Refreshed::Overtaken(_) | Refreshed::Gone) => return current,
                Err(error) => {
                    event::refresh_failed(current.id, &error);
                    return current;
                }
            }
        }
        current
    }

    async fn try_refresh(&mut self, loaded: &Arc<Loaded>) -> Result<Refreshed> {
        let now = self.settings.now();
        if loaded.record.header.clocks.expired(now) {
            return Ok(Refreshed::Gone);
        }
        let update = Update {
            is_unconfirmed: loaded.authority.is_presented.then_some(false),
            is_activity: self.is_activity,
            ..Update::plain(now, self.settings.tag()?, &self.settings.options.lifetime)
        };
        let header = loaded.record.header.updated(&update);
        let values = &loaded.record.values;
        let (record, write) = self.encode(&header, &View::default(), values, now)?;
        Ok(match self.commands.replace(&loaded.key, &write, loaded.base()).await? {
            Settled::Applied(version) => Refreshed::Done(loaded.at(record, version)),
            Settled::Followed(stored) => {
                let saved = followed(&loaded.at(record, stored.version), stored, None)?;
                saved.loaded.map_or(Refreshed::Gone, Refreshed::Done)
            }
            Settled::Conflict(Some(stored)) => Refreshed::Overtaken(loaded.newer(stored)?),
            Settled::Conflict(None) if self.settings.confirms(loaded) => {
                loaded.reread(self.commands).await?.map_or(Refreshed::Gone, Refreshed::Overtaken)
            }
            Settled::Conflict(None) | Settled::Missing => Refreshed::Gone,
        })
    }

    /// Signs out of every session that came along.
    async fn end_all(&mut self) -> Result<EndOutcome> {
        let ending: Vec<_> = self.presented_sessions().cloned().collect();
        let mut all = EndOutcome::Missing;
        for session in ending {
            match (self.end(&session, EndReason::SignOut).await?, &all) {
                // What was spared may have a newer cookie in the browser, which must stay.
                (EndOutcome::Missing, _) | (_, EndOutcome::Spared) => {}
                (outcome, _) => all = outcome,
            }
        }
        Ok(all)
    }

    /// Ends a session, if it may.
    async fn end(&mut self, loaded: &Loaded, reason: EndReason) -> Result<EndOutcome> {
        let outcome = self.try_end(loaded, reason).await?;
        if outcome != EndOutcome::Ended {
            // A value that was taken from it is still there, or was taken by who ended it.
            self.check_taken_from(loaded, &Values::default())?;
        }
        Ok(outcome)
    }

    /// Values are taken from the session of the request, and not from others that came along.
    fn check_taken_from(&self, loaded: &Loaded, values: &Values) -> Result<()> {
        match self.others.iter().any(|other| other.id == loaded.id) {
            true => Ok(()),
            false => self.changes.delta.check_taken(values),
        }
    }

    async fn try_end(&mut self, loaded: &Loaded, reason: EndReason) -> Result<EndOutcome> {
        let spares = |header: &Header| !plan::ends(reason, &loaded.authority, header);
        if spares(&loaded.record.header) {
            return Ok(EndOutcome::Spared);
        }
        let mut newer;
        let mut current = loaded;
        for attempt in 0..self.settings.options.commit_attempts {
            self.check_taken_from(loaded, &current.record.values)?;
            match self.commands.delete(&current.key, Some(current.version)).await? {
                (Deleted::Deleted, _) => {
                    if current.record.header.clocks.expired(self.settings.now()) {
                        // What is over is no more, whatever the store still holds.
                        return Ok(EndOutcome::Missing);
                    }
                    event::signed_out(current.id);
                    return Ok(EndOutcome::Ended);
                }
                (Deleted::Missing, true) => {
                    event::signed_out(current.id);
                    // By this request, or by another that took the same value.
                    return match self.check_taken_from(loaded, &Values::default()) {
                        Ok(()) => Ok(EndOutcome::Ended),
                        Err(_) => Err(Error::new(
                            ErrorKind::OutcomeUnknown,
                            "the session ended, by this request or by another that took the same value",
                        )),
                    };
                }
                (Deleted::Missing, false) => return Ok(EndOutcome::Missing),
                (Deleted::Conflict, _) => event::conflict(current.id),
            }
            let Some(stands) = loaded.reread(self.commands).await? else {
                return Ok(EndOutcome::Missing);
            };
            newer = stands;
            if newer.record.header.clocks.expired(self.settings.now()) {
                return Ok(EndOutcome::Missing);
            }
            if spares(&newer.record.header) {
                return Ok(EndOutcome::Spared);
            }
            current = &newer;
            if attempt >= PROMPT_ATTEMPTS {
                pause(&self.commands, &*self.settings.entropy, attempt).await?;
            }
        }
        Err(Error::new(ErrorKind::Contended, ""))
    }

    /// Whether the directory has to know of a write beforehand: of a sign-in, and of a session that
    /// will live longer than it knows.
    fn needs_enrolment(&self, base: Option<&Header>, header: &Header) -> bool {
        let deadline = header.clocks.absolute_deadline;
        self.settings.options.directory != DirectoryMode::Off
            && header.principal.is_some()
            && (self.changes.signing_in().is_some()
                || base.is_none_or(|base| base.clocks.absolute_deadline < deadline))
    }

    /// Puts the session on its principal's roll.
    async fn enrol(&mut self, id: SessionId, base: Option<&Header>, header: &Header) -> Result<()> {
        let Some(principal) = &header.principal else { return Ok(()) };
        let EnrolmentProgress { found, entered, reservation, abandoned, .. } = self.enrolment;
        let sign_in = self.changes.signing_in();
        let begun = sign_in.and_then(|sign_in| sign_in.begun);
        if begun.is_some_and(|begun| header.clocks.last_seen.since(begun.at) > SIGN_IN_WINDOW) {
            return Err(Error::new(ErrorKind::Revoked, "the sign-in took too long"));
        }
        let signed_in = header.clocks.authenticated.unwrap_or(header.clocks.created);
        let is_new_sign_in = matches!(self.changes.proof(), Authentication::SignIn(_));
        let is_strict = self.settings.options.directory == DirectoryMode::Strict;
        let enrolment_request = Enrolment {
            id,
            signed_in,
            purpose: match sign_in {
                None => Purpose::LongerLife,
                Some(sign_in) if sign_in.is_step_up => Purpose::StepUp,
                Some(_) if entered == Some(id) => Purpose::Again,
                Some(_) => Purpose::SignIn,
            },
            life: header.clocks.absolute_deadline.since(signed_in),
            label: sign_in.and_then(|sign_in| sign_in.label.clone()),
            replacing: self.enrolment.replacing.clone(),
            must_be_listed: is_strict && !is_new_sign_in,
        };
        let directory = DirectoryHandle::new(self.settings, self.commands, principal);
        let expected = found.or(begun.map(|begun| begun.mark)).filter(|_| sign_in.is_some());
        let abandoned = abandoned.map(|reservation| reservation.id);
        let (mark, is_new) = directory.enrol(&enrolment_request, expected, abandoned).await?;
        let earlier = reservation.filter(|_| entered == Some(id));
        // One on which somebody was signed in before was listed before, or lives unlisted.
        let was_anonymous = base.is_none_or(|base| base.principal.is_none());
        let is_own = was_anonymous && (is_new || earlier.is_some());
        // The roll keeps the moment of the first attempt.
        let signed_in =
            earlier.filter(|_| !is_new).map_or(signed_in, |reservation| reservation.signed_in);
        let enrolment = &mut self.enrolment;
        enrolment.reservation =
            is_own.then(|| Reservation { id, signed_in, tag: header.tags.newest() });
        (enrolment.found, enrolment.entered, enrolment.abandoned) = (Some(mark), Some(id), None);
        Ok(())
    }

    fn decide(&mut self, base: &Values, view: &mut View) -> Result<()> {
        let max_record = self.settings.options.max_record;
        match &mut self.decide {
            Some(decide) => decide(&mut Transaction::new(base, view, max_record)),
            None => Ok(()),
        }
    }

    /// What this request does to the header of its session, or of a new one.
    fn update<'b>(&'b self, current: Option<&Loaded>, plain: Update<'b>) -> Update<'b> {
        let changes = &self.changes;
        let is_own = current.is_none_or(|current| current.secret_status() == SecretStatus::Current);
        let is_back = |current: &Loaded| current.authority.is_presented && is_own;
        let is_unconfirmed = match changes.proof() {
            Authentication::SignIn(_) => Some(self.settings.options.concurrent().rejects()),
            _ => current.is_some_and(is_back).then_some(false),
        };
        Update {
            lifetime: changes.lifetime(),
            end_by: changes.end_by(),
            proof: changes.proof(),
            supersedes: changes.supersedes(),
            is_unconfirmed,
            // With a void secret the session is not used.
            is_activity: self.is_activity && is_own,
            ..plain
        }
    }

    /// The record as it will stand in the store, ready to be sent.
    fn encode(
        &self,
        header: &Header,
        view: &View,
        base: &Values,
        now: Millis,
    ) -> Result<(Record, Write)> {
        let values = view.values(base);
        let (bytes, index) = codec::encode_indexed(header, &values);
        let (size, max) = (bytes.len(), self.settings.options.max_record);
        let Some(index) = index.filter(|_| size <= max) else {
            let context = format!("{size} bytes, and at most {max} are allowed");
            return Err(Error::new(ErrorKind::TooLarge, context));
        };
        let record = Record { header: header.clone(), values: Values::new(bytes.clone(), index) };
        let tag = header.tags.newest();
        Ok((record, Write { bytes, ttl: header.clocks.ttl(now), tag }))
    }

    fn cookie(&self, header: &Header, token: &Token, now: Millis) -> String {
        let persistence = header.lifetime(&self.settings.options.lifetime).persistence();
        self.settings.cookie.set(token, header.clocks.cookie_age(now), persistence)
    }
}

/// A write that was settled as applied, with others on top of it: what this request has of it.
fn followed(saved: &Loaded, stored: Stored, cookie: Option<String>) -> Result<Committed> {
    let newer = saved.newer(stored)?;
    Ok(match newer.secret_status() {
        SecretStatus::Current => Committed { cookie, ..Committed::at(newer) },
        // A secret that was replaced meanwhile is void, and its cookie with it.
        SecretStatus::Rotated => Committed::at(newer),
        SecretStatus::Superseded => Committed::lost(newer, false),
    })
}
