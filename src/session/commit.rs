//! Commits a session's changes: in the handler, at the end of the request, and after the response.

use tokio::runtime::Handle;

use crate::commands::Commands;
use crate::commit::{Commit, Decide};
use crate::completion::{Driver, RunToCompletion, run_to_completion};
use crate::error::{ErrorKind, Result};
use crate::event;
use crate::limits::{REBASE_ATTEMPTS, VIEW_ATTEMPTS};
use crate::record::changes::{Changes, Rotation};
use crate::record::loaded::Loaded;
use crate::record::plan::Plan;
use crate::session::Session;
use crate::session::state::{
    Context, State, StateGuard, changes_on_this_thread, contended, head_sent, reentrant,
};

impl Session {
    /// Commits the changes made so far. After an error the changes stay pending, unless a retry could not
    /// succeed or could apply them twice.
    pub(super) async fn commit<'d>(
        &self,
        driver: &Driver,
        failed: bool,
        decide: Option<&'d mut Decide<'d>>,
    ) -> Result<()> {
        let _one_at_a_time = self.lock_commits(driver).await?;
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
        let budget = self.budget();
        let (start, mut commit) = {
            let mut state = self.state();
            let decides = decide
                .as_deref()
                .is_some_and(|decision| !decision.is_optional() || state.loaded.is_some());
            let start = state.begin_commit(context, failed, decides)?;
            let commands = Commands::new(context.settings, &budget).driven_by(driver);
            let commit = Commit {
                lost: state.lost.clone(),
                others: state.others.clone(),
                changes: state.changes.clone(),
                is_stale: state.is_stale,
                is_activity: !state.is_passive && !start.failed,
                outlived: state.head_sent,
                is_removable: state.is_removable(context),
                decide,
                ..Commit::new(context.settings, commands, state.loaded.clone())
            };
            (start, commit)
        };
        if start.messages_lost > 0 {
            event::flash_dropped(start.messages_lost);
        }
        let outcome = commit.run(start.plan).await;
        self.record_store_time(&budget);
        // Read the clock again, because a deadline may have passed during the commit.
        let context = self.context();
        let (result, is_stale) = self.state().apply_outcome(&start, outcome, context);
        if is_stale {
            // An error here occurs again at the next commit, which returns it.
            let _ = self.rebase(|_, _| ());
        }
        match start.earlier {
            Some(earlier) => Err(earlier),
            None if start.is_cut_short => result.and(Err(head_sent())),
            None => result,
        }
    }

    /// Commits with a new secret, so that requests with an older secret lose the session.
    ///
    /// # Errors
    ///
    /// Fails unless it is certain that the session got a new secret.
    pub(crate) async fn supersede(&self, driver: &Driver) -> Result<()> {
        let _one_at_a_time = self.lock_commits(driver).await?;
        let authority = |state: &State| state.loaded.as_ref().map(|is| is.authority.clone());
        let before = {
            let mut state = self.state();
            // Requested while the commit lock is held, so that no other commit includes the rotation.
            state.intend().rotate(Rotation::Superseding);
            // The rotation also drops the values that do not survive a sign-in, so the view must be
            // recomputed.
            state.is_stale = true;
            authority(&state)
        };
        let committed = self.commit_locked(driver, false, None).await;
        let mut state = self.state();
        // If the commit failed, no session is revoked, so a later commit must not include the rotation.
        state.changes.forget_superseding();
        let after = authority(&state);
        drop(state);
        committed?;
        if after.is_none() || after == before {
            return Err(self.settings().gone("the session did not get a new secret"));
        }
        Ok(())
    }

    /// Makes a change that the view depends on, and recomputes the view. Update functions run without the
    /// lock, because they may read the session or take a long time.
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
                // Unlock before `changes` is dropped: it may hold the application's values.
                drop(state);
                return Ok(());
            }
            drop(state);
            if attempt >= VIEW_ATTEMPTS {
                // Let the other threads that keep changing the session make progress.
                std::thread::yield_now();
            }
        }
        self.state().is_stale = true;
        Err(contended())
    }

    /// Marks the response as sent. Drops the changes if the handler `failed` or its response is replaced by
    /// an error.
    fn close(&self, mut state: StateGuard<'_>, failed: Option<Context<'_>>) -> ResponseEffects {
        let mut discarded = 0;
        if let Some(context) = failed {
            discarded = state.discarded + state.changes_lost(context);
            state.changes.discard();
            state.is_stale = false;
        }
        state.head_sent = true;
        // The response has reported this error.
        state.failed = None;
        let closed = ResponseEffects { cookie: state.cookie.take(), used: state.used };
        drop(state);
        if discarded > 0 {
            event::changes_discarded(discarded);
        }
        closed
    }

    /// Closes a request that needs no commit. Returns `None` if it needs one, if a commit is still under way,
    /// or if the response must report the error of an earlier commit. Changes without an effect are dropped.
    pub(crate) fn close_without_commit(&self, failed: bool) -> Option<ResponseEffects> {
        // A commit under way may still produce a cookie, and its result is not known yet. No commit can begin
        // while the state is locked.
        let is_busy = |state: &State| {
            self.0.committing.try_lock().is_err() || (!failed && state.failed.is_some())
        };
        let mut state = self.state();
        let is_idle = state.changes.is_empty() && state.discarded == 0;
        if is_idle && state.has_no_session() && !is_busy(&state) {
            // The fast path for most requests. It does not read the clock.
            (state.head_sent, state.failed) = (true, None);
            return Some(ResponseEffects { cookie: state.cookie.take(), used: state.used });
        }
        drop(state);
        let context = self.context();
        let mut state = self.state();
        if is_busy(&state) || state.plan(context, failed, false) != Plan::Nothing {
            return None;
        }
        let messages_lost = state.messages_lost(context, Plan::Nothing, failed);
        if !failed && !state.changes.is_empty() {
            state.changes.discard();
        }
        let closed = self.close(state, failed.then_some(context));
        if messages_lost > 0 {
            event::flash_dropped(messages_lost);
        }
        Some(closed)
    }

    /// Closes a request whose response cannot wait for a commit, and drops its changes.
    pub(crate) fn close_failed(&self) -> ResponseEffects {
        let context = self.context();
        self.close(self.state(), Some(context))
    }

    /// Commits at the end of a request, and marks the response as sent before another commit can begin.
    pub(crate) async fn commit_and_close(
        &self,
        driver: &Driver,
        failed: bool,
    ) -> (Result<()>, ResponseEffects) {
        let guard = self.lock_commits(driver).await;
        let result = match &guard {
            Ok(_) => self.commit_at_the_end(driver, failed).await,
            Err(error) => Err(error.clone()),
        };
        // If the handler failed, its response is sent even if the commit failed as well.
        let result = if failed { Ok(()) } else { result };
        let failed = (failed || result.is_err()).then(|| self.context());
        let closed = self.close(self.state(), failed);
        drop(guard);
        (result, closed)
    }

    /// Performs the commit at the end of a request. The caller holds the commit lock.
    async fn commit_at_the_end(&self, driver: &Driver, failed: bool) -> Result<()> {
        let result = self.commit_locked(driver, failed, None).await;
        if let Err(error) = &result
            && !failed
            && matches!(error.kind(), ErrorKind::TooManySessions | ErrorKind::Revoked)
        {
            // The sign-in was refused. Commit the sign-out that came before it, if there is one.
            let _ = self.commit_locked(driver, true, None).await;
        }
        result
    }

    /// Closes a request whose handler panicked or whose client disconnected. Only a sign-out or `destroy` is
    /// still committed.
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

    /// Runs work on this session to completion, even if the returned future is dropped.
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

/// Marks a commit as under way until this guard is dropped, even if a function that the commit calls panics.
struct CommitInProgress<'a>(&'a Session);

impl Drop for CommitInProgress<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.under_way = None;
        state.taken_early.clear();
    }
}

/// What the session adds to a response.
pub(crate) struct ResponseEffects {
    /// The `Set-Cookie` header to send.
    pub(crate) cookie: Option<String>,
    /// `true` if the request used the session.
    pub(crate) used: bool,
}
