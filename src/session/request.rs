//! The life of a session inside one request: read once, committed, closed.

use std::sync::{Arc, PoisonError};

use tokio::time::Instant;

use super::changes::{Changes, Loaded, Standing};
use super::plan::Plan;
use super::token::Token;
use super::{Inner, Session, State};
use crate::commit::{Commit, Committed, Decide, Enrolling, decode};
use crate::config::Sessions;
use crate::error::{Error, ErrorKind, Result};
use crate::event;
use crate::settle::Caller;

/// What the exchange does with a session; handlers never see an unloaded one.
impl Session {
    /// The session of this request that belongs to `sessions`, where several layers are nested.
    pub(crate) fn of(&self, sessions: &Sessions) -> Option<&Self> {
        let mut session = Some(self);
        while let Some(candidate) = session {
            if candidate.0.sessions.is(sessions) {
                return Some(candidate);
            }
            session = candidate.0.outer.as_ref();
        }
        None
    }

    /// Reads the record, once for all handles of the request.
    pub(crate) async fn load(&self) -> Result<()> {
        self.0.loading.get_or_try_init(|| self.read()).await.map(|_| ())
    }

    async fn read(&self) -> Result<()> {
        self.state().used = true;
        if !self.0.presented.has_tokens() {
            return Ok(());
        }
        let (loaded, others) = {
            let time = self.store_time();
            let look_up = |token| self.look_up(time.caller(), token);
            let mut tokens = self.0.presented.tokens();
            match (tokens.next(), tokens.next()) {
                // Nearly always, and without a list of futures.
                (Some(only), None) => (look_up(only).await?, Vec::new()),
                (first, second) => {
                    let tokens = first.into_iter().chain(second).chain(tokens);
                    let found = futures_util::future::try_join_all(tokens.map(look_up)).await?;
                    let mut found: Vec<_> = found.into_iter().flatten().collect();
                    if found.len() > 1 {
                        // ASVS 5.0 15.3.7: which of them the person meant can not be known.
                        event::several_valid_tokens(found.len());
                        (None, found)
                    } else {
                        (found.pop(), Vec::new())
                    }
                }
            }
        };
        let mut state = self.state();
        (state.loaded, state.others) = (loaded, others);
        Ok(())
    }

    /// The session of a token, if the token is valid.
    async fn look_up(&self, caller: Caller<'_>, token: Token) -> Result<Option<Arc<Loaded>>> {
        let settings = self.settings();
        let key = settings.key(token.id);
        let Some(stored) = caller.load(&key).await? else {
            event::unknown_session(token.id);
            return Ok(None);
        };
        let record = match decode(&key, stored.bytes) {
            Ok(record) => record,
            // Reported, left in place, and the visitor is anonymous.
            Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(None),
            Err(error) => return Err(error),
        };
        if !record.header.digest.matches(&token.secret) {
            event::wrong_secret(token.id);
            return Ok(None);
        }
        if record.header.clocks.expired(settings.now()) {
            event::expired(token.id);
            return Ok(None);
        }
        let loaded = Arc::new(Loaded { id: token.id, key, record, version: stored.version });
        Ok(settings.is_listed(caller, &loaded).await?.then_some(loaded))
    }

    /// Reads the record again; see [`Session::reload`].
    pub(super) async fn reread(&self) -> Result<()> {
        let _one_at_a_time = self.0.committing.lock().await;
        let Some(loaded) = self.state().loaded.clone() else { return Ok(()) };
        let settings = self.settings();
        let newer = {
            let time = self.store_time();
            let stored = time.caller().load(&loaded.key).await?;
            let newer = stored.map(|stored| loaded.newer(stored)).transpose()?;
            let newer = newer.filter(|newer| {
                let header = &newer.record.header;
                loaded.record.header.same_sign_in(header) && !header.clocks.expired(settings.now())
            });
            match newer {
                Some(newer) if settings.is_listed(time.caller(), &newer).await? => Some(newer),
                _ => None,
            }
        };
        if let Some(newer) = newer {
            {
                let mut state = self.state();
                state.loaded = Some(newer);
                state.changes.delta.mark();
            }
            return self.rebase(|_, _| ());
        }
        let gone = settings.gone("");
        let mut state = self.state();
        if !state.changes.is_empty() {
            state.changes.discard();
            state.failed = Some(gone.clone());
        }
        state.lose();
        Err(gone)
    }

    /// Begins to use what is left of the request's time for the store.
    fn store_time(&self) -> StoreTime<'_> {
        let started = Instant::now();
        let settings = self.settings();
        let state = self.state();
        // What goes on after the response has no request to be on time for.
        let left = if state.head_sent { settings.timeout } else { state.time_left };
        StoreTime { session: self, started, deadline: started + left }
    }

    /// What is to be done for what was changed so far.
    fn plan(&self, state: &State, failed: bool, decides: bool) -> Plan {
        let settings = self.settings();
        let standing = Standing {
            loaded: state.loaded.as_deref(),
            presented: self.0.presented.is_named(),
            now: settings.now(),
            configured: &settings.lifetime,
            is_activity: state.used && !state.is_passive,
            failed,
            decides,
            lost: state.lost,
        };
        state.changes.plan(&standing)
    }

    /// Commits what was changed so far; after an error the changes are still there, unless they are
    /// known or suspected to be of no use any more.
    pub(super) async fn commit<'d>(
        &self,
        failed: bool,
        decide: Option<&'d mut Decide<'d>>,
    ) -> Result<()> {
        let _one_at_a_time = self.0.committing.lock().await;
        let (earlier, plan, loaded, others, changes, is_activity) = {
            let state = self.state();
            let earlier = state.failed.clone();
            // After a failure nothing is kept any more but an end.
            let failed = failed || earlier.is_some();
            let plan = self.plan(&state, failed, decide.is_some());
            if state.head_sent && plan.sends_token() {
                return Err(Error::new(ErrorKind::HeadSent, ""));
            }
            let (loaded, others) = (state.loaded.clone(), state.others.clone());
            (earlier, plan, loaded, others, state.changes.clone(), !state.is_passive)
        };
        let bookmark = changes.delta.made();
        let settings = self.settings();
        let outcome = {
            let time = self.store_time();
            let caller = time.caller();
            let is_presented = self.0.presented.is_named();
            let commit = Commit {
                settings,
                caller,
                loaded,
                others,
                changes,
                is_activity,
                is_presented,
                decide,
                enrolment: Enrolling::default(),
                before: None,
            };
            commit.run(plan).await
        };
        if let Err(error) = &outcome
            && error.kind() == ErrorKind::OutcomeUnknown
        {
            event::outcome_unknown(error);
        }
        let (result, is_stale) = self.state().accept(outcome, bookmark);
        if is_stale {
            // What fails here fails again at the next commit, which reports it.
            let _ = self.rebase(|_, _| ());
        }
        match earlier {
            Some(earlier) => Err(earlier),
            None => result,
        }
    }

    /// Changes something that the view depends on, and computes the view anew. The functions of
    /// updates run outside the lock: they may use the session, or take their time.
    pub(super) fn rebase(&self, change: impl Fn(&mut Changes, Option<&Loaded>)) -> Result<()> {
        loop {
            let (made, mut changes, loaded) = {
                let state = self.state();
                (state.changes.delta.made(), state.changes.clone(), state.loaded.clone())
            };
            change(&mut changes, loaded.as_deref());
            changes.rebase(loaded.as_deref())?;
            let mut state = self.state();
            if state.changes.delta.made() == made {
                state.changes = changes;
                return Ok(());
            }
        }
    }

    /// Marks the response as begun, and returns the cookie and whether the session was used.
    pub(crate) fn close(&self, failed: bool) -> (Option<String>, bool) {
        let mut state = self.state();
        state.head_sent = true;
        if failed {
            state.changes.discard();
        }
        (state.cookie.take(), state.used)
    }

    /// Whether the end of the request has anything to do.
    pub(crate) fn is_settled(&self, failed: bool) -> bool {
        // What a commit under way leads to is not known yet; there may be a cookie to send.
        if self.0.committing.try_lock().is_err() {
            return false;
        }
        let state = self.state();
        let nothing = (state.loaded.is_none() && state.changes.is_empty())
            || self.plan(&state, failed, false) == Plan::Nothing;
        nothing && (failed || state.failed.is_none())
    }

    /// Commits at the end of a request.
    pub(crate) async fn commit_at_the_end(&self, failed: bool) -> Result<()> {
        match self.commit(failed, None).await {
            // The response says already that something failed.
            Err(_) if failed => Ok(()),
            Err(error) => {
                // What is left is a sign-out that came before a refused sign-in.
                if matches!(error.kind(), ErrorKind::TooManySessions | ErrorKind::Revoked) {
                    let _ = self.commit(true, None).await;
                }
                Err(error)
            }
            result => result,
        }
    }

    /// The handler is no more: it panicked, or its client went away. Nothing is kept but an end.
    pub(crate) fn abandon(self) {
        let (ended, made) = {
            let mut state = self.state();
            state.head_sent = true;
            let ended = state.changes.is_ended();
            let made = if state.changes.is_empty() { 0 } else { state.changes.delta.made() };
            if !ended {
                state.changes.discard();
            }
            (ended, made)
        };
        if ended {
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(async move {
                    let _ = self.commit_at_the_end(true).await;
                    self.state().changes.discard();
                });
            }
        } else if made > 0 {
            event::changes_dropped(made);
        }
    }
}

/// The request's time for the store, while it is being used up.
struct StoreTime<'a> {
    session: &'a Session,
    started: Instant,
    deadline: Instant,
}

impl StoreTime<'_> {
    fn caller(&self) -> Caller<'_> {
        Caller::new(self.session.settings(), self.deadline)
    }
}

impl Drop for StoreTime<'_> {
    fn drop(&mut self) {
        let mut state = self.session.state();
        state.time_left = state.time_left.saturating_sub(self.started.elapsed());
    }
}

impl State {
    /// Takes over what a commit led to, and says whether the view must be computed anew.
    fn accept(&mut self, outcome: Result<Committed>, bookmark: u64) -> (Result<()>, bool) {
        let Committed { loaded, cookie, failure, lost } = match outcome {
            Ok(committed) => committed,
            Err(error) => {
                match error.kind() {
                    // Committing the same once more could apply it twice.
                    ErrorKind::OutcomeUnknown => {
                        self.changes.discard();
                        self.failed = Some(error.clone());
                    }
                    // It was refused: it must not be tried again behind the handler's answer. An end that
                    // was asked for is carried out nevertheless.
                    ErrorKind::TooManySessions | ErrorKind::Revoked => self.changes.keep_end(),
                    _ => {}
                }
                return (Err(error), false);
            }
        };
        if lost {
            self.lose();
        } else {
            self.lost &= loaded.is_none();
            self.loaded = loaded;
            self.cookie = cookie.or(self.cookie.take());
        }
        if let Some(failure) = failure {
            self.changes.discard();
            self.failed = Some(failure.clone());
            return (Err(failure), false);
        }
        self.changes.forget(bookmark);
        if self.changes.is_empty() {
            self.changes.discard();
            return (Ok(()), false);
        }
        // The values that the view stands on are others now.
        self.changes.delta.mark();
        (Ok(()), true)
    }

    /// The session is not this request's any more, and neither is the browser's cookie.
    fn lose(&mut self) {
        self.lost = true;
        self.loaded = None;
        self.cookie = None;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if state.head_sent && !state.changes.is_empty() {
            event::changes_dropped(state.changes.delta.made());
        }
    }
}
