//! Reads the session's record: once for all handles in a request, and again on demand. Also extends the idle
//! timeout for streams.

use std::sync::Arc;

use crate::commands::Commands;
use crate::commit::Commit;
use crate::completion::Driver;
use crate::error::{Error, Result};
use crate::event;
use crate::load::{self, Lookup};
use crate::record::loaded::{Loaded, Loss, Lost, Standing};
use crate::record::token::Token;
use crate::session::Session;

/// The result of looking up a token.
enum Found {
    Valid(Arc<Loaded>),
    /// The session exists, but its secret is not the token's. The browser may hold a newer token.
    WrongSecret,
    Nothing,
}

/// Either the session of the only valid token or the sessions of several valid tokens, and whether there is a
/// stale token.
type FoundSessions = (Option<Arc<Loaded>>, Vec<Arc<Loaded>>, bool);

impl Session {
    /// Reads the record, once for all handles in the request.
    ///
    /// A handle does not wait for another handle's read, because that read may never be polled again. Until
    /// one read has finished, each handle starts its own, and the first result counts.
    ///
    /// Extractors call this method before they pass the session to a handler.
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
            // Another handle's read finished first, so this result is ignored, even if it is an error.
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
            // ASVS 5.0 15.3.7: it is unknown which session the user meant.
            event::several_valid_tokens(several);
        }
        Ok(())
    }

    async fn read(&self, commands: Commands<'_>) -> Result<FoundSessions> {
        let look_up = |token| self.look_up(commands, token);
        let mut tokens = self.0.presented.tokens();
        let found = match (tokens.next(), tokens.next()) {
            // The usual case, handled without a list of futures.
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

    /// Looks up a token's session and checks whether the token is valid.
    async fn look_up(&self, commands: Commands<'_>, token: Token) -> Result<Found> {
        let settings = self.settings();
        let loaded = match load::look_up(settings, commands, token.id, true).await? {
            Lookup::Found(loaded) => loaded,
            Lookup::Missing => {
                event::unknown_session(token.id);
                return Ok(Found::Nothing);
            }
            // Treat the request as anonymous.
            Lookup::Corrupt => return Ok(Found::Nothing),
        };
        let header = &loaded.record.header;
        if header.clocks.expired(settings.now()) {
            event::expired(token.id);
            return Ok(Found::Nothing);
        }
        if !header.digest.matches(&token.secret, settings.cookie.name()) {
            event::wrong_secret(token.id, settings.who_of(&loaded));
            return Ok(Found::WrongSecret);
        }
        let is_listed = settings.is_listed(commands, &loaded).await?;
        Ok(if is_listed { Found::Valid(loaded) } else { Found::Nothing })
    }

    /// Keeps the session alive while a stream or a WebSocket uses it: extends the idle timeout, as a request
    /// does. A touch counts as use even after [`mark_passive`](Self::mark_passive).
    ///
    /// A handle sends at most one write per [`refresh_after`](crate::Lifetime::refresh_after) interval, and
    /// otherwise no command at all, so you can call `touch` as often as you like: for each message, or on a
    /// timer. A touch never extends the absolute timeout and never writes pending changes. No effect on an
    /// unsaved session.
    ///
    /// Most calls send no command, so success does not mean that the session is still valid. To check that,
    /// call [`reload`](Self::reload) first. A timer that calls `reload` but not `touch` detects a sign-out
    /// but still lets an unused connection reach the idle timeout (ASVS 5.0 7.3.1):
    ///
    /// ```
    /// use unsticky::{Loss, Result, Session};
    ///
    /// /// Called on a timer, and for each message from the client (`is_use`). If it returns `Some`, close
    /// /// the connection. If the store fails, continue and check again later.
    /// async fn check(session: &Session, is_use: bool) -> Result<Option<Loss>> {
    ///     let checked = match session.reload().await {
    ///         Ok(()) if is_use => session.touch().await,
    ///         checked => checked,
    ///     };
    ///     match session.loss() {
    ///         // Superseded: the browser has a newer cookie and can connect again.
    ///         // Expired or Ended: the user must sign in again.
    ///         Some(loss) => Ok(Some(loss)),
    ///         None => checked.map(|()| None),
    ///     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<()> {
    /// let session = Session::detached();
    /// session.sign_in("alice")?;
    /// session.save().await?;
    /// assert_eq!(check(&session, true).await?, None);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The request that opens the connection counts as use of the session. If a page reconnects automatically,
    /// call [`mark_passive`](Self::mark_passive) in the handler, so that an open page alone does not keep the
    /// session alive.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Gone`] if the session has ended or another request has replaced its secret, as for
    ///   [`reload`](Self::reload); [`loss`](Self::loss) returns the reason.
    /// - [`ErrorKind::Unavailable`], [`ErrorKind::Refused`], [`ErrorKind::Contended`],
    ///   [`ErrorKind::OutcomeUnknown`], [`ErrorKind::Randomness`]: the timeout was not extended, or it is
    ///   unknown whether it was. The handle is unchanged; call `touch` again.
    /// - [`ErrorKind::Corrupt`] and [`ErrorKind::NewerFormat`] as for [`reload`](Self::reload).
    ///
    /// [`ErrorKind::Gone`]: crate::ErrorKind::Gone
    /// [`ErrorKind::Unavailable`]: crate::ErrorKind::Unavailable
    /// [`ErrorKind::Refused`]: crate::ErrorKind::Refused
    /// [`ErrorKind::Contended`]: crate::ErrorKind::Contended
    /// [`ErrorKind::OutcomeUnknown`]: crate::ErrorKind::OutcomeUnknown
    /// [`ErrorKind::Randomness`]: crate::ErrorKind::Randomness
    /// [`ErrorKind::Corrupt`]: crate::ErrorKind::Corrupt
    /// [`ErrorKind::NewerFormat`]: crate::ErrorKind::NewerFormat
    #[doc(alias("keep_alive", "refresh", "extend"))]
    pub async fn touch(&self) -> Result<()> {
        self.run_to_completion(|session, driver| async move { session.extend(&driver).await }).await
    }

    /// Returns the reason why this request lost its session, or `None` if it has not detected a loss.
    ///
    /// A loss is detected by [`reload`](Self::reload), by a [`touch`](Self::touch) that sends a command, and
    /// by a commit. The first reason found is kept. If this request ends the session itself, for example with
    /// [`sign_out`](Self::sign_out), that is not a loss.
    ///
    /// [`Loss::Expired`] means that the deadline known to this handle has passed. If another request extended
    /// the session beyond that deadline and the user signed out later, this handle still reports `Expired`.
    ///
    /// ```
    /// use unsticky::Loss;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = unsticky::Session::detached();
    /// session.sign_in("alice")?;
    /// session.save().await?;
    /// assert_eq!(session.loss(), None);
    /// session.sessions().of("alice").revoke_all().await?;
    /// assert!(session.reload().await.is_err());
    /// assert_eq!(session.loss(), Some(Loss::Ended));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn loss(&self) -> Option<Loss> {
        self.state().loss
    }

    /// Implements [`Session::touch`].
    async fn extend(&self, driver: &Driver) -> Result<()> {
        let _one_at_a_time = self.lock_commits(driver).await?;
        let Some(loaded) = self.not_lost()? else { return Ok(()) };
        let budget = self.budget();
        let commands = Commands::new(self.settings(), &budget).driven_by(driver);
        let commit = Commit::new(self.settings(), commands, Some(loaded.clone()));
        let standing = Commit { is_activity: true, ..commit }.touch(loaded.clone()).await;
        self.record_store_time(&budget);
        match standing? {
            Standing::Valid(newer) if Arc::ptr_eq(&newer, &loaded) => Ok(()),
            Standing::Valid(newer) => {
                let mut state = self.state();
                state.loaded = Some(newer);
                state.changes.delta.mark();
                drop(state);
                // If a change fails here, it fails again at the next commit, which reports it.
                let _ = self.rebase(|_, _| ());
                Ok(())
            }
            Standing::Lost { is_gone } => Err(self.lose(loaded, is_gone)),
        }
    }

    /// Implements [`Session::reload`].
    pub(super) async fn reread(&self, driver: &Driver) -> Result<()> {
        let _one_at_a_time = self.lock_commits(driver).await?;
        let Some(loaded) = self.not_lost()? else { return Ok(()) };
        let newer = match self.read_again(&loaded).await? {
            Standing::Valid(newer) => newer,
            Standing::Lost { is_gone } => return Err(self.lose(loaded, is_gone)),
        };
        let mut state = self.state();
        if state.head_sent {
            // The record just read shows the outcome of an in-doubt write.
            state.failed = None;
        }
        state.loaded = Some(newer);
        state.changes.delta.mark();
        drop(state);
        self.rebase(|_, _| ())
    }

    /// Returns this request's session, if it has one, or an error if the session has been lost.
    fn not_lost(&self) -> Result<Option<Arc<Loaded>>> {
        let (loaded, is_lost) = {
            let state = self.state();
            (state.loaded.clone(), state.lost.is_some())
        };
        if is_lost { Err(self.settings().gone("")) } else { Ok(loaded) }
    }

    /// Marks the session as lost and drops its pending changes. Returns the error to report.
    fn lose(&self, session: Arc<Loaded>, is_gone: bool) -> Error {
        let gone = self.settings().gone("");
        let context = self.context();
        let mut state = self.state();
        // Flash messages alone do not make a request fail: they are dropped at its end, with an event.
        let pending = state.changes.pending();
        let matters = pending > state.changes.delta.messages() || (state.head_sent && pending > 0);
        let would_change = matters && state.would_change(context) > 0;
        if matters {
            state.fail(&gone, u64::MAX, context);
        }
        state.mark_lost(Lost { session: session.clone(), is_gone }, context);
        state.changes.delta.mark();
        drop(state);
        if would_change {
            event::gone(session.id, self.settings().who_of(&session));
        }
        // Messages stored in the lost session are for a different page. No update function is left, so this
        // cannot fail.
        let _ = self.rebase(|_, _| ());
        gone
    }

    /// Reads the current state of the session.
    async fn read_again(&self, loaded: &Loaded) -> Result<Standing> {
        let budget = self.budget();
        let read = self.read_again_in(Commands::new(self.settings(), &budget), loaded).await;
        self.record_store_time(&budget);
        read
    }

    async fn read_again_in(&self, commands: Commands<'_>, loaded: &Loaded) -> Result<Standing> {
        let settings = self.settings();
        let found = loaded.reread(commands).await?;
        let standing = Standing::of(found, settings.now());
        if let Standing::Valid(newer) = &standing
            && !settings.is_listed(commands, newer).await?
        {
            return Ok(Standing::Lost { is_gone: true });
        }
        Ok(standing)
    }
}
