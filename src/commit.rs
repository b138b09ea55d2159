//! The end of a request at the store: the plan's commands, and what becomes of a commit that meets a
//! newer record.

use std::sync::Arc;

use tokio::time::timeout_at;

use crate::config::{DirectoryMode, Settings};
use crate::directory::{Application, Keeper, Mark, Place, Purpose, SIGN_IN_LIFE};
use crate::error::{Error, ErrorKind, Result};
use crate::event;
use crate::limits::{NEW_IDS, PROMPT_ATTEMPTS};
use crate::queue::Turn;
use crate::session::changes::{Changes, Loaded};
use crate::session::codec::{self, Undecodable};
use crate::session::delta::View;
use crate::session::plan::{self, Merge, Plan};
use crate::session::record::{Header, Record, Tags, Update, Values};
use crate::session::token::{Secret, SecretDigest, Token};
use crate::session::{Millis, SessionId, Tag, Transaction};
use crate::settle::{Base, Caller, Settled, Write, pause};
use crate::store::{Created, Deleted, StoreKey, Stored};

impl Loaded {
    pub(crate) fn base(&self) -> Base {
        Base { version: self.version, tag: self.record.header.tags.newest() }
    }

    /// The same session from a newer read.
    pub(crate) fn newer(&self, stored: Stored) -> Result<Arc<Self>> {
        Ok(self.at(decode(&self.key, stored.bytes)?, stored.version))
    }
}

/// Decodes a session's record and reports one that can not be.
pub(crate) fn decode(key: &StoreKey, bytes: bytes::Bytes) -> Result<Record> {
    decoded(key, codec::decode(bytes))
}

/// What was decoded, or the error of what could not be, reported.
pub(crate) fn decoded<T>(key: &StoreKey, decoded: Result<T, Undecodable>) -> Result<T> {
    decoded.map_err(|failure| match failure {
        Undecodable::Corrupt => {
            event::corrupt_record(key);
            Error::new(ErrorKind::Corrupt, "")
        }
        Undecodable::NewerFormat => {
            event::newer_format(key);
            Error::new(ErrorKind::NewerFormat, "")
        }
    })
}

/// The function of a `transact`, with its result kept by the caller.
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
    /// The session is gone or somebody signed in anew: no cookie may leave that could overwrite
    /// theirs.
    pub(crate) lost: bool,
}

impl Committed {
    fn at(loaded: Arc<Loaded>) -> Self {
        Self { loaded: Some(loaded), ..Self::default() }
    }

    fn lost() -> Self {
        Self { lost: true, ..Self::default() }
    }
}

/// One commit.
pub(crate) struct Commit<'a, 'd> {
    pub(crate) settings: &'a Settings,
    pub(crate) caller: Caller<'a>,
    pub(crate) loaded: Option<Arc<Loaded>>,
    /// Other sessions whose valid tokens came with the same request.
    pub(crate) others: Vec<Arc<Loaded>>,
    pub(crate) changes: Changes,
    pub(crate) is_activity: bool,
    /// A token of our name came with the request, valid or not.
    pub(crate) is_presented: bool,
    pub(crate) decide: Option<&'d mut Decide<'d>>,
    pub(crate) enrolment: Enrolling,
    /// The session that a sign-in has to do without.
    pub(crate) before: Option<Arc<Loaded>>,
}

/// How far a sign-in has come with its principal's directory.
#[derive(Debug, Default)]
pub(crate) struct Enrolling {
    /// The mark it found there, once it was entered.
    found: Option<Option<Mark>>,
    /// The session that was entered.
    entered: Option<SessionId>,
    /// The place that it was given there, if it has none of before.
    place: Option<Place>,
    /// A session that it made and can not be sure of.
    abandoned: Option<Place>,
    /// A session that ends with it.
    instead_of: Option<SessionId>,
}

impl<'a> Commit<'a, '_> {
    /// Carries out a plan. An error means that the session is as it was before; who had to go for its sign-in
    /// has gone.
    pub(crate) async fn run(mut self, plan: Plan) -> Result<Committed> {
        let outcome = self.carry_out(plan).await;
        let has_failed = outcome.as_ref().map_or(true, |committed| committed.failure.is_some());
        if has_failed && self.changes.signing_in().is_some() {
            Box::pin(self.give_back()).await;
        }
        outcome
    }

    /// Gives back the places of sessions that could not be written, as far as the store lets it.
    async fn give_back(&mut self) {
        let Enrolling { place, abandoned, .. } = self.enrolment;
        let Some(principal) = self.changes.principal() else { return };
        let keeper = Keeper::new(self.settings, self.caller, principal);
        for place in place.into_iter().chain(abandoned) {
            let _ = keeper.give_back(place).await;
        }
    }

    async fn carry_out(&mut self, plan: Plan) -> Result<Committed> {
        if self.changes.is_ended() {
            for other in std::mem::take(&mut self.others) {
                Box::pin(self.end(&other)).await?;
            }
        }
        let Some(loaded) = self.loaded.take() else {
            return match plan {
                Plan::Create => {
                    // Values are taken from a session; this request has lost it.
                    self.changes.delta.check_taken(&Values::default())?;
                    match Box::pin(self.create()).await? {
                        // Nothing came after the end.
                        Committed { loaded: None, .. }
                            if self.changes.is_ended() && self.is_presented =>
                        {
                            Ok(self.removed())
                        }
                        created => Ok(created),
                    }
                }
                Plan::Forget => Ok(self.removed()),
                Plan::Gone => {
                    Ok(Committed { failure: Some(self.settings.gone("")), ..Committed::lost() })
                }
                _ => Ok(Committed::default()),
            };
        };
        match plan {
            Plan::Nothing | Plan::Forget | Plan::Gone | Plan::Create => Ok(Committed::at(loaded)),
            Plan::Refresh => Ok(Committed::at(Box::pin(self.refresh(loaded)).await)),
            Plan::Save { new_secret } => self.save(loaded, new_secret).await,
            Plan::Delete => Ok(match Box::pin(self.end(&loaded)).await? {
                true => self.removed(),
                // Somebody else signed in on it: their session, and their cookie.
                false => Committed::lost(),
            }),
            Plan::DeleteThenCreate => {
                // A decision that fails must leave everything as it is.
                let nothing = Values::default();
                let mut view = self.changes.delta.replay(&nothing, false)?;
                self.decide(&nothing, &mut view)?;
                if !Box::pin(self.end(&loaded)).await? {
                    return Ok(self.gone(&loaded));
                }
                // From here on the old session is no more, whatever becomes of the new one.
                match Box::pin(self.create()).await {
                    Ok(Committed { loaded: None, .. }) => Ok(self.removed()),
                    Ok(created) => Ok(created),
                    Err(error) => Ok(Committed { failure: Some(error), ..self.removed() }),
                }
            }
            Plan::CreateThenDelete => {
                self.enrolment.instead_of = Some(loaded.id);
                let created = Box::pin(self.create()).await?;
                if let Err(error) = Box::pin(self.end(&loaded)).await {
                    // Better nobody than two: without its cookie the new session is nobody's.
                    if let Some(created) = &created.loaded {
                        let _ = self.caller.delete(&created.key, Some(created.version)).await;
                    }
                    return Err(error);
                }
                Ok(created)
            }
        }
    }

    fn removed(&self) -> Committed {
        Committed { cookie: Some(self.settings.cookie.removal()), ..Committed::default() }
    }

    async fn create(&mut self) -> Result<Committed> {
        let nothing = Values::default();
        let mut lost_answer = None;
        for _ in 0..NEW_IDS {
            let mut view = self.changes.delta.replay(&nothing, false)?;
            self.decide(&nothing, &mut view)?;
            if self.changes.principal().is_none() && !view.differs_from(&nothing) {
                return Ok(Committed::default());
            }
            let entropy = &*self.settings.entropy;
            let token = Token { id: SessionId::random(entropy)?, secret: Secret::random(entropy)? };
            let now = self.settings.now();
            let tag = self.settings.tag()?;
            let header = Header::new(token.secret.digest(), now, &self.settings.lifetime, tag);
            let header = Header {
                // Nothing came before the first write.
                tags: Tags::first(tag),
                ..self.as_before(header).updated(&self.update(now, tag, None))
            };
            let (record, write) = self.encode(&header, &view, &nothing, now)?;
            if self.enrols(None, &header) {
                self.enrol(token.id, None, &header).await?;
            }
            let key = self.settings.key(token.id);
            match self.caller.create(&key, &write).await {
                Ok(Created::Created(version)) => {
                    event::created(token.id);
                    if self.changes.principal().is_some() {
                        event::signed_in(token.id);
                    }
                    let cookie = Some(self.cookie(&header, &token, now));
                    let loaded = Arc::new(Loaded { id: token.id, key, record, version });
                    return Ok(Committed { cookie, ..Committed::at(loaded) });
                }
                // By whoever has ended it, or by this command's own copy.
                Ok(Created::Occupied) => self.enrolment.abandoned = self.enrolment.place.take(),
                // If it was stored after all, it is nobody's: its secret was given to no one.
                Err(error) if error.kind() == ErrorKind::OutcomeUnknown => {
                    lost_answer = Some(error);
                    self.enrolment.abandoned = self.enrolment.place.take();
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

    async fn save(&mut self, loaded: Arc<Loaded>, new_secret: bool) -> Result<Committed> {
        let settings = self.settings;
        let signing_in = self.changes.signing_in().is_some();
        let is_step_up = self.changes.signing_in().is_some_and(|sign_in| sign_in.is_step_up);
        let mut secret = if new_secret { Some(Secret::random(&*settings.entropy)?) } else { None };
        let mut current = loaded.clone();
        let mut is_fresh = false;
        let mut turn = None;
        for attempt in 0..self.settings.commit_attempts {
            let base = &current.record;
            let now = settings.now();
            let stored = if base.header.clocks.expired(now) {
                // The record decides, whatever the store still holds.
                None
            } else {
                self.changes.delta.check_taken(&base.values)?;
                let only_surviving = self.changes.only_surviving(&base.header);
                let mut view = self.changes.delta.replay(&base.values, only_surviving)?;
                self.decide(&base.values, &mut view)?;
                if secret.is_none() && !view.differs_from(&base.values) {
                    if self.decide.is_none() || is_fresh {
                        return Ok(Committed::at(current));
                    }
                    // No write will tell whether the decision was made on the newest record.
                    match Box::pin(self.caller.load(&current.key)).await? {
                        Some(stored) if stored.version == current.version => {
                            return Ok(Committed::at(current));
                        }
                        stored => stored,
                    }
                } else {
                    let tag = self.settings.tag()?;
                    let digest = secret.map(|secret| secret.digest());
                    let header = base.header.updated(&self.update(now, tag, digest));
                    let (record, write) = self.encode(&header, &view, &base.values, now)?;
                    let cookie = secret
                        .map(|secret| self.cookie(&header, &Token { id: current.id, secret }, now));
                    if self.enrols(Some(&base.header), &header) {
                        match Box::pin(self.enrol(current.id, Some(&base.header), &header)).await {
                            Err(error) if error.kind() == ErrorKind::Gone => {
                                return Ok(self.gone(&loaded));
                            }
                            enrolled => enrolled?,
                        }
                    }
                    let told = || match (signing_in, secret) {
                        (true, _) => event::signed_in(current.id),
                        (false, Some(_)) => event::rotated(current.id),
                        (false, None) => {}
                    };
                    match self.caller.replace(&current.key, &write, current.base()).await? {
                        Settled::Applied(version) => {
                            told();
                            let saved = current.at(record, version);
                            return Ok(Committed { cookie, ..Committed::at(saved) });
                        }
                        Settled::Followed(stored) => {
                            told();
                            return Ok(followed(&header, current.newer(stored)?, cookie));
                        }
                        Settled::Missing => None,
                        Settled::Conflict(stored) => {
                            // Rare, so the future of every commit need not hold it.
                            Box::pin(self.overtaken(&current, stored, &mut turn, attempt)).await?
                        }
                    }
                }
            };
            is_fresh = true;
            let newer = stored.map(|stored| current.newer(stored)).transpose()?;
            let newer = newer.filter(|newer| !newer.record.header.clocks.expired(settings.now()));
            let merge = match &newer {
                Some(newer) => plan::merge(&loaded.record.header, &newer.record.header, signing_in),
                // Who is signed in already proves it on the session, and that is no more.
                None if signing_in && !is_step_up => Merge::StartFresh,
                None => Merge::Gone,
            };
            match (merge, newer) {
                (Merge::Replay { keep_secret }, Some(newer)) => {
                    if keep_secret && self.changes.changes_age() {
                        // Its cookie would make the other request's void.
                        return Err(Error::new(ErrorKind::Contended, "the secret was changed"));
                    }
                    secret = secret.filter(|_| !keep_secret);
                    current = newer;
                }
                (Merge::StartFresh, newer) => {
                    self.before = newer;
                    self.changes.delta.check_taken(&Values::default())?;
                    return match Box::pin(self.create()).await {
                        Err(error) if error.kind() == ErrorKind::Gone => Ok(self.gone(&loaded)),
                        created => created,
                    };
                }
                (_, _) => return Ok(self.gone(&loaded)),
            }
        }
        Err(Error::new(ErrorKind::Contended, ""))
    }

    /// Another request wrote first: what to go on from, after those of this process that have met a
    /// conflict on the same session before.
    async fn overtaken(
        &mut self,
        current: &Loaded,
        stored: Option<Stored>,
        turn: &mut Option<Turn<'a>>,
        attempt: u32,
    ) -> Result<Option<Stored>> {
        event::conflict(current.id);
        let is_stale = match turn {
            None => turn.insert(self.turn(&current.key).await?).waited(),
            Some(_) if attempt < PROMPT_ATTEMPTS => false,
            Some(_) => {
                pause(&self.caller, &*self.settings.entropy, attempt).await?;
                true
            }
        };
        match stored {
            Some(stored) if !is_stale => Ok(Some(stored)),
            _ => self.caller.load(&current.key).await,
        }
    }

    /// Waits for the commits of the same session in this process that met a conflict before.
    async fn turn(&mut self, key: &StoreKey) -> Result<Turn<'a>> {
        let turn = timeout_at(self.caller.deadline(), self.settings.queues.wait(key)).await;
        turn.map_err(|_| {
            Error::new(ErrorKind::Contended, "too many requests change this session at once")
        })
    }

    /// The session is no more: it is not brought back, and no cookie of any kind is sent.
    fn gone(&self, loaded: &Loaded) -> Committed {
        let base = self.changes.base_values(Some(loaded));
        let nothing_lost = self.decide.is_none()
            && self.changes.signing_in().is_none()
            && !self.changes.delta.view().differs_from(&base);
        let failure = (!nothing_lost).then(|| {
            event::gone(loaded.id);
            self.settings.gone("")
        });
        Committed { failure, ..Committed::lost() }
    }

    /// Extends the idle timeout. Whatever happens to it, the request goes on: somebody else has
    /// written, or the next request will try again.
    async fn refresh(&mut self, loaded: Arc<Loaded>) -> Arc<Loaded> {
        match self.try_refresh(&loaded).await {
            Ok(Some(refreshed)) => refreshed,
            Ok(None) => loaded,
            Err(error) => {
                event::refresh_failed(loaded.id, &error);
                loaded
            }
        }
    }

    async fn try_refresh(&mut self, loaded: &Loaded) -> Result<Option<Arc<Loaded>>> {
        let now = self.settings.now();
        if loaded.record.header.clocks.expired(now) {
            return Ok(None);
        }
        let tag = self.settings.tag()?;
        let header = loaded.record.header.updated(&self.update(now, tag, None));
        let values = &loaded.record.values;
        let (record, write) = self.encode(&header, &View::default(), values, now)?;
        Ok(match self.caller.replace(&loaded.key, &write, loaded.base()).await? {
            Settled::Applied(version) => Some(loaded.at(record, version)),
            Settled::Followed(stored) => followed(&header, loaded.newer(stored)?, None).loaded,
            Settled::Conflict(_) | Settled::Missing => None,
        })
    }

    /// Ends a session; false where it has become somebody else's.
    async fn end(&mut self, loaded: &Loaded) -> Result<bool> {
        let mut version = loaded.version;
        for attempt in 0..self.settings.commit_attempts {
            match self.caller.delete(&loaded.key, Some(version)).await? {
                (Deleted::Deleted, _) => {
                    event::signed_out(loaded.id);
                    return Ok(true);
                }
                (Deleted::Missing, in_doubt) => {
                    if in_doubt {
                        event::signed_out(loaded.id);
                    }
                    return self.already_ended(in_doubt);
                }
                (Deleted::Conflict, _) => {}
            }
            event::conflict(loaded.id);
            let Some(stored) = self.caller.load(&loaded.key).await? else {
                return self.already_ended(false);
            };
            let newer = loaded.newer(stored)?;
            if !plan::ends(&loaded.record.header, &newer.record.header) {
                return Ok(false);
            }
            self.changes.delta.check_taken(&newer.record.values)?;
            version = newer.version;
            if attempt >= PROMPT_ATTEMPTS {
                pause(&self.caller, &*self.settings.entropy, attempt).await?;
            }
        }
        Err(Error::new(ErrorKind::Contended, ""))
    }

    /// The session was ended before, or by a command whose answer was lost: fine, unless one of its
    /// values was handed out.
    fn already_ended(&self, in_doubt: bool) -> Result<bool> {
        let taken = self.changes.delta.check_taken(&Values::default());
        match taken {
            Err(_) if in_doubt => Err(Error::new(
                ErrorKind::OutcomeUnknown,
                "the session ended, by this request or by another that took the same value",
            )),
            taken => taken.map(|()| true),
        }
    }

    /// A new session that ends when the one before it would have, where that was the same person's.
    fn as_before(&self, new: Header) -> Header {
        let before = self.before.as_ref().map(|before| &before.record.header);
        match before.filter(|before| before.principal.as_ref() == self.changes.principal()) {
            Some(before) => Header { end_by: before.end_by, ..new },
            None => new,
        }
    }

    /// Whether the directory has to know of a write beforehand: of a sign-in, and of a session that
    /// will live longer than it knows.
    fn enrols(&self, base: Option<&Header>, header: &Header) -> bool {
        let deadline = header.clocks.absolute_deadline;
        self.settings.directory != DirectoryMode::Off
            && header.principal.is_some()
            && (self.changes.signing_in().is_some()
                || base.is_none_or(|base| base.clocks.absolute_deadline < deadline))
    }

    /// Puts the session on its principal's roll.
    async fn enrol(&mut self, id: SessionId, base: Option<&Header>, header: &Header) -> Result<()> {
        let Some(principal) = &header.principal else { return Ok(()) };
        let Enrolling { found, entered, place, abandoned, instead_of } = self.enrolment;
        let sign_in = self.changes.signing_in();
        let begun = sign_in.and_then(|sign_in| sign_in.begun);
        if begun.is_some_and(|begun| header.clocks.last_seen.since(begun.at) > SIGN_IN_LIFE) {
            return Err(Error::new(ErrorKind::Revoked, "the sign-in took too long"));
        }
        let signed_in = header.clocks.authenticated.unwrap_or(header.clocks.created);
        let is_new_sign_in = sign_in.is_some_and(|sign_in| !sign_in.is_step_up);
        let application = Application {
            id,
            signed_in,
            purpose: match sign_in {
                None => Purpose::LongerLife,
                Some(_) if entered == Some(id) => Purpose::Again,
                Some(_) => Purpose::SignIn,
            },
            deadline: header.clocks.absolute_deadline,
            label: sign_in.and_then(|sign_in| sign_in.label.clone()),
            instead_of,
            goes_on_from: (self.settings.directory == DirectoryMode::Strict && !is_new_sign_in)
                .then(|| self.before.as_ref().map_or(id, |before| before.id)),
        };
        let keeper = Keeper::new(self.settings, self.caller, principal);
        let expected = found.or(begun.map(|begun| begun.mark)).filter(|_| sign_in.is_some());
        let abandoned = abandoned.map(|place| place.id);
        let (mark, is_new) = keeper.enrol(&application, expected, abandoned).await?;
        let earlier = place.filter(|_| entered == Some(id));
        // One on which somebody was signed in before was listed before, or lives unlisted.
        let was_anonymous = base.is_none_or(|base| base.principal.is_none());
        let is_own = was_anonymous && (is_new || earlier.is_some());
        // The roll keeps the moment of the first attempt.
        let signed_in = earlier.filter(|_| !is_new).map_or(signed_in, |place| place.signed_in);
        let place = is_own.then(|| Place { id, signed_in, tag: header.tags.newest() });
        let (found, entered, abandoned) = (Some(mark), Some(id), None);
        self.enrolment = Enrolling { found, entered, place, abandoned, instead_of };
        Ok(())
    }

    fn decide(&mut self, base: &Values, view: &mut View) -> Result<()> {
        match &mut self.decide {
            Some(decide) => decide(&mut Transaction::new(base, view)),
            None => Ok(()),
        }
    }

    fn update<'b>(&'b self, now: Millis, tag: Tag, digest: Option<SecretDigest>) -> Update<'b> {
        Update {
            now,
            tag,
            configured: &self.settings.lifetime,
            digest,
            lifetime: self.changes.lifetime(),
            end_by: self.changes.end_by(),
            sign_in: self.changes.principal(),
            is_activity: self.is_activity,
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
        let (size, max) = (bytes.len(), self.settings.max_record);
        let Some(index) = index.filter(|_| size <= max) else {
            let context = format!("{size} bytes, and at most {max} are allowed");
            return Err(Error::new(ErrorKind::TooLarge, context));
        };
        let record = Record { header: header.clone(), values: Values::new(bytes.clone(), index) };
        let tag = header.tags.newest();
        Ok((record, Write { bytes, ttl: header.clocks.ttl(now), tag }))
    }

    fn cookie(&self, header: &Header, token: &Token, now: Millis) -> String {
        let persistence = header.lifetime(&self.settings.lifetime).persistence();
        self.settings.cookie.set(token, header.clocks.cookie_age(now), persistence)
    }
}

/// A write that was settled as applied, with others on top of it.
fn followed(ours: &Header, newer: Arc<Loaded>, cookie: Option<String>) -> Committed {
    if !ours.same_sign_in(&newer.record.header) {
        return Committed::lost();
    }
    // A secret that was replaced meanwhile is void.
    let cookie = cookie.filter(|_| ours.digest == newer.record.header.digest);
    Committed { cookie, ..Committed::at(newer) }
}
