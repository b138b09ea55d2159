//! Writes the changes of a request to the store by carrying out its plan.
//!
//! - `create`: writes a new session, either on its own or before or after other sessions are ended.
//! - `replay`: attempts to save until there is no conflict, up to the configured number of attempts. If
//!   another request wrote first, applies the changes again to the newer record.
//! - `save`: makes one attempt to save.
//! - `refresh`: extends the idle timeout and confirms the session's cookie.
//! - `end`: ends sessions.
//! - `enrol`: lists a session in its principal's directory before its cookie is sent, and releases the
//!   reservation if the sign-in fails.

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

/// A decision that must be made on the stored record, such as the function that is passed to `transact`. The
/// caller of the commit keeps the decision's result.
pub(crate) trait Decision {
    /// Makes the decision on these values. Called again if another request wrote first; the earlier result is
    /// discarded.
    fn decide(&mut self, values: &mut Transaction<'_>) -> Result<()>;

    /// Returns whether the commit may drop the decision without an error if the session is lost.
    fn is_optional(&self) -> bool {
        false
    }

    /// Called if the changes and the decision are lost. A decision that keeps its own result discards it
    /// here.
    fn give_up(&mut self) {}
}

impl<F: FnMut(&mut Transaction<'_>) -> Result<()>> Decision for F {
    fn decide(&mut self, values: &mut Transaction<'_>) -> Result<()> {
        self(values)
    }
}

pub(crate) type Decide<'a> = dyn Decision + Send + 'a;

/// The result of a commit.
#[derive(Debug, Default)]
pub(crate) struct Committed {
    /// The session after the commit.
    pub(crate) loaded: Option<Arc<Loaded>>,
    /// The `Set-Cookie` header to send.
    pub(crate) cookie: Option<String>,
    /// Set if changes were lost. Not set if the lost changes were only flash messages or had no effect.
    pub(crate) failure: Option<Error>,
    /// The session that the request may no longer use, if there is one. In that case no cookie is sent,
    /// because it could overwrite a newer one in the browser.
    pub(crate) lost: Option<Lost>,
}

impl Committed {
    /// Returns a result with this session and no cookie.
    fn at(loaded: Arc<Loaded>) -> Self {
        Self { loaded: Some(loaded), ..Self::default() }
    }

    /// Returns a result without a cookie, for a request that has lost its session.
    fn lost(session: Arc<Loaded>, is_gone: bool) -> Self {
        Self { lost: Some(Lost { session, is_gone }), ..Self::default() }
    }

    /// Returns the result of a write that was applied. `stored` was read after that write and may include
    /// later writes by other requests.
    fn as_read_back(saved: &Loaded, stored: Stored, cookie: Option<String>) -> Result<Self> {
        let newer = saved.newer(stored)?;
        Ok(match newer.secret_status() {
            SecretStatus::Current => Self { cookie, ..Self::at(newer) },
            // Another request has rotated the secret, so a cookie with this request's secret would be
            // invalid.
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
    /// The session that the request had lost before this commit.
    pub(crate) lost: Option<Lost>,
    /// The other sessions of a request that presented several valid tokens.
    pub(crate) others: Vec<Arc<Loaded>>,
    pub(crate) changes: Changes,
    /// Whether the view of the changes could not be computed from the record in `loaded`.
    pub(crate) is_stale: bool,
    pub(crate) is_activity: bool,
    /// Whether the response has already been sent, or the session was opened outside a request. If so, the
    /// record that was read may be too old to base a decision on.
    pub(crate) outlived: bool,
    /// Whether the request presented a session cookie that the response may remove.
    pub(crate) is_removable: bool,
    pub(crate) decide: Option<&'d mut Decide<'d>>,
    pub(crate) enrolment: EnrolmentProgress,
    /// The number of flash messages that did not fit in the record in the latest attempt.
    pub(crate) messages_dropped: AtomicUsize,
}

/// What this commit has done so far in the principal's directory.
#[derive(Debug, Default)]
pub(crate) struct EnrolmentProgress {
    /// The directory's mark when this commit listed the session or, for a new session, read the directory.
    /// `None` before that; `Some(None)` if the directory has no mark.
    mark: Option<Option<Mark>>,
    /// The session that this commit has listed.
    listed: Option<SessionId>,
    /// The reservation that this sign-in holds. `None` if the session was listed before the sign-in.
    reservation: Option<Reservation>,
    /// The sessions of the same principal that this sign-in replaces.
    replacing: Vec<SessionId>,
    /// The principal and the key of its directory. Cached because computing the key requires a digest.
    key: OnceLock<(Arc<str>, StoreKey)>,
}

impl<'a> Commit<'a, '_> {
    /// Returns a commit without changes.
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
    /// Carries out a plan.
    ///
    /// # Errors
    ///
    /// On an error the session is unchanged, unless the kind is [`ErrorKind::OutcomeUnknown`]. Two effects
    /// are not undone: if several sessions had to end, some of them may have ended, and sessions that were
    /// revoked to make room for a sign-in stay revoked.
    pub(crate) async fn run(&mut self, plan: Plan) -> Result<Committed> {
        let outcome = self.carry_out(plan).await;
        let has_failed = outcome.as_ref().map_or(true, |committed| committed.failure.is_some());
        if has_failed && self.changes.signing_in().is_some() {
            Box::pin(self.release_reservation()).await;
        }
        self.report(outcome.as_ref().err(), has_failed);
        outcome
    }

    /// Emits the events for an in-doubt write and for flash messages that did not fit in the record.
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

    /// Returns a result without a session. The response removes the cookie.
    fn cookie_removed(&self) -> Committed {
        Committed { cookie: Some(self.settings.cookie.removal()), ..Committed::default() }
    }

    /// Returns the result of a request that has lost the session it presented. No cookie is sent, because the
    /// browser may hold a newer one.
    fn known_session_lost(&self, is_gone: bool) -> Committed {
        let session = self.known_sessions().next().cloned();
        let lost = session.map(|session| Lost { session, is_gone });
        Committed { lost, ..Committed::default() }
    }

    /// Returns the result for changes that cannot be stored because the session is gone or this request's
    /// secret does not allow them.
    fn changes_rejected(&self) -> Committed {
        let is_gone = self.lost.as_ref().is_some_and(|lost| lost.is_gone);
        let failure = Some(self.settings.gone(""));
        if let Some(session) = self.known_sessions().next() {
            event::gone(session.id, self.settings.who_of(session));
        }
        Committed { failure, ..self.known_session_lost(is_gone) }
    }

    /// Returns the request's current session, the session that it has lost, and the other sessions whose
    /// tokens it presented.
    fn known_sessions(&self) -> impl Iterator<Item = &Arc<Loaded>> {
        let lost = self.lost.as_ref().map(|lost| &lost.session);
        self.loaded.iter().chain(lost).chain(&self.others)
    }

    /// Emits the event for the sign-in of this request, if there is one.
    fn report_signed_in(&self, id: SessionId) {
        if let Some(sign_in) = self.changes.signing_in() {
            let who = self.settings.who(Some(&sign_in.principal));
            let reason = if sign_in.is_step_up { "step_up" } else { "sign_in" };
            event::signed_in(id, who, Label(sign_in.label.as_deref()), reason);
        }
    }

    /// Returns whether the session has expired. The store may still hold its record.
    fn is_expired(&self, session: &Loaded) -> bool {
        session.record.header.clocks.expired(self.settings.now())
    }

    /// Runs the commit's decision, such as the function passed to `transact`, if there is one.
    fn transact(&mut self, base: &Values, view: &mut View) -> Result<()> {
        let max_record = self.settings.options.max_record;
        match &mut self.decide {
            Some(decision) => decision.decide(&mut Transaction::new(base, view, max_record)),
            None => Ok(()),
        }
    }

    /// Records that the changes and the decision are lost. Returns whether that is an error: it is if
    /// `matters` is set, or if the commit has a decision that is not optional. The loss of flash messages
    /// only causes an event.
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

    /// Returns what this request changes in the header of its session, or of a new one.
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

    /// Returns the new record and the write that stores it.
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
            let context = format!("{size} bytes, but the limit is {max} bytes");
            return Err(Error::new(ErrorKind::TooLarge, context));
        };
        let write =
            Write { bytes: bytes.clone(), ttl: header.clocks.ttl(now), tag: header.tags.newest() };
        Ok((Record { header, values: Values::new(bytes, index) }, write))
    }

    /// Returns the record without flash messages, and the number of messages dropped, if the record then
    /// fits. The application's values take precedence over flash messages.
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

    /// Returns the `Set-Cookie` header for a token.
    fn cookie(&self, header: &Header, token: &Token, now: Millis) -> String {
        let persistence = header.effective_lifetime(&self.settings.options.lifetime).persistence();
        self.settings.cookie.set(token, header.clocks.cookie_age(now), persistence)
    }
}
