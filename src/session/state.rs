//! What the handles of a request share, and the decisions on it: nothing here sends a command.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use crate::clock::Millis;
use crate::commit::Committed;
use crate::completion::Driver;
use crate::cookie::parse::Presented;
use crate::error::{Error, ErrorKind, Result};
use crate::event;
use crate::record::authority::SecretStatus;
use crate::record::changes::{Changes, RequestFacts};
use crate::record::delta::{Delta, Dropped, View};
use crate::record::key::Name;
use crate::record::loaded::{Loaded, Loss, Lost};
use crate::record::plan::{KnownSession, Plan, Refresh, Requested};
use crate::record::values::{Value, Values};
use crate::settings::{Sessions, Settings};

pub(super) struct Shared {
    pub(super) sessions: Sessions,
    pub(super) presented: Presented,
    /// One commit at a time; the others see what it led to.
    pub(super) committing: AsyncMutex<()>,
    pub(super) state: Mutex<State>,
}

pub(super) struct State {
    /// The record was looked for.
    pub(super) is_read: bool,
    pub(super) loaded: Option<Arc<Loaded>>,
    /// The session that was found gone, signed in anew or rotated: the browser may hold a newer
    /// cookie.
    pub(super) lost: Option<Lost>,
    /// Why, as it was found out.
    pub(super) loss: Option<Loss>,
    /// The sessions of a request with several valid tokens: it is anonymous, but can end them.
    pub(super) others: Vec<Arc<Loaded>>,
    /// A token had the id of a session and not its secret.
    pub(super) has_stale_token: bool,
    pub(super) changes: Changes,
    /// The commit that was begun last without waiting for another one.
    pub(super) committing: Option<Driver>,
    pub(super) used: bool,
    pub(super) is_passive: bool,
    pub(super) head_sent: bool,
    /// The cookie that is to be sent.
    pub(super) cookie: Option<String>,
    /// A commit failed in a way that no later one of this request may hide.
    pub(super) failed: Option<Error>,
    /// How many changes were dropped by such failures.
    pub(super) discarded: usize,
    /// The last change that a commit under way has.
    pub(super) under_way: Option<u64>,
    /// What was taken of the values that it is about to store.
    pub(super) taken_early: Vec<(Name, Bytes)>,
    pub(super) time_left: Duration,
    /// The view could not be computed on the record that was read last.
    pub(super) is_stale: bool,
    /// Until when the time for the store was taken off.
    pub(super) charged: Option<Instant>,
}

thread_local! {
    /// How many changes were asked for on this thread: tells whether a function that was called here has
    /// changed a session.
    static CHANGES_ON_THIS_THREAD: Cell<u64> = const { Cell::new(0) };
}

pub(super) fn changes_on_this_thread() -> u64 {
    CHANGES_ON_THIS_THREAD.get()
}

/// The error of a function that changes a session.
pub(super) fn reentrant() -> Error {
    Error::new(ErrorKind::Reentrant, "")
}

pub(super) fn head_sent() -> Error {
    Error::new(ErrorKind::HeadSent, "")
}

pub(super) fn contended() -> Error {
    Error::new(ErrorKind::Contended, "other handles kept changing the values")
}

/// The state of a session, locked. What is dropped of it may be the application's, such as the captures of
/// an `update`'s function, and is dropped only when it is unlocked again.
pub(super) struct StateGuard<'a> {
    // Fields are dropped in this order.
    state: MutexGuard<'a, State>,
    dropped: Dropped,
}

impl Deref for StateGuard<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for StateGuard<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for StateGuard<'_> {
    fn drop(&mut self) {
        self.dropped = self.state.changes.delta.take_dropped();
    }
}

/// What the end of a request depends on besides what its handles did.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) settings: &'a Settings,
    pub(super) presented: &'a Presented,
    now: Millis,
}

impl Shared {
    pub(super) fn new(sessions: Sessions, presented: Presented) -> Self {
        let state = State::new(sessions.settings().options.timeout);
        Self { sessions, presented, committing: AsyncMutex::new(()), state: Mutex::new(state) }
    }

    pub(super) fn lock(&self) -> StateGuard<'_> {
        // No code of the application runs under this lock, so a panic leaves the state whole.
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        StateGuard { state, dropped: Dropped::default() }
    }

    /// The clock is the application's, so the state must not be locked.
    pub(super) fn context(&self) -> Context<'_> {
        let settings = self.sessions.settings();
        Context { settings, presented: &self.presented, now: settings.now() }
    }
}

/// What a commit has begun with.
pub(super) struct CommitStart {
    pub(super) plan: Plan,
    /// The last change that it takes along.
    pub(super) bookmark: u64,
    /// The request has failed, so that nothing is kept but an end.
    pub(super) failed: bool,
    /// An error that no later commit of the request may hide.
    pub(super) earlier: Option<Error>,
    /// The end is carried out, and what was to come after it needs a cookie that cannot be sent.
    pub(super) is_cut_short: bool,
    /// How many messages for the next page are dropped, because no cookie may be sent for a session that has
    /// them.
    pub(super) messages_lost: usize,
}

impl State {
    fn new(time_left: Duration) -> Self {
        Self {
            is_read: false,
            loaded: None,
            lost: None,
            loss: None,
            others: Vec::new(),
            has_stale_token: false,
            changes: Changes::default(),
            committing: None,
            used: false,
            is_passive: false,
            head_sent: false,
            cookie: None,
            failed: None,
            discarded: 0,
            under_way: None,
            taken_early: Vec::new(),
            time_left,
            is_stale: false,
            charged: None,
        }
    }

    pub(super) fn base(&self) -> Option<&Loaded> {
        self.changes.base(self.loaded.as_deref())
    }

    pub(super) fn with_values<T>(&self, read: impl FnOnce(&View, &Values) -> T) -> T {
        read(self.changes.delta.view(), self.changes.base_values(self.loaded.as_deref()))
    }

    /// The changes, for one that a handle asks for.
    pub(super) fn intend(&mut self) -> &mut Changes {
        CHANGES_ON_THIS_THREAD.set(CHANGES_ON_THIS_THREAD.get().wrapping_add(1));
        &mut self.changes
    }

    /// The values, for a change that a handle asks for.
    pub(super) fn changed(&mut self) -> &mut Delta {
        &mut self.intend().delta
    }

    pub(super) fn value(&self, key: &str) -> Option<Value> {
        self.with_values(|view, values| view.get(values, key))
    }

    /// What goes on after the response has no request to be on time for.
    pub(super) fn time_left(&self, settings: &Settings) -> Duration {
        if self.head_sent { settings.options.timeout } else { self.time_left }
    }

    /// Whether a commit under way stores a value of this key.
    pub(super) fn is_being_stored(&self, key: &str) -> bool {
        self.under_way.is_some_and(|bookmark| self.changes.delta.has_until(key, bookmark))
    }

    pub(super) fn has_no_session(&self) -> bool {
        self.loaded.is_none() && self.lost.is_none() && self.others.is_empty()
    }

    /// Whether the browser's tokens lead to no session here that goes on or begins: they are stale or several,
    /// or their session was lost meanwhile.
    pub(super) fn is_astray(&self) -> bool {
        let is_left_alone = !self.changes.is_ended() && self.changes.principal().is_none();
        let leads_nowhere = self.lost.is_some() || self.has_stale_token || !self.others.is_empty();
        self.loaded.is_none() && leads_nowhere && is_left_alone
    }

    /// Whether the browser may be told to forget what it sent: never where it may hold a newer token.
    pub(super) fn is_removable(&self, context: Context<'_>) -> bool {
        context.presented.is_named() && !self.has_stale_token
    }

    fn known(&self, context: Context<'_>) -> KnownSession {
        match (&self.loaded, &self.lost) {
            (Some(loaded), _) if loaded.secret_status() == SecretStatus::Current => {
                KnownSession::Current
            }
            (Some(_), _) => KnownSession::Rotated,
            (None, Some(_)) => KnownSession::Lost,
            // The browser may hold the newer token, which a new session's would overwrite.
            (None, None) if self.has_stale_token && self.others.is_empty() => KnownSession::Lost,
            (None, None) => KnownSession::Nothing { removable: self.is_removable(context) },
        }
    }

    /// What the changes want of the session that they are for.
    pub(super) fn requested(&self) -> Requested {
        let of_lost = |lost: &Lost| {
            let requested = self.changes.requested(&lost.session.record.header);
            // A session that has ended needs no other end.
            Requested { changes_lifetime: requested.changes_lifetime && !lost.is_gone, ..requested }
        };
        match (&self.loaded, &self.lost) {
            (Some(loaded), _) => self.changes.requested(&loaded.record.header),
            (None, Some(lost)) => of_lost(lost),
            (None, None) => Requested::default(),
        }
    }

    /// Whether using the session is worth a write.
    pub(super) fn refresh(&self, context: Context<'_>) -> Refresh {
        let settings = context.settings;
        let Some(loaded) = self.loaded.as_ref().filter(|_| self.used) else { return Refresh::No };
        if settings.confirms(loaded) {
            return Refresh::Confirms;
        }
        let is_due = settings.refresh_due(&loaded.record.header, context.now);
        if is_due && !self.is_passive { Refresh::Due } else { Refresh::No }
    }

    /// What is to be done for what was changed so far.
    pub(super) fn plan(&self, context: Context<'_>, failed: bool, decides: bool) -> Plan {
        self.changes.plan(&RequestFacts {
            loaded: self.loaded.as_deref(),
            session: self.known(context),
            several: !self.others.is_empty(),
            wants: self.requested(),
            decides,
            outlived: self.head_sent,
            is_stale: self.is_stale,
            refresh: self.refresh(context),
            failed,
        })
    }

    /// How many changes are pending, if any of them would change anything.
    pub(super) fn would_change(&self, context: Context<'_>) -> usize {
        if self.changes.is_empty() {
            return 0;
        }
        match self.plan(context, false, false) {
            Plan::Nothing | Plan::Refresh => 0,
            _ => self.changes.pending(),
        }
    }

    /// How many changes are lost where nothing but an end is kept: those that a commit under way has are
    /// not.
    pub(super) fn changes_lost(&self, context: Context<'_>) -> usize {
        let later = self.changes.pending_after(self.under_way.unwrap_or(0));
        if self.changes.is_ended() {
            // All others are for the session after it, and matter if there is to be one.
            let others = later.saturating_sub(1);
            return if self.changes.begins_a_session() { others } else { 0 };
        }
        later.min(self.would_change(context))
    }

    /// How many messages for the next page go with a request that has nothing else to do: their session is
    /// lost, and no cookie may be sent for another one.
    pub(super) fn messages_lost(&self, context: Context<'_>, plan: Plan, failed: bool) -> usize {
        let is_lost = || self.known(context) == KnownSession::Lost;
        match plan {
            Plan::Nothing if !failed && is_lost() => self.changes.delta.messages(),
            _ => 0,
        }
    }

    /// What a commit that begins now has to do; an error where it would need a cookie after the response.
    pub(super) fn begin_commit(
        &mut self,
        context: Context<'_>,
        failed: bool,
        decides: bool,
    ) -> Result<CommitStart> {
        let earlier = self.failed.clone();
        // After a failure nothing is kept any more but an end.
        let failed = failed || earlier.is_some();
        let mut plan = self.plan(context, failed, decides);
        let messages_lost = self.messages_lost(context, plan, failed);
        let is_cut_short = self.head_sent && plan.sends_token();
        if is_cut_short {
            if !self.changes.is_ended() {
                // It can never be sent, so nothing later is to wait for it.
                self.changes.drop_what_needs_a_cookie();
                return Err(head_sent());
            }
            plan = Plan::Delete;
        }
        let bookmark = self.changes.delta.made();
        self.under_way = Some(bookmark);
        Ok(CommitStart { plan, bookmark, failed, earlier, is_cut_short, messages_lost })
    }

    /// Takes over what a commit led to, and says whether the view must be computed anew.
    pub(super) fn apply_outcome(
        &mut self,
        commit: &CommitStart,
        outcome: Result<Committed>,
        context: Context<'_>,
    ) -> (Result<()>, bool) {
        self.under_way = None;
        let failure = match outcome {
            Ok(mut committed) => {
                let failure = committed.failure.take();
                self.apply_session(commit.plan, committed, context);
                failure.inspect(|failure| self.fail(failure, commit.bookmark, context))
            }
            Err(error) => {
                if !self.apply_error(&error, commit.bookmark, context) {
                    return (Err(error), false);
                }
                Some(error)
            }
        };
        match failure {
            Some(failure) => (Err(failure), !self.changes.is_empty()),
            None => (Ok(()), self.forget_committed(commit)),
        }
    }

    /// The session, and the cookie for it, as a commit left them.
    fn apply_session(&mut self, plan: Plan, committed: Committed, context: Context<'_>) {
        let Committed { loaded, cookie, lost, .. } = committed;
        match lost {
            Some(lost) => self.mark_lost(lost, context),
            None => {
                (self.loaded, self.lost, self.loss) = (loaded, None, None);
                self.cookie = cookie.or(self.cookie.take());
            }
        }
        if plan.ends() {
            self.others.clear();
        }
    }

    /// Drops the changes that a failed commit makes useless; `false` where all of them are still pending.
    fn apply_error(&mut self, error: &Error, bookmark: u64, context: Context<'_>) -> bool {
        match error.kind() {
            // Committing the same once more could apply it twice.
            ErrorKind::OutcomeUnknown => self.fail(error, bookmark, context),
            // It was refused: it must not be tried again behind the handler's answer. An end that was
            // asked for is carried out nevertheless.
            ErrorKind::TooManySessions | ErrorKind::Revoked => {
                self.drop_until(bookmark, true, context);
            }
            ErrorKind::HeadSent => self.changes.drop_what_needs_a_cookie(),
            _ => return false,
        }
        true
    }

    /// Drops the changes that were committed; `true` where others are left, whose view must be computed
    /// anew.
    fn forget_committed(&mut self, commit: &CommitStart) -> bool {
        if commit.failed {
            // Nothing else was committed; the end of the request drops it.
            self.changes.forget_end(commit.bookmark);
            return false;
        }
        self.changes.forget(commit.bookmark);
        for (key, seen) in std::mem::take(&mut self.taken_early) {
            self.changes.delta.taken_early(key, seen);
        }
        if self.changes.is_empty() {
            self.changes.delta.discard();
            self.is_stale = false;
            return false;
        }
        // The values that the view stands on are others now.
        self.changes.delta.mark();
        true
    }

    /// What was to be committed, up to a bookmark, failed for good, and so does the response.
    pub(super) fn fail(&mut self, error: &Error, bookmark: u64, context: Context<'_>) {
        let discarded = self.discarded;
        self.drop_until(bookmark, false, context);
        if error.kind() == ErrorKind::Gone {
            // That has an event of its own.
            self.discarded = discarded;
        }
        // Another handle may have asked for some of it, and is told by its own commit: of the request, or,
        // after the response, until the record is read again.
        if !self.head_sent || error.kind() == ErrorKind::OutcomeUnknown {
            self.failed.get_or_insert_with(|| error.clone());
        }
    }

    fn drop_until(&mut self, bookmark: u64, keeps_end: bool, context: Context<'_>) {
        let before = self.changes_lost(context);
        self.changes.drop_until(bookmark, keeps_end);
        self.discarded += before.saturating_sub(self.changes.pending_after(0));
    }

    /// The session is not this request's any more, and neither is the browser's cookie.
    pub(super) fn mark_lost(&mut self, lost: Lost, context: Context<'_>) {
        // As it was found out first: what is done later, or comes to pass, is no reason.
        self.loss.get_or_insert_with(|| lost.loss(context.now));
        self.lost = Some(lost);
        self.loaded = None;
        self.cookie = None;
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if !state.head_sent || state.changes.is_empty() {
            return;
        }
        // As during the request: a change that changes nothing is not missed.
        state.head_sent = false;
        let settings = self.sessions.settings();
        let context = Context { settings, presented: &self.presented, now: settings.now() };
        let dropped = state.changes_lost(context);
        if dropped > 0 {
            event::changes_dropped(dropped);
        }
    }
}
