//! The changes committed: in the handler, at the end of the request, and after it.

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
    /// Commits what was changed so far; after an error the changes are still there, unless they are
    /// known or suspected to be of no use any more.
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
        // Anew: a deadline may have passed meanwhile.
        let context = self.context();
        let (result, is_stale) = self.state().apply_outcome(&start, outcome, context);
        if is_stale {
            // What fails here fails again at the next commit, which reports it.
            let _ = self.rebase(|_, _| ());
        }
        match start.earlier {
            Some(earlier) => Err(earlier),
            None if start.is_cut_short => result.and(Err(head_sent())),
            None => result,
        }
    }

    /// Commits under a new secret behind which nothing older counts; an error where it did not come to
    /// that.
    pub(crate) async fn supersede(&self, driver: &Driver) -> Result<()> {
        let _one_at_a_time = self.lock_commits(driver).await?;
        let authority = |state: &State| state.loaded.as_ref().map(|is| is.authority.clone());
        let before = {
            let mut state = self.state();
            // Under the lock, so that no other commit takes it along.
            state.intend().rotate(Rotation::Superseding);
            // It drops what ends at a sign-in, too.
            state.is_stale = true;
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

    /// Marks the response as begun. What it does not stand for is dropped: of a handler that `failed`, or
    /// whose response is replaced.
    fn close(&self, mut state: StateGuard<'_>, failed: Option<Context<'_>>) -> ResponseEffects {
        let mut discarded = 0;
        if let Some(context) = failed {
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

    /// The end of a request whose response cannot wait for a commit.
    pub(crate) fn close_failed(&self) -> ResponseEffects {
        let context = self.context();
        self.close(self.state(), Some(context))
    }

    /// Commits at the end of a request, and marks the response as begun before any other commit.
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
        // A response that says that something failed stays as it is.
        let result = if failed { Ok(()) } else { result };
        let failed = (failed || result.is_err()).then(|| self.context());
        let closed = self.close(self.state(), failed);
        drop(guard);
        (result, closed)
    }

    /// What a commit at the end of a request comes to; the caller holds the lock.
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

/// What is to be done to a response as it leaves.
pub(crate) struct ResponseEffects {
    pub(crate) cookie: Option<String>,
    /// Whether the session was used.
    pub(crate) used: bool,
}
