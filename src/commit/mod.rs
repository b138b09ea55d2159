//! The end of a request at the store: its plan is carried out.
//!
//! - `create`: a new session is written: alone, or before or after others are ended.
//! - `replay`: the attempts of a save. After a conflict, the changes are replayed on the newer record.
//! - `save`: one of these attempts.
//! - `refresh`: the idle timeout is extended, and the session's cookie is confirmed.
//! - `end`: sessions are ended.
//! - `enrol`: a session is listed in its principal's directory before its cookie is sent, and its
//!   reservation is released if the sign-in fails.

mod create;
mod end;
mod enrol;
mod refresh;
mod replay;
mod save;

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::clock::Millis;
use crate::commands::{Commands, Write};
use crate::directory::record::Reservation;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{self, Label};
use crate::record::authority::SecretStatus;
use crate::record::changes::Changes;
use crate::record::codec;
use crate::record::delta::View;
use crate::record::flash;
use crate::record::header::{Authentication, Header, Update};
use crate::record::loaded::{Loaded, Lost, Record};
use crate::record::plan::Plan;
use crate::record::sign_in::Mark;
use crate::record::token::{SessionId, Token};
use crate::record::transaction::Transaction;
use crate::record::values::{Entry, Items, Values};
use crate::settings::Settings;
use crate::store::{StoreKey, Stored};

/// What is decided on the stored record, as by the function of a `transact`. What it comes to is kept by
/// the caller of the commit.
pub(crate) trait Decision {
    /// Called again where another request wrote first; what it came to before does not count then.
    fn decide(&mut self, values: &mut Transaction<'_>) -> Result<()>;

    /// Whether it needs no session: with one that is lost there is nothing to decide, and no error.
    fn is_optional(&self) -> bool {
        false
    }

    /// Nothing of what it came to is stored.
    fn give_up(&mut self) {}
}

impl<F: FnMut(&mut Transaction<'_>) -> Result<()>> Decision for F {
    fn decide(&mut self, values: &mut Transaction<'_>) -> Result<()> {
        self(values)
    }
}

pub(crate) type Decide<'a> = dyn Decision + Send + 'a;

/// What a commit led to.
#[derive(Debug, Default)]
pub(crate) struct Committed {
    /// The session as it stands now.
    pub(crate) loaded: Option<Arc<Loaded>>,
    /// A Set-Cookie header for it.
    pub(crate) cookie: Option<String>,
    /// The changes were not kept, or not all of them.
    pub(crate) failure: Option<Error>,
    /// The session that the request has lost. No cookie may be sent then, as it could overwrite a newer
    /// one in the browser.
    pub(crate) lost: Option<Lost>,
}

impl Committed {
    /// The session stands like this; without a cookie.
    fn at(loaded: Arc<Loaded>) -> Self {
        Self { loaded: Some(loaded), ..Self::default() }
    }

    /// The request has lost its session; without a cookie.
    fn lost(session: Arc<Loaded>, is_gone: bool) -> Self {
        Self { lost: Some(Lost { session, is_gone }), ..Self::default() }
    }

    /// The write was applied, and `stored` was read after it, perhaps with later writes of other requests.
    fn as_read_back(saved: &Loaded, stored: Stored, cookie: Option<String>) -> Result<Self> {
        let newer = saved.newer(stored)?;
        Ok(match newer.secret_status() {
            SecretStatus::Current => Self { cookie, ..Self::at(newer) },
            // Another request has replaced the secret, so a cookie with this one would be invalid.
            SecretStatus::Rotated => Self::at(newer),
            SecretStatus::Superseded => Self::lost(newer, false),
        })
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
    /// The view of the changes could not be computed on `loaded`.
    pub(crate) is_stale: bool,
    pub(crate) is_activity: bool,
    /// The response has been sent. What was read for it is too old to decide on.
    pub(crate) outlived: bool,
    /// The request presented a cookie of our name that the browser may forget.
    pub(crate) is_removable: bool,
    pub(crate) decide: Option<&'d mut Decide<'d>>,
    pub(crate) enrolment: EnrolmentProgress,
    /// For how many messages for the next page the record of the newest attempt had no room.
    pub(crate) messages_dropped: AtomicUsize,
}

/// How far a sign-in has come with its principal's directory.
#[derive(Debug, Default)]
pub(crate) struct EnrolmentProgress {
    /// The mark that the directory had when a session was listed, or when it was read for a new one: `None`
    /// before that, `Some(None)` if nothing was ever revoked there.
    mark: Option<Option<Mark>>,
    /// The session that was listed.
    listed: Option<SessionId>,
    /// The reservation that this sign-in made for it. `None` if the session was listed before.
    reservation: Option<Reservation>,
    /// Sessions of the same principal that end with this sign-in.
    replacing: Vec<SessionId>,
    /// The principal and the key of its directory, which costs a digest.
    key: OnceLock<(Arc<str>, StoreKey)>,
}

impl<'a> Commit<'a, '_> {
    /// A commit of a request that has done nothing so far.
    pub(crate) fn new(
        settings: &'a Settings,
        commands: Commands<'a>,
        loaded: Option<Arc<Loaded>>,
    ) -> Self {
        Self {
            settings,
            commands,
            loaded,
            lost: None,
            others: Vec::new(),
            changes: Changes::default(),
            is_stale: false,
            is_activity: false,
            outlived: false,
            is_removable: false,
            decide: None,
            enrolment: EnrolmentProgress::default(),
            messages_dropped: AtomicUsize::new(0),
        }
    }
}

impl Commit<'_, '_> {
    /// Carries out a plan. An error means that the session is as it was before, unless its outcome is
    /// unknown. Of several sessions that were to end, some may have ended then; sessions that were revoked
    /// to make room for the sign-in stay revoked.
    pub(crate) async fn run(&mut self, plan: Plan) -> Result<Committed> {
        let outcome = self.carry_out(plan).await;
        let has_failed = outcome.as_ref().map_or(true, |committed| committed.failure.is_some());
        if has_failed && self.changes.signing_in().is_some() {
            Box::pin(self.release_reservation()).await;
        }
        self.report(outcome.as_ref().err(), has_failed);
        outcome
    }

    /// Tells of an outcome that is not known, and of messages that the record which was written had no room
    /// for.
    fn report(&self, error: Option<&Error>, has_failed: bool) {
        if let Some(error) = error.filter(|error| error.kind() == ErrorKind::OutcomeUnknown) {
            event::outcome_unknown(error);
        }
        let dropped = self.messages_dropped.load(Relaxed);
        if !has_failed && dropped > 0 {
            event::flash_dropped(dropped);
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
            (Plan::Forget, _) => Ok(self.cookie_removed()),
            (Plan::Gone, _) => Ok(self.changes_rejected()),
            (Plan::Create, _) => Box::pin(self.create_alone()).await,
            (Plan::Delete, _) => Box::pin(self.sign_out()).await,
            (Plan::DeleteThenCreate, _) => Box::pin(self.end_then_create()).await,
            (Plan::CreateThenDelete, _) => Box::pin(self.create_then_end()).await,
        }
    }

    /// There is no session any more, and the browser is told to forget its cookie.
    fn cookie_removed(&self) -> Committed {
        Committed { cookie: Some(self.settings.cookie.removal()), ..Committed::default() }
    }

    /// The request has lost the session that it presented. No cookie is sent, for the browser may hold a
    /// newer one.
    fn known_session_lost(&self, is_gone: bool) -> Committed {
        let session = self.known_sessions().next().cloned();
        let lost = session.map(|session| Lost { session, is_gone });
        Committed { lost, ..Committed::default() }
    }

    /// The changes cannot be made: the session is gone, or this request's secret does not allow them.
    fn changes_rejected(&self) -> Committed {
        let is_gone = self.lost.as_ref().is_some_and(|lost| lost.is_gone);
        let failure = Some(self.settings.gone(""));
        if let Some(session) = self.known_sessions().next() {
            event::gone(session.id, self.settings.who_of(session));
        }
        Committed { failure, ..self.known_session_lost(is_gone) }
    }

    /// The session that the request goes on with, the one that it has lost, and the others whose tokens it
    /// presented.
    fn known_sessions(&self) -> impl Iterator<Item = &Arc<Loaded>> {
        let lost = self.lost.as_ref().map(|lost| &lost.session);
        self.loaded.iter().chain(lost).chain(&self.others)
    }

    /// Tells of the sign-in of this request, if there is one.
    fn report_signed_in(&self, id: SessionId) {
        if let Some(sign_in) = self.changes.signing_in() {
            let who = self.settings.who(Some(&sign_in.principal));
            let reason = if sign_in.is_step_up { "step_up" } else { "sign_in" };
            event::signed_in(id, who, Label(sign_in.label.as_deref()), reason);
        }
    }

    /// Whether the session has expired, even if the store still holds it.
    fn is_expired(&self, session: &Loaded) -> bool {
        session.record.header.clocks.expired(self.settings.now())
    }

    /// Runs the function of a `transact`, if this commit has one.
    fn transact(&mut self, base: &Values, view: &mut View) -> Result<()> {
        let max_record = self.settings.options.max_record;
        match &mut self.decide {
            Some(decision) => decision.decide(&mut Transaction::new(base, view, max_record)),
            None => Ok(()),
        }
    }

    /// The changes are not kept, and neither is what was decided. Returns whether that is an error: always
    /// where it `matters`, and not where these are only messages for the next page.
    fn is_loss(&mut self, matters: bool) -> bool {
        let is_decided = self.decide.as_mut().is_some_and(|decision| {
            decision.give_up();
            !decision.is_optional()
        });
        if matters || is_decided {
            return true;
        }
        let messages = self.changes.delta.messages();
        if messages > 0 {
            event::flash_dropped(messages);
        }
        false
    }

    /// What this request does to the header of its session, or of a new one.
    fn header_update<'b>(&'b self, current: Option<&Loaded>, plain: Update<'b>) -> Update<'b> {
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
            // A request with a replaced secret does not keep the session alive.
            is_activity: self.is_activity && is_own,
            ..plain
        }
    }

    /// The record as it will stand in the store, and the write that puts it there.
    fn encode(
        &self,
        header: Header,
        view: &View,
        base: &Values,
        now: Millis,
    ) -> Result<(Record, Write)> {
        let max = self.settings.options.max_record;
        let mut items = view.items(base);
        let (mut bytes, mut index) = codec::encode_indexed(&header, &items);
        let mut dropped = 0;
        if bytes.len() > max
            && let Some(shorter) = self.without_messages(&header, &mut items)
        {
            (bytes, index, dropped) = shorter;
        }
        self.messages_dropped.store(dropped, Relaxed);
        let size = bytes.len();
        let Some(index) = index.filter(|_| size <= max) else {
            let context = format!("{size} bytes, and at most {max} are allowed");
            return Err(Error::new(ErrorKind::TooLarge, context));
        };
        let write =
            Write { bytes: bytes.clone(), ttl: header.clocks.ttl(now), tag: header.tags.newest() };
        Ok((Record { header, values: Values::new(bytes, index) }, write))
    }

    /// The record without the messages for the next page, if it is not too large then: the values of the
    /// application come first. And how many messages these are.
    fn without_messages(
        &self,
        header: &Header,
        items: &mut Items<'_>,
    ) -> Option<(Bytes, Option<Vec<Entry>>, usize)> {
        let place = items.iter().position(|item| item.key == flash::KEY.as_bytes())?;
        let list = items.remove(place);
        let (bytes, index) = codec::encode_indexed(header, items);
        let fits = bytes.len() <= self.settings.options.max_record;
        fits.then(|| (bytes, index, flash::messages(list.bytes).0.len()))
    }

    /// The Set-Cookie header that brings a token to the browser.
    fn cookie(&self, header: &Header, token: &Token, now: Millis) -> String {
        let persistence = header.effective_lifetime(&self.settings.options.lifetime).persistence();
        self.settings.cookie.set(token, header.clocks.cookie_age(now), persistence)
    }
}
