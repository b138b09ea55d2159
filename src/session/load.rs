//! The record read: once for all handles of a request, and again on demand.

use std::sync::Arc;

use crate::commands::Commands;
use crate::completion::Driver;
use crate::error::Result;
use crate::event;
use crate::load::{self, Lookup};
use crate::record::authority::SecretStatus;
use crate::record::loaded::{Loaded, Lost};
use crate::record::token::Token;
use crate::session::Session;

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
        let loaded = match load::look_up(settings, commands, token.id, true).await? {
            Lookup::Found(loaded) => loaded,
            Lookup::Missing => {
                event::unknown_session(token.id);
                return Ok(Found::Nothing);
            }
            // The visitor is anonymous.
            Lookup::Corrupt => return Ok(Found::Nothing),
        };
        let header = &loaded.record.header;
        if header.clocks.expired(settings.now()) {
            event::expired(token.id);
            return Ok(Found::Nothing);
        }
        if !header.digest.matches(&token.secret, settings.cookie.name()) {
            event::wrong_secret(token.id);
            return Ok(Found::WrongSecret);
        }
        let is_listed = settings.is_listed(commands, &loaded).await?;
        Ok(if is_listed { Found::Valid(loaded) } else { Found::Nothing })
    }

    /// Reads the record again; see [`Session::reload`].
    pub(super) async fn reread(&self, driver: &Driver) -> Result<()> {
        let _one_at_a_time = self.lock_commits(driver).await?;
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
}
