//! One of a principal's sessions outside a request.

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

/// One of a principal's sessions, outside any request: for background jobs, for a back-channel logout and
/// for support. [`Directory::open`] returns it.
///
/// Its values can be read and changed, and it can be revoked. It cannot sign in, rotate the secret, send a
/// cookie or extend the session: nobody has used the session just because a job has.
///
/// A handler that spawns a job calls [`Session::save`](crate::Session::save) first: changes of the request that
/// are committed later could overwrite those of the job.
///
/// It acts for the principal instead of by a secret, so a rotation, a step-up or another sign-in of the same
/// principal on the session does not get in its way.
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
///     // The user may have signed out meanwhile.
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
    /// Opens one of the principal's sessions outside a request; `None` if the id is not that of a session of
    /// this principal that lives, and in [strict mode](crate::DirectoryMode::Strict) is listed. Does not
    /// count as use of the session.
    ///
    /// One command; two in strict mode. The event `opened` tells it, and [who](Self::by) did it.
    ///
    /// # Errors
    ///
    /// As [above](Self).
    #[doc(alias("find_by_id", "get_session"))]
    pub async fn open(&self, id: SessionId) -> Result<Option<OpenSession>> {
        let Some(loaded) = self.handle(&self.budget(), None)?.open(id).await? else {
            return Ok(None);
        };
        let who = self.sessions.settings().who_of(&loaded);
        event::opened(id, who, Actor(self.actor.as_deref()));
        Ok(Some(OpenSession { directory: self.clone(), loaded }))
    }

    /// Ends a session of this principal, whether it is listed or the directory that listed it was lost.
    pub(crate) async fn revoke_owned(self, id: SessionId) -> Result<bool> {
        run_to_completion(|driver| async move {
            self.handle(&self.budget(), Some(&driver))?.revoke_owned(id).await
        })
        .await
    }
}

impl OpenSession {
    /// The public id.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.loaded.id
    }

    /// Who is signed in: the principal for whom the session was opened.
    #[must_use]
    pub fn principal(&self) -> Arc<str> {
        self.directory.principal.clone()
    }

    /// When the session began, perhaps with nobody signed in.
    #[must_use]
    pub fn created(&self) -> OffsetDateTime {
        self.clocks().created.to_time_or_last()
    }

    /// When its principal proved the last time who they are.
    #[must_use]
    pub fn signed_in_at(&self) -> OffsetDateTime {
        let clocks = self.clocks();
        clocks.authenticated.unwrap_or(clocks.created).to_time_or_last()
    }

    /// When it was last used, to within the [refresh threshold](crate::Lifetime::refresh_after).
    #[must_use]
    pub fn last_seen(&self) -> OffsetDateTime {
        self.clocks().last_seen.to_time_or_last()
    }

    /// When it ends if nobody uses it again.
    #[must_use]
    pub fn expires_at(&self) -> OffsetDateTime {
        self.clocks().deadline().to_time_or_last()
    }

    fn clocks(&self) -> &Clocks {
        &self.loaded.record.header.clocks
    }

    /// The value of a key, as it was when the session was opened or changed here last; `None` where there
    /// is none.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Decode`](crate::ErrorKind::Decode) if the stored value is not a `T`; it stays as it is.
    pub fn get<K: AsKey>(&self, key: K) -> Result<Option<K::Value>>
    where
        K::Value: DeserializeOwned,
    {
        let name = key.name();
        let value = self.loaded.record.values.get(name);
        value.map(|value| decoded(name, &value.bytes)).transpose()
    }

    /// Whether there is a value of this key, of whatever type.
    #[must_use]
    pub fn contains(&self, key: impl AsKey) -> bool {
        self.loaded.record.values.get(key.name()).is_some()
    }

    /// The names of all keys that have a value, in ascending order, as [`Session::keys`](crate::Session::keys).
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        View::default().keys(&self.loaded.record.values)
    }

    /// The JSON of a value as it is stored; `None` where the key has none. It is neither parsed nor changed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Decode`](crate::ErrorKind::Decode) if the stored bytes are not UTF-8; they stay as they are.
    pub fn json(&self, name: &str) -> Result<Option<String>> {
        let value = self.loaded.record.values.get(name);
        value.map(|value| json::text(name, &value.bytes)).transpose()
    }

    /// Changes values: decided on the record as it is stored at this moment, and stored before it returns.
    /// `function` is as for [`Session::transact`](crate::Session::transact), and so are its limits. Requests
    /// of the session that are under way lose nothing by it.
    ///
    /// Two commands; three in [strict mode](crate::DirectoryMode::Strict).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Gone`](crate::ErrorKind::Gone) if the session has ended, or is not this principal's or
    /// not listed any more, and otherwise those of [`Session::transact`](crate::Session::transact). Nothing
    /// was written then, unless it is [`ErrorKind::OutcomeUnknown`](crate::ErrorKind::OutcomeUnknown).
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
                // Nobody knows how long ago it was opened.
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

    /// Ends the session, as [`Directory::revoke`] does, and also if the directory that listed it was lost:
    /// when it returns without an error, the session has ended. `false` if it had ended before; one that has
    /// expired counts until the store has removed its record, as it may live by another process's clock.
    ///
    /// # Errors
    ///
    /// Those of [`Directory::revoke`].
    pub async fn revoke(self) -> Result<bool> {
        self.directory.revoke_owned(self.loaded.id).await
    }
}

impl fmt::Debug for OpenSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenSession").field("id", &self.id()).finish_non_exhaustive()
    }
}
