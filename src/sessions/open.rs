//! Access to a principal's session outside a request.

use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use time::OffsetDateTime;

use crate::commands::Commands;
use crate::commit::{Commit, Committed};
use crate::completion::run_to_completion;
use crate::error::Result;
use crate::event::{self, Actor};
use crate::record::delta::View;
use crate::record::json::{self, decoded};
use crate::record::key::AsKey;
use crate::record::lifetime::Clocks;
use crate::record::loaded::Loaded;
use crate::record::plan::Plan;
use crate::record::token::SessionId;
use crate::record::transaction::Transaction;
use crate::sessions::directory::Directory;

/// Gives access to a principal's session outside a request, for example for background jobs, back-channel
/// logout and support. [`Directory::open`] returns it.
///
/// You can read and change the session's values, and revoke the session. You cannot sign in, rotate the
/// secret or send a cookie. Access does not count as use of the session, so it does not extend the idle
/// timeout.
///
/// If a handler spawns a job, call [`Session::save`](crate::Session::save) first: changes that the request
/// commits later could overwrite the job's changes.
///
/// An open session acts for the principal and does not depend on the session's secret. It therefore keeps
/// working if the session is rotated or stepped up, or if the same principal signs in again.
///
/// ```
/// # #[cfg(feature = "memory")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use unsticky::{Key, Result, SessionId, Sessions};
///
/// const REPORT: Key<String> = Key::new("report");
///
/// /// Runs after the response, in a task of its own.
/// async fn make_report(sessions: Sessions, principal: &str, id: SessionId) -> Result<bool> {
///     let report = "/reports/7.pdf".to_owned();
///     // The user may have signed out in the meantime.
///     let Some(mut session) = sessions.of(principal).open(id).await? else { return Ok(false) };
///     session.transact(move |values| values.insert(REPORT, &report)).await?;
///     Ok(true)
/// }
///
/// # use unsticky::exchange::Exchange;
/// let sessions = Sessions::builder(unsticky::connect("memory:")?).build()?;
/// # let exchange = Exchange::begin(&sessions, [""], None);
/// # let session = exchange.handle().session().await?;
/// # session.sign_in("alice")?;
/// # session.save().await?;
/// # let id = session.id().unwrap();
/// // `id` is the id of one of Alice's sessions, from `Session::id` or `Directory::list`.
/// assert!(make_report(sessions.clone(), "alice", id).await?);
/// let session = sessions.of("alice").open(id).await?.unwrap();
/// assert_eq!(session.get(REPORT)?.as_deref(), Some("/reports/7.pdf"));
/// assert!(sessions.of("bob").open(id).await?.is_none());
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "memory"))]
/// # fn main() {}
/// ```
pub struct OpenSession {
    directory: Directory,
    loaded: Arc<Loaded>,
}

impl Directory {
    /// Opens one of the principal's sessions outside a request.
    ///
    /// Returns `None` if the id does not belong to a live session of this principal; in
    /// [strict mode](crate::DirectoryMode::Strict), the session must also be listed. Opening a session does
    /// not count as use of the session.
    ///
    /// This method sends one command, or two in strict mode. The `opened` event records the access, with the
    /// [actor](Self::by).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = unsticky::Session::detached();
    /// session.sign_in("alice")?;
    /// session.save().await?;
    /// let id = session.id().unwrap();
    /// let open = session.sessions().of("alice").open(id).await?.unwrap();
    /// assert_eq!(open.id(), id);
    /// assert!(session.sessions().of("bob").open(id).await?.is_none());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The errors [that all methods share](Directory#errors).
    #[doc(alias("find_by_id", "get_session"))]
    pub async fn open(&self, id: SessionId) -> Result<Option<OpenSession>> {
        let Some(loaded) = self.handle(&self.budget(), None)?.open(id).await? else {
            return Ok(None);
        };
        let who = self.sessions.settings().who_of(&loaded);
        event::opened(id, who, Actor(self.actor.as_deref()));
        Ok(Some(OpenSession { directory: self.clone(), loaded }))
    }

    /// Revokes a session of this principal, even if the store has lost the directory that listed it.
    pub(crate) async fn revoke_owned(self, id: SessionId) -> Result<bool> {
        run_to_completion(|driver| async move {
            self.handle(&self.budget(), Some(&driver))?.revoke_owned(id).await
        })
        .await
    }
}

impl OpenSession {
    /// Returns the session id.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.loaded.id
    }

    /// Returns the signed-in principal, which is the directory's principal.
    #[must_use]
    pub fn principal(&self) -> Arc<str> {
        self.directory.principal.clone()
    }

    /// Returns the time at which the session was created. The session may have been anonymous then.
    #[must_use]
    pub fn created(&self) -> OffsetDateTime {
        self.clocks().created.to_time_or_last()
    }

    /// Returns the time at which the user last authenticated in the session.
    #[must_use]
    pub fn signed_in_at(&self) -> OffsetDateTime {
        let clocks = self.clocks();
        clocks.authenticated.unwrap_or(clocks.created).to_time_or_last()
    }

    /// Returns the time at which the session was last used, accurate to within the
    /// [refresh threshold](crate::Lifetime::refresh_after). Once the session is so close to its absolute timeout that
    /// a use no longer extends it, reads are no longer recorded.
    #[must_use]
    pub fn last_seen(&self) -> OffsetDateTime {
        self.clocks().last_seen.to_time_or_last()
    }

    /// Returns the time at which the session expires if it is not used again.
    #[must_use]
    pub fn expires_at(&self) -> OffsetDateTime {
        self.clocks().deadline().to_time_or_last()
    }

    fn clocks(&self) -> &Clocks {
        &self.loaded.record.header.clocks
    }

    /// Returns the value of a key, or `None` if the key has no value. The value is the one that was stored
    /// when the session was opened or last changed through this handle.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Decode`](crate::ErrorKind::Decode) if the stored value cannot be decoded as the key's type. The
    /// value is left unchanged.
    pub fn get<K: AsKey>(&self, key: K) -> Result<Option<K::Value>>
    where
        K::Value: DeserializeOwned,
    {
        let name = key.name();
        let value = self.loaded.record.values.get(name);
        value.map(|value| decoded(name, &value.bytes)).transpose()
    }

    /// Returns `true` if the key has a value, of any type.
    #[must_use]
    pub fn contains(&self, key: impl AsKey) -> bool {
        self.loaded.record.values.get(key.name()).is_some()
    }

    /// Returns the names of all keys that have a value, in ascending order, like
    /// [`Session::keys`](crate::Session::keys).
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        View::default().keys(&self.loaded.record.values)
    }

    /// Returns the stored JSON of a value unchanged, or `None` if the key has no value.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Decode`](crate::ErrorKind::Decode) if the stored bytes are not UTF-8. They are left unchanged.
    pub fn json(&self, name: &str) -> Result<Option<String>> {
        let value = self.loaded.record.values.get(name);
        value.map(|value| json::text(name, &value.bytes)).transpose()
    }

    /// Runs `function` on the stored values and stores its changes before returning.
    ///
    /// `function` must meet the same conditions as in [`Session::transact`](crate::Session::transact).
    /// Concurrent requests in the same session lose no changes. This method sends two commands, or three in
    /// [strict mode](crate::DirectoryMode::Strict).
    ///
    /// ```
    /// use unsticky::Key;
    ///
    /// const REPORT: Key<String> = Key::new("report");
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = unsticky::Session::detached();
    /// session.sign_in("alice")?;
    /// session.save().await?;
    /// let mut open = session.directory()?.open(session.id().unwrap()).await?.unwrap();
    /// open.transact(|values| values.insert(REPORT, "/reports/7.pdf")).await?;
    /// assert_eq!(open.get(REPORT)?.as_deref(), Some("/reports/7.pdf"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Gone`](crate::ErrorKind::Gone) if the session has ended, now belongs to a different
    /// principal or, in strict mode, is no longer listed; and the errors of
    /// [`Session::transact`](crate::Session::transact). Nothing was written, unless the error is
    /// [`ErrorKind::OutcomeUnknown`](crate::ErrorKind::OutcomeUnknown).
    pub async fn transact<T, F>(&mut self, function: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&mut Transaction<'_>) -> Result<T> + Send + 'static,
    {
        let (directory, loaded) = (self.directory.clone(), self.loaded.clone());
        let (decided, loaded) = run_to_completion(|driver| async move {
            let settings = directory.sessions.settings();
            let budget = directory.budget();
            let commands = Commands::new(settings, &budget).driven_by(&driver);
            let mut decided = None;
            let result = &mut decided;
            let mut decide = move |values: &mut Transaction<'_>| {
                *result = Some(function(values)?);
                Ok(())
            };
            let mut commit = Commit {
                // The session may have been opened a long time ago.
                outlived: true,
                decide: Some(&mut decide),
                ..Commit::new(settings, commands, Some(loaded))
            };
            let committed = commit.run(Plan::Save { new_secret: false }).await?;
            match (committed, decided) {
                (Committed { failure: None, loaded, .. }, Some(decided)) => Ok((decided, loaded)),
                (Committed { failure, .. }, _) => Err(failure.unwrap_or_else(|| settings.gone(""))),
            }
        })
        .await?;
        if let Some(loaded) = loaded {
            self.loaded = loaded;
        }
        Ok(decided)
    }

    /// Revokes the session like [`Directory::revoke`], even if the store has lost the directory that listed it.
    ///
    /// When this method returns without an error, the session has ended. Returns `false` if the session had
    /// already ended. An expired session counts as live until the store has removed its record, because
    /// another process's clock may differ.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = unsticky::Session::detached();
    /// session.sign_in("alice")?;
    /// session.save().await?;
    /// let open = session.directory()?.open(session.id().unwrap()).await?.unwrap();
    /// assert!(open.revoke().await?);
    /// assert_eq!(session.sessions().of("alice").count().await?, 0);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The errors of [`Directory::revoke`].
    pub async fn revoke(self) -> Result<bool> {
        self.directory.revoke_owned(self.loaded.id).await
    }
}

impl fmt::Debug for OpenSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenSession").field("id", &self.id()).finish_non_exhaustive()
    }
}
