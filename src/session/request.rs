//! The life of a session inside one request: read once, committed, closed.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::MutexGuard as AsyncMutexGuard;
use tokio::time::{Instant, timeout};

use crate::budget::Budget;
use crate::clock::Millis;
use crate::commands::Commands;
use crate::commit::{Commit, Committed, Decide, EnrolmentProgress};
use crate::completion::{Driver, RunToCompletion, run_to_completion};
use crate::cookie::parse::Presented;
use crate::error::{Error, ErrorKind, Result};
use crate::event;
use crate::limits::{REBASE_ATTEMPTS, VIEW_ATTEMPTS};
use crate::load::decode;
use crate::record::authority::{Authority, SecretStatus};
use crate::record::changes::{Changes, RequestFacts, Rotation};
use crate::record::loaded::{Loaded, Lost};
use crate::record::plan::{KnownSession, Plan, Refresh, Requested};
use crate::record::token::Token;
use crate::session::reentrant;
use crate::session::{Inner, Session, State, StateGuard, changes_on_this_thread, contended};
use crate::settings::Settings;

/// What a token turned out to be.
enum Found {
    Valid(Arc<Loaded>),
    /// A session's, with a secret that is not its own: the browser may hold a newer one.
    WrongSecret,
    Nothing,
}

/// The session of the only valid token, or those of several; and whether there is a stale token.
type FoundSessions = (Option<Arc<Loaded>>, Vec<Arc<Loaded>>, bool);

/// What the exchange does with a session; handlers never see an unloaded one.
impl Session {
    /// Reads the record, once for all handles of the request.
    ///
    /// Nobody waits for somebody else's read, which may never be polled again: whoever finds none
    /// finished reads too, and the first to finish counts.
    pub(crate) async fn load(&self) -> Result<()> {
        {
            let mut state = self.state();
            state.used = true;
            if state.is_read {
                return Ok(());
            }
        }
        let budget = self.budget();
        let found = match self.0.presented.has_tokens() {
            true => self.read(Commands::new(self.settings(), &budget)).await,
            false => Ok(Default::default()),
        };
        let mut state = self.state();
        if state.is_read {
            // Another handle was faster, and it does not matter what this one came to.
            return Ok(());
        }
        drop(state);
        self.record_store_time(&budget);
        let (loaded, others, has_stale_token) = found?;
        let several = others.len();
        state = self.state();
        if state.is_read {
            return Ok(());
        }
        state.is_read = true;
        (state.loaded, state.others) = (loaded, others);
        state.has_stale_token = has_stale_token;
        drop(state);
        if several > 1 {
            // ASVS 5.0 15.3.7: which of them the person meant cannot be known.
            event::several_valid_tokens(several);
        }
        Ok(())
    }

    async fn read(&self, commands: Commands<'_>) -> Result<FoundSessions> {
        let look_up = |token| self.look_up(commands, token);
        let mut tokens = self.0.presented.tokens();
        let found = match (tokens.next(), tokens.next()) {
            // Nearly always, and without a list of futures.
            (Some(only), None) => {
                return Ok(match look_up(only).await? {
                    Found::Valid(loaded) => (Some(loaded), Vec::new(), false),
                    Found::WrongSecret => (None, Vec::new(), true),
                    Found::Nothing => (None, Vec::new(), false),
                });
            }
            (first, second) => {
                let tokens = first.into_iter().chain(second).chain(tokens);
                futures_util::future::try_join_all(tokens.map(look_up)).await?
            }
        };
        let has_stale_token = found.iter().any(|found| matches!(found, Found::WrongSecret));
        let valid = found.into_iter().filter_map(|found| match found {
            Found::Valid(loaded) => Some(loaded),
            Found::WrongSecret | Found::Nothing => None,
        });
        let mut valid: Vec<_> = valid.collect();
        let only = if valid.len() == 1 { valid.pop() } else { None };
        Ok((only, valid, has_stale_token))
    }

    /// The session of a token, if the token is valid.
    async fn look_up(&self, commands: Commands<'_>, token: Token) -> Result<Found> {
        let settings = self.settings();
        let key = settings.key(token.id);
        let Some(stored) = commands.load(&key).await? else {
            event::unknown_session(token.id);
            return Ok(Found::Nothing);
        };
        let record = match decode(&key, stored.bytes) {
            Ok(record) => record,
            // Reported, left in place, and the visitor is anonymous.
            Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(Found::Nothing),
            Err(error) => return Err(error),
        };
        if record.header.clocks.expired(settings.now()) {
            event::expired(token.id);
            return Ok(Found::Nothing);
        }
        if !record.header.digest.matches(&token.secret, settings.cookie.name()) {
            event::wrong_secret(token.id);
            return Ok(Found::WrongSecret);
        }
        let authority = Authority::of(&record.header, true);
        let (id, version) = (token.id, stored.version);
        let loaded = Arc::new(Loaded { id, key, record, version, authority });
        let is_listed = settings.is_listed(commands, &loaded).await?;
        Ok(if is_listed { Found::Valid(loaded) } else { Found::Nothing })
    }

    /// Reads the record again; see [`Session::reload`].
    pub(super) async fn reread(&self, driver: &Driver) -> Result<()> {
        let _one_at_a_time = self.turn(driver).await?;
        let (loaded, lost) = {
            let state = self.state();
            (state.loaded.clone(), state.lost.clone())
        };
        let gone = self.settings().gone("");
        if lost.is_some() {
            return Err(gone);
        }
        let Some(loaded) = loaded else { return Ok(()) };
        let (newer, is_gone) = self.read_again(&loaded).await?;
        let context = self.context();
        let mut state = self.state();
        if let Some(newer) = newer {
            if state.head_sent {
                // Whoever reads again knows what has become of an unknown outcome.
                state.failed = None;
            }
            state.loaded = Some(newer);
            state.changes.delta.mark();
            drop(state);
            return self.rebase(|_, _| ());
        }
        let would_change = state.would_change(context) > 0;
        if !state.changes.is_empty() {
            state.fail(&gone, u64::MAX, context);
        }
        let id = loaded.id;
        state.mark_lost(Lost { session: loaded, is_gone });
        drop(state);
        if would_change {
            event::gone(id);
        }
        Err(gone)
    }

    /// The session as it stands now, if the request's secret is valid; and whether it is no more.
    async fn read_again(&self, loaded: &Loaded) -> Result<(Option<Arc<Loaded>>, bool)> {
        let budget = self.budget();
        let read = self.read_again_in(Commands::new(self.settings(), &budget), loaded).await;
        self.record_store_time(&budget);
        read
    }

    async fn read_again_in(
        &self,
        commands: Commands<'_>,
        loaded: &Loaded,
    ) -> Result<(Option<Arc<Loaded>>, bool)> {
        let settings = self.settings();
        let newer = loaded.reread(commands).await?;
        let is_alive = |is: &Arc<Loaded>| !is.record.header.clocks.expired(settings.now());
        let Some(newer) = newer.filter(is_alive) else { return Ok((None, true)) };
        if newer.secret_status() != SecretStatus::Current {
            return Ok((None, false));
        }
        match settings.is_listed(commands, &newer).await? {
            true => Ok((Some(newer), false)),
            false => Ok((None, true)),
        }
    }

    fn context(&self) -> Context<'_> {
        self.0.context()
    }

    /// What is left of the request's time for the store.
    fn budget(&self) -> Budget {
        Budget::new(self.state().time_left(self.settings()))
    }

    /// The store was used for so long; what other handles used at the same time counts once. Not called
    /// for a read that was given up, which may have been kept for any time before.
    fn record_store_time(&self, budget: &Budget) {
        let mut state = self.state();
        let used = budget.used(state.charged);
        state.time_left = state.time_left.saturating_sub(used);
        state.charged = Some(Instant::now());
    }

    /// Waits for the commit of this session that is under way, as long as for the store: it may be on a
    /// runtime that stands still.
    async fn turn(&self, driver: &Driver) -> Result<AsyncMutexGuard<'_, ()>> {
        let settings = self.settings();
        let (under_way, patience) = {
            let mut state = self.state();
            match self.0.committing.try_lock() {
                Ok(turn) => {
                    state.committing = Some(driver.clone());
                    return Ok(turn);
                }
                Err(_) => (state.committing.clone(), state.time_left(settings)),
            }
        };
        // The future that holds the turn may be kept and never polled again, and so may this one.
        under_way.iter().chain([driver]).for_each(Driver::drive);
        let turn = timeout(patience, self.0.committing.lock()).await;
        turn.map_err(|_| Error::new(ErrorKind::Contended, "another commit of this session"))
    }

    /// Commits what was changed so far; after an error the changes are still there, unless they are
    /// known or suspected to be of no use any more.
    pub(super) async fn commit<'d>(
        &self,
        driver: &Driver,
        failed: bool,
        decide: Option<&'d mut Decide<'d>>,
    ) -> Result<()> {
        let _one_at_a_time = self.turn(driver).await?;
        self.commit_locked(driver, failed, decide).await
    }

    async fn commit_locked<'d>(
        &self,
        driver: &Driver,
        failed: bool,
        decide: Option<&'d mut Decide<'d>>,
    ) -> Result<()> {
        let context = self.context();
        let _under_way = CommitInProgress(self);
        let mut is_cut_short = false;
        let budget = self.budget();
        let (earlier, failed, plan, commit) = {
            let mut state = self.state();
            let earlier = state.failed.clone();
            // After a failure nothing is kept any more but an end.
            let failed = failed || earlier.is_some();
            let mut plan = state.plan(context, failed, decide.is_some());
            if state.head_sent && plan.sends_token() {
                if !state.changes.is_ended() {
                    // It can never be sent, so nothing later is to wait for it.
                    state.changes.drop_what_needs_a_cookie();
                    return Err(head_sent());
                }
                // The end is carried out, and what was to come after it is not.
                plan = Plan::Delete;
                is_cut_short = true;
            }
            let commit = Commit {
                settings: context.settings,
                commands: Commands::new(context.settings, &budget).driven_by(driver),
                loaded: state.loaded.clone(),
                lost: state.lost.clone(),
                others: state.others.clone(),
                changes: state.changes.clone(),
                is_activity: !state.is_passive && !failed,
                outlived: state.head_sent,
                is_removable: state.is_removable(context),
                decide,
                enrolment: EnrolmentProgress::default(),
            };
            state.under_way = Some(state.changes.delta.made());
            (earlier, failed, plan, commit)
        };
        let bookmark = commit.changes.delta.made();
        let outcome = commit.run(plan).await;
        self.record_store_time(&budget);
        if let Err(error) = &outcome
            && error.kind() == ErrorKind::OutcomeUnknown
        {
            event::outcome_unknown(error);
        }
        let (result, is_stale) =
            self.state().apply_outcome(plan, outcome, bookmark, failed, context);
        if is_stale {
            // What fails here fails again at the next commit, which reports it.
            let _ = self.rebase(|_, _| ());
        }
        match earlier {
            Some(earlier) => Err(earlier),
            None if is_cut_short => result.and(Err(head_sent())),
            None => result,
        }
    }

    /// Commits under a new secret behind which nothing older counts; an error where it did not come to
    /// that.
    pub(crate) async fn supersede(&self, driver: &Driver) -> Result<()> {
        let _one_at_a_time = self.turn(driver).await?;
        let authority = |state: &State| state.loaded.as_ref().map(|is| is.authority.clone());
        let before = {
            let mut state = self.state();
            // With the turn, so that no other commit takes it along.
            state.intend().rotate(Rotation::Superseding);
            authority(&state)
        };
        let committed = self.commit_locked(driver, false, None).await;
        let mut state = self.state();
        // Nobody is revoked where it failed, so nothing is to be made void later.
        state.changes.forget_superseding();
        let after = authority(&state);
        drop(state);
        committed?;
        if after.is_none() || after == before {
            return Err(self.settings().gone("the session has no new secret"));
        }
        Ok(())
    }

    /// Changes something that the view depends on, and computes the view anew. The functions of
    /// updates run outside the lock: they may read the session, or take their time.
    pub(super) fn rebase(&self, change: impl Fn(&mut Changes, Option<&Loaded>)) -> Result<()> {
        let before = changes_on_this_thread();
        for attempt in 0..REBASE_ATTEMPTS {
            let (made, mut changes, loaded) = {
                let state = &mut *self.state();
                let loaded = state.loaded.clone();
                if !state.changes.delta.has_functions() {
                    change(&mut state.changes, loaded.as_deref());
                    state.is_stale = false;
                    return state.changes.rebase(loaded.as_deref());
                }
                (state.changes.delta.made(), state.changes.clone(), loaded)
            };
            change(&mut changes, loaded.as_deref());
            let rebased = changes.rebase(loaded.as_deref());
            if changes_on_this_thread() != before {
                self.state().is_stale = true;
                return Err(reentrant());
            }
            if let Err(error) = rebased {
                self.state().is_stale = true;
                return Err(error);
            }
            let mut state = self.state();
            if state.changes.delta.made() == made {
                std::mem::swap(&mut state.changes, &mut changes);
                state.is_stale = false;
                // What is dropped now is the application's.
                drop(state);
                return Ok(());
            }
            drop(state);
            if attempt >= VIEW_ATTEMPTS {
                // Other threads change the session all the time.
                std::thread::yield_now();
            }
        }
        self.state().is_stale = true;
        Err(contended())
    }

    /// Marks the response as begun. What it does not stand for is dropped: of a handler that failed, or
    /// whose response is replaced.
    fn close(
        &self,
        mut state: StateGuard<'_>,
        failed: bool,
        context: Context<'_>,
    ) -> ResponseEffects {
        let mut discarded = 0;
        if failed {
            discarded = state.discarded + state.changes_lost(context);
            state.changes.discard();
            state.is_stale = false;
        }
        state.head_sent = true;
        // The response has told it.
        state.failed = None;
        let closed = ResponseEffects { cookie: state.cookie.take(), used: state.used };
        drop(state);
        if discarded > 0 {
            event::changes_discarded(discarded);
        }
        closed
    }

    /// The end of a request that has nothing to do; `None` where it has. What was asked for and changes
    /// nothing is done by that.
    pub(crate) fn close_without_commit(&self, failed: bool) -> Option<ResponseEffects> {
        // What a commit under way leads to is not known yet; there may be a cookie to send. None begins
        // while the state is locked.
        let is_busy = |state: &State| {
            self.0.committing.try_lock().is_err() || (!failed && state.failed.is_some())
        };
        let mut state = self.state();
        let is_idle = state.changes.is_empty() && state.discarded == 0;
        if is_idle && state.has_no_session() && !is_busy(&state) {
            // Most requests, and without asking the clock.
            (state.head_sent, state.failed) = (true, None);
            return Some(ResponseEffects { cookie: state.cookie.take(), used: state.used });
        }
        drop(state);
        let context = self.context();
        let mut state = self.state();
        if is_busy(&state) || state.plan(context, failed, false) != Plan::Nothing {
            return None;
        }
        if !failed {
            state.changes.discard();
        }
        Some(self.close(state, failed, context))
    }

    /// The end of a request whose response cannot wait for a commit.
    pub(crate) fn close_failed(&self) -> ResponseEffects {
        let context = self.context();
        self.close(self.state(), true, context)
    }

    /// Commits at the end of a request, and marks the response as begun before any other commit.
    pub(crate) async fn commit_and_close(
        &self,
        driver: &Driver,
        failed: bool,
    ) -> (Result<()>, ResponseEffects) {
        let turn = self.turn(driver).await;
        let result = match &turn {
            Ok(_) => self.commit_at_the_end(driver, failed).await,
            Err(error) => Err(error.clone()),
        };
        // A response that says that something failed stays as it is.
        let result = if failed { Ok(()) } else { result };
        let context = self.context();
        let closed = self.close(self.state(), failed || result.is_err(), context);
        drop(turn);
        (result, closed)
    }

    /// What a commit at the end of a request comes to; the commands has the turn.
    async fn commit_at_the_end(&self, driver: &Driver, failed: bool) -> Result<()> {
        let result = self.commit_locked(driver, failed, None).await;
        if let Err(error) = &result
            && !failed
            && matches!(error.kind(), ErrorKind::TooManySessions | ErrorKind::Revoked)
        {
            // What is left is a sign-out that came before a refused sign-in.
            let _ = self.commit_locked(driver, true, None).await;
        }
        result
    }

    /// The handler is no more: it panicked, or its client went away. Nothing is kept but an end.
    pub(crate) fn abandon(self) {
        let (ended, dropped) = {
            let context = self.context();
            let mut state = self.state();
            let ended = state.changes.is_ended();
            let dropped = state.changes_lost(context);
            (state.head_sent, state.failed) = (true, None);
            if !ended {
                state.changes.discard();
            }
            (ended, dropped)
        };
        if dropped > 0 {
            event::changes_dropped(dropped);
        }
        if ended && let Ok(runtime) = Handle::try_current() {
            drop(RunToCompletion::new(runtime, |driver| async move {
                let _ = self.commit_and_close(&driver, true).await;
            }));
        }
    }

    /// Runs work on this session to completion even if nobody waits for it any more.
    pub(super) async fn run_to_completion<T, F>(
        &self,
        work: impl FnOnce(Self, Driver) -> F,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let session = self.clone();
        run_to_completion(|driver| work(session, driver)).await
    }
}

/// A commit while it is under way, also if a function that it calls panics.
struct CommitInProgress<'a>(&'a Session);

impl Drop for CommitInProgress<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.under_way = None;
        state.taken_early.clear();
    }
}

fn head_sent() -> Error {
    Error::new(ErrorKind::HeadSent, "")
}

/// What is to be done to a response as it leaves.
pub(crate) struct ResponseEffects {
    pub(crate) cookie: Option<String>,
    /// Whether the session was used.
    pub(crate) used: bool,
}

/// What the end of a request depends on besides what its handles did.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) settings: &'a Settings,
    pub(super) presented: &'a Presented,
    now: Millis,
}

impl Inner {
    /// The clock is the application's, so the state must not be locked.
    fn context(&self) -> Context<'_> {
        let settings = self.sessions.settings();
        Context { settings, presented: &self.presented, now: settings.now() }
    }
}

impl State {
    /// What goes on after the response has no request to be on time for.
    fn time_left(&self, settings: &Settings) -> Duration {
        if self.head_sent { settings.timeout } else { self.time_left }
    }

    /// Whether a commit under way stores a value of this key.
    pub(super) fn is_being_stored(&self, key: &str) -> bool {
        self.under_way.is_some_and(|bookmark| self.changes.delta.has_until(key, bookmark))
    }

    fn has_no_session(&self) -> bool {
        self.loaded.is_none() && self.lost.is_none() && self.others.is_empty()
    }

    /// Whether the browser may be told to forget what it sent: never where it may hold a newer token.
    fn is_removable(&self, context: Context<'_>) -> bool {
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
    fn requested(&self) -> Requested {
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
    fn refresh(&self, context: Context<'_>) -> Refresh {
        let settings = context.settings;
        let Some(loaded) = self.loaded.as_ref().filter(|_| self.used) else { return Refresh::No };
        if settings.confirms(loaded) {
            return Refresh::Confirms;
        }
        let header = &loaded.record.header;
        let is_due = header.clocks.refresh_due(context.now, &header.lifetime(&settings.lifetime));
        if is_due && !self.is_passive { Refresh::Due } else { Refresh::No }
    }

    /// What is to be done for what was changed so far.
    fn plan(&self, context: Context<'_>, failed: bool, decides: bool) -> Plan {
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
    fn would_change(&self, context: Context<'_>) -> usize {
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
    fn changes_lost(&self, context: Context<'_>) -> usize {
        let later = self.changes.pending_after(self.under_way.unwrap_or(0));
        if self.changes.is_ended() {
            // All others are for the session after it, and matter if there is to be one.
            let others = later.saturating_sub(1);
            return if self.changes.begins_a_session() { others } else { 0 };
        }
        later.min(self.would_change(context))
    }

    /// Takes over what a commit led to, and says whether the view must be computed anew.
    fn apply_outcome(
        &mut self,
        plan: Plan,
        outcome: Result<Committed>,
        bookmark: u64,
        failed: bool,
        context: Context<'_>,
    ) -> (Result<()>, bool) {
        self.under_way = None;
        let Committed { loaded, cookie, failure, lost } = match outcome {
            Ok(committed) => committed,
            Err(error) => {
                match error.kind() {
                    // Committing the same once more could apply it twice.
                    ErrorKind::OutcomeUnknown => self.fail(&error, bookmark, context),
                    // It was refused: it must not be tried again behind the handler's answer. An end that
                    // was asked for is carried out nevertheless.
                    ErrorKind::TooManySessions | ErrorKind::Revoked => {
                        self.drop_until(bookmark, true, context);
                    }
                    ErrorKind::HeadSent => self.changes.drop_what_needs_a_cookie(),
                    _ => return (Err(error), false),
                }
                return (Err(error), !self.changes.is_empty());
            }
        };
        match lost {
            Some(lost) => self.mark_lost(lost),
            None => {
                (self.loaded, self.lost) = (loaded, None);
                self.cookie = cookie.or(self.cookie.take());
            }
        }
        if plan.ends() {
            self.others.clear();
        }
        if let Some(failure) = failure {
            self.fail(&failure, bookmark, context);
            return (Err(failure), !self.changes.is_empty());
        }
        if failed {
            // Nothing else was committed; the end of the request drops it.
            self.changes.forget_end(bookmark);
            return (Ok(()), false);
        }
        self.changes.forget(bookmark);
        for (key, seen) in std::mem::take(&mut self.taken_early) {
            self.changes.delta.taken_early(&key, seen);
        }
        if self.changes.is_empty() {
            self.changes.delta.discard();
            self.is_stale = false;
            return (Ok(()), false);
        }
        // The values that the view stands on are others now.
        self.changes.delta.mark();
        (Ok(()), true)
    }

    /// What was to be committed, up to a bookmark, failed for good, and so does the response.
    fn fail(&mut self, error: &Error, bookmark: u64, context: Context<'_>) {
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
    fn mark_lost(&mut self, lost: Lost) {
        self.lost = Some(lost);
        self.loaded = None;
        self.cookie = None;
    }
}

impl Drop for Inner {
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
