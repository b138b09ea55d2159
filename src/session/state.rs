//! The state that the handles in a request share, and the decisions based on it. This module sends no store
//! commands.

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
    /// Held during a commit, so that each commit sees the result of the previous one.
    pub(super) committing: AsyncMutex<()>,
    pub(super) state: Mutex<State>,
}

pub(super) struct State {
    /// The request has looked up its session in the store.
    pub(super) is_read: bool,
    pub(super) loaded: Option<Arc<Loaded>>,
    /// The session that the request may no longer use, because it is gone or because another request has
    /// signed in or replaced the secret. The browser may hold a newer cookie.
    pub(super) lost: Option<Lost>,
    /// The first reason that was detected for the loss.
    pub(super) loss: Option<Loss>,
    /// The sessions of a request that presented several valid tokens. The request is anonymous, but it can end them.
    pub(super) others: Vec<Arc<Loaded>>,
    /// The request presented a token whose id belongs to an existing session but whose secret does not match.
    pub(super) has_stale_token: bool,
    pub(super) changes: Changes,
    /// The driver of the newest commit that began without waiting for another commit.
    pub(super) committing: Option<Driver>,
    pub(super) used: bool,
    pub(super) is_passive: bool,
    pub(super) head_sent: bool,
    /// The `Set-Cookie` header to send.
    pub(super) cookie: Option<String>,
    /// The error of a failed commit. A later successful commit of this request must not hide it.
    pub(super) failed: Option<Error>,
    /// The number of changes that were dropped because a commit failed.
    pub(super) discarded: usize,
    /// The sequence number of the last change in the commit under way.
    pub(super) under_way: Option<u64>,
    /// The values that were taken while the commit under way was storing them.
    pub(super) taken_early: Vec<(Name, Bytes)>,
    /// The time left for store commands.
    pub(super) time_left: Duration,
    /// The view could not be recomputed from the newest record that was read.
    pub(super) is_stale: bool,
    /// The time up to which store time has been subtracted from `time_left`.
    pub(super) charged: Option<Instant>,
}

thread_local! {
    /// The number of changes requested on this thread. Shows whether an update function has changed a session.
    static CHANGES_ON_THIS_THREAD: Cell<u64> = const { Cell::new(0) };
}

pub(super) fn changes_on_this_thread() -> u64 {
    CHANGES_ON_THIS_THREAD.get()
}

/// The error for an update function that changes a session.
pub(super) fn reentrant() -> Error {
    Error::new(ErrorKind::Reentrant, "")
}

pub(super) fn head_sent() -> Error {
    Error::new(ErrorKind::HeadSent, "")
}

pub(super) fn contended() -> Error {
    Error::new(ErrorKind::Contended, "other handles kept changing the values")
}

/// The locked state of a session. The application's values, such as the captures of an update function, are
/// dropped only after the state is unlocked.
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

/// The data that decisions depend on in addition to the shared state.
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
        // No application code runs while this lock is held, so a panic cannot leave the state inconsistent.
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        StateGuard { state, dropped: Dropped::default() }
    }

    /// Reads the clock, which may be application code, so the caller must not hold the state's lock.
    pub(super) fn context(&self) -> Context<'_> {
        let settings = self.sessions.settings();
        Context { settings, presented: &self.presented, now: settings.now() }
    }
}

/// The state at the start of a commit.
pub(super) struct CommitStart {
    pub(super) plan: Plan,
    /// The sequence number of the last change in this commit.
    pub(super) bookmark: u64,
    /// The request has failed, so only a sign-out or `destroy` is committed.
    pub(super) failed: bool,
    /// The error of an earlier commit, which this commit must not hide.
    pub(super) earlier: Option<Error>,
    /// Only the sign-out or `destroy` is committed, because the changes after it need a cookie that can no
    /// longer be sent.
    pub(super) is_cut_short: bool,
    /// The number of flash messages that are dropped, because no cookie may be sent for a session that could hold
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

    /// Returns the changes so that the caller can add one. Counts the change, to detect update functions that
    /// change a session.
    pub(super) fn intend(&mut self) -> &mut Changes {
        CHANGES_ON_THIS_THREAD.set(CHANGES_ON_THIS_THREAD.get().wrapping_add(1));
        &mut self.changes
    }

    /// Returns the changes to values so that the caller can add one. Counts the change, as
    /// [`intend`](Self::intend) does.
    pub(super) fn changed(&mut self) -> &mut Delta {
        &mut self.intend().delta
    }

    pub(super) fn value(&self, key: &str) -> Option<Value> {
        self.with_values(|view, values| view.get(values, key))
    }

    /// Returns the time left for store commands. After the response, each operation gets the full timeout, because no
    /// request waits for it.
    pub(super) fn time_left(&self, settings: &Settings) -> Duration {
        if self.head_sent { settings.options.timeout } else { self.time_left }
    }

    /// Returns whether a commit under way includes a change to this key.
    pub(super) fn is_being_stored(&self, key: &str) -> bool {
        self.under_way.is_some_and(|bookmark| self.changes.delta.has_until(key, bookmark))
    }

    pub(super) fn has_no_session(&self) -> bool {
        self.loaded.is_none() && self.lost.is_none() && self.others.is_empty()
    }

    /// Returns whether the browser presented session tokens but the request has no session and creates none:
    /// the tokens are stale, several are valid, or their session was lost.
    pub(super) fn is_astray(&self) -> bool {
        let is_left_alone = !self.changes.is_ended() && self.changes.principal().is_none();
        let leads_nowhere = self.lost.is_some() || self.has_stale_token || !self.others.is_empty();
        self.loaded.is_none() && leads_nowhere && is_left_alone
    }

    /// Returns whether the response may remove the browser's cookie. It must not if the browser may hold a newer token.
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
            // The browser may hold a newer token, which the cookie of a new session would overwrite.
            (None, None) if self.has_stale_token && self.others.is_empty() => KnownSession::Lost,
            (None, None) => KnownSession::Nothing { removable: self.is_removable(context) },
        }
    }

    /// Returns what the changes require of the session, apart from its values.
    pub(super) fn requested(&self) -> Requested {
        let of_lost = |lost: &Lost| {
            let requested = self.changes.requested(&lost.session.record.header);
            // A session that has ended needs no new lifetime.
            Requested { changes_lifetime: requested.changes_lifetime && !lost.is_gone, ..requested }
        };
        match (&self.loaded, &self.lost) {
            (Some(loaded), _) => self.changes.requested(&loaded.record.header),
            (None, Some(lost)) => of_lost(lost),
            (None, None) => Requested::default(),
        }
    }

    /// Returns whether the use of the session must be written to the store.
    pub(super) fn refresh(&self, context: Context<'_>) -> Refresh {
        let settings = context.settings;
        let Some(loaded) = self.loaded.as_ref().filter(|_| self.used) else { return Refresh::No };
        if settings.confirms(loaded) {
            return Refresh::Confirms;
        }
        let is_due = settings.refresh_due(&loaded.record.header, context.now);
        if is_due && !self.is_passive { Refresh::Due } else { Refresh::No }
    }

    /// Returns the plan for the changes made so far.
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

    /// Returns the number of pending changes, or 0 if they would have no effect.
    pub(super) fn would_change(&self, context: Context<'_>) -> usize {
        if self.changes.is_empty() {
            return 0;
        }
        match self.plan(context, false, false) {
            Plan::Nothing | Plan::Refresh => 0,
            _ => self.changes.pending(),
        }
    }

    /// Returns the number of changes that are lost if only a sign-out or `destroy` is committed. Changes in a
    /// commit under way do not count.
    pub(super) fn changes_lost(&self, context: Context<'_>) -> usize {
        let later = self.changes.pending_after(self.under_way.unwrap_or(0));
        if self.changes.is_ended() {
            // The other changes belong to a new session, so they count only if one would be created.
            let others = later.saturating_sub(1);
            return if self.changes.begins_a_session() { others } else { 0 };
        }
        later.min(self.would_change(context))
    }

    /// Returns the number of flash messages that are dropped because their session is lost and no cookie may be sent for
    /// a new one.
    pub(super) fn messages_lost(&self, context: Context<'_>, plan: Plan, failed: bool) -> usize {
        let is_lost = || self.known(context) == KnownSession::Lost;
        match plan {
            Plan::Nothing if !failed && is_lost() => self.changes.delta.messages(),
            _ => 0,
        }
    }

    /// Starts a commit and returns its plan. Fails if the commit needs a cookie and the response has been
    /// sent.
    pub(super) fn begin_commit(
        &mut self,
        context: Context<'_>,
        failed: bool,
        decides: bool,
    ) -> Result<CommitStart> {
        let earlier = self.failed.clone();
        // After a failure, only a sign-out or `destroy` is still committed.
        let failed = failed || earlier.is_some();
        let mut plan = self.plan(context, failed, decides);
        let messages_lost = self.messages_lost(context, plan, failed);
        let is_cut_short = self.head_sent && plan.sends_token();
        if is_cut_short {
            if !self.changes.is_ended() {
                // The cookie can never be sent, so drop these changes: otherwise every later commit would fail too.
                self.changes.drop_what_needs_a_cookie();
                return Err(head_sent());
            }
            plan = Plan::Delete;
        }
        let bookmark = self.changes.delta.made();
        self.under_way = Some(bookmark);
        Ok(CommitStart { plan, bookmark, failed, earlier, is_cut_short, messages_lost })
    }

    /// Applies the result of a commit. Also returns whether the view must be recomputed.
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

    /// Adopts the session and the cookie that a commit produced.
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

    /// Drops the changes that must not be committed again after this error. Returns `false` if all changes stay pending.
    fn apply_error(&mut self, error: &Error, bookmark: u64, context: Context<'_>) -> bool {
        match error.kind() {
            // Committing the same changes again could apply them twice.
            ErrorKind::OutcomeUnknown => self.fail(error, bookmark, context),
            // The sign-in was refused. It must not be retried after the handler has seen the error, but a
            // requested sign-out is still carried out.
            ErrorKind::TooManySessions | ErrorKind::Revoked => {
                self.drop_until(bookmark, true, context);
            }
            ErrorKind::HeadSent => self.changes.drop_what_needs_a_cookie(),
            _ => return false,
        }
        true
    }

    /// Drops the changes that were committed. Returns `true` if other changes are left, so the view must be
    /// recomputed.
    fn forget_committed(&mut self, commit: &CommitStart) -> bool {
        if commit.failed {
            // Only the sign-out or `destroy` was committed. The other changes are dropped when the request
            // ends.
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
        // The values to which the remaining changes apply have changed.
        self.changes.delta.mark();
        true
    }

    /// Drops the changes up to a bookmark, because their commit cannot be retried, and makes the response
    /// fail as well.
    pub(super) fn fail(&mut self, error: &Error, bookmark: u64, context: Context<'_>) {
        let discarded = self.discarded;
        self.drop_until(bookmark, false, context);
        if error.kind() == ErrorKind::Gone {
            // A lost session has its own event.
            self.discarded = discarded;
        }
        // Another handle may have made some of these changes, so its own commit must return the error too.
        // After the response, only an unknown outcome is kept, until the record is read again.
        if !self.head_sent || error.kind() == ErrorKind::OutcomeUnknown {
            self.failed.get_or_insert_with(|| error.clone());
        }
    }

    fn drop_until(&mut self, bookmark: u64, keeps_end: bool, context: Context<'_>) {
        let before = self.changes_lost(context);
        self.changes.drop_until(bookmark, keeps_end);
        self.discarded += before.saturating_sub(self.changes.pending_after(0));
    }

    /// Records that this request may no longer use the session, and drops the cookie to send for it.
    pub(super) fn mark_lost(&mut self, lost: Lost, context: Context<'_>) {
        // Keep the first reason: later events did not cause the loss.
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
        // Count the changes as if the response had not been sent, so that changes without an effect are not
        // reported.
        state.head_sent = false;
        let settings = self.sessions.settings();
        let context = Context { settings, presented: &self.presented, now: settings.now() };
        let dropped = state.changes_lost(context);
        if dropped > 0 {
            event::changes_dropped(dropped);
        }
    }
}
