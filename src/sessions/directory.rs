//! Lists, counts, limits and revokes the sessions of a principal.
//!
//! A principal's directory is a separate record in the same store as the sessions, and uses the same four
//! commands. A signed-in session is listed in the directory before its cookie is sent, so every signed-in
//! session that a browser can use is listed. A session that is to be revoked is first marked in the
//! directory, and then its record is deleted. If the process dies between these steps, the next use of the
//! directory deletes the record.

use std::fmt;
use std::sync::Arc;

use time::OffsetDateTime;

use crate::budget::Budget;
use crate::commands::Commands;
use crate::completion::{Driver, run_to_completion};
use crate::directory::DirectoryHandle;
use crate::directory::revoke::RevocationTarget;
use crate::error::{Error, ErrorKind, Result};
use crate::record::sign_in::{SignIn, checked_principal};
use crate::record::token::SessionId;
use crate::session::Session;
use crate::settings::{DirectoryMode, Sessions};

/// Lists, counts, limits and revokes the sessions of one principal.
///
/// [`Sessions::of`] returns the directory of any principal, and [`Session::directory`] returns that of the
/// signed-in user. Each method call waits for the store for at most the configured
/// [timeout](crate::Builder::timeout).
///
/// # Errors
///
/// The methods that use the store fail with:
///
/// - [`ErrorKind::NoDirectory`] if the [directory](crate::Builder::directory) is turned off;
/// - [`ErrorKind::InvalidPrincipal`] if the principal is empty or longer than 1024 bytes;
/// - [`ErrorKind::Corrupt`] if the directory record cannot be decoded. The record is left unchanged, and an
///   event reports its key;
/// - the store errors that [`Session::save`] describes, for example [`ErrorKind::Unavailable`] if the store
///   cannot be reached.
///
/// # Guarantees
///
/// - Unless the store loses the directory record, every signed-in session whose cookie was sent is listed
///   while it is alive, even if processes crash between any two commands. If the process dies before the
///   cookie is sent, an unlisted record may remain. No request can use that record, and the store removes it
///   after its idle timeout.
/// - When [`revoke_all`](Self::revoke_all) or another revocation returns without an error, the revoked
///   sessions have ended. No request in progress can restore them, for example with a rotation or a slow
///   save.
/// - If a process crashes in the middle of an operation, the next use of the directory completes it.
///
/// Memcached may evict records. If it evicts a directory record, each session that was listed there stays
/// valid but unlisted until it ends, or until a new sign-in, a step-up or a longer lifetime in that session
/// lists it again. If this is not acceptable, use [`DirectoryMode::Strict`], in which a session is valid only
/// while it is listed.
///
/// # Cost
///
/// A sign-in sends two commands for the directory: a load and a write. Shortly after
/// [`begin_sign_in`](Self::begin_sign_in), a sign-in sends only the write if the directory is below the limit
/// and has not changed in the meantime. If the request had no session, the load is sent at the same time as
/// the new session's record, so the whole sign-in takes three commands in two round trips. If such a sign-in
/// is rejected, one more command deletes the new session's record.
///
/// Ended sessions stay in the directory until it is listed or the limit is reached. A sign-in that reaches
/// the limit checks whether listed sessions have ended. Each check loads the whole record of one session. If
/// the record is missing, two more commands make sure that the session has ended and cannot be created. Under
/// `Reject` and `Allow`, the sign-in checks 16 sessions at a time until there is room. Under `EvictOldest`,
/// it checks only 16 sessions. An ended session that is not among them still counts, so the oldest live
/// session may be revoked in its place. For this check, a session has ended only once the store no longer has
/// its record; no process's clock is used.
///
/// After each change, the store keeps a directory record for five minutes more than the longest of the
/// following: the absolute timeouts of its sessions, the configured absolute timeout, and one hour.
#[doc(alias("SessionRegistry", "FindByIndexNameSessionRepository"))]
#[derive(Clone)]
pub struct Directory {
    pub(super) sessions: Sessions,
    pub(super) principal: Arc<str>,
    current: Option<SessionId>,
    /// The actor that uses the directory on behalf of the principal, as reported in events.
    pub(super) actor: Option<Arc<str>>,
}

/// Describes a session in its principal's directory.
///
/// A listed session contains no secret. It serialises to JSON with each field under its name, and with times
/// in RFC 3339 format, in UTC and whole seconds.
#[doc(alias = "SessionInformation")]
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedSession {
    /// The session id, for [`Directory::revoke`] and [`Directory::open`].
    pub id: SessionId,
    /// The time at which the session was created. The session may have been anonymous then.
    pub created: OffsetDateTime,
    /// The time at which the user last authenticated in the session, as in [`Session::authenticated_at`].
    pub signed_in_at: OffsetDateTime,
    /// The time at which the session was last used, accurate to within the [refresh
    /// threshold](crate::Lifetime::refresh_after). Once the session is so close to its absolute timeout that
    /// a use no longer extends it, reads are no longer recorded.
    pub last_seen: OffsetDateTime,
    /// The time at which the session expires if it is not used again, as in [`Session::expires_at`].
    pub expires_at: OffsetDateTime,
    /// The label that the application gave the session with [`SignIn::label`].
    pub label: Option<Arc<str>>,
    /// `true` for the session on which [`Session::directory`] was called. Always `false` if the directory
    /// comes from [`Sessions::of`].
    pub is_current: bool,
}

/// Reports the result of a revocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Revoked {
    /// The number of live sessions that were revoked.
    pub count: usize,
    /// `true` if the directory is known to be complete. `false` if it was missing, so unlisted sessions may
    /// still be alive.
    ///
    /// A directory is missing if the principal never signed in, if all its sessions ended long ago, or if the
    /// store evicted it. Once a revocation has found the directory missing, `complete` stays `false` for the
    /// configured absolute timeout, because unlisted sessions may be alive until then. A session that was
    /// given a longer lifetime may be alive even longer. In [strict mode](DirectoryMode::Strict), `complete`
    /// is always `true`, because an unlisted session is invalid.
    ///
    /// If a sign-in, a step-up or a longer lifetime creates the directory again after an eviction, the new
    /// directory looks like that of a first sign-in, and `complete` is `true`. If the store may evict
    /// records, rely on this field in strict mode only.
    pub complete: bool,
    /// `true` if the principal had a directory before the revocation. `false` if the principal has not signed
    /// in recently, or if the store evicted the directory. A page for administrators can then point out that
    /// the principal may be misspelt. A revocation creates the directory, so repeating it returns `true`.
    pub found: bool,
}

impl Sessions {
    /// Returns the directory of a principal.
    ///
    /// Use it in pages for administrators, and when an account changes, for example after a password reset.
    /// This call sends no command.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = unsticky::Session::detached();
    /// session.sign_in("alice")?;
    /// session.save().await?;
    /// let sessions = session.sessions();
    /// assert_eq!(sessions.of("alice").list().await?.len(), 1);
    /// assert!(sessions.of("bob").list().await?.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "find_by_principal_name")]
    #[must_use]
    pub fn of(&self, principal: impl AsRef<str>) -> Directory {
        Directory {
            sessions: self.clone(),
            principal: principal.as_ref().into(),
            current: None,
            actor: None,
        }
    }
}

impl Session {
    /// Returns the directory of the signed-in principal, in which this session is
    /// [marked](ListedSession::is_current).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = unsticky::Session::detached();
    /// session.sign_in("alice")?;
    /// session.save().await?;
    /// let listed = session.directory()?.list().await?;
    /// assert!(listed.len() == 1 && listed[0].is_current);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotSignedIn`] if no user is signed in, and [`ErrorKind::Gone`] if this request has
    /// [lost](Session::loss) its session.
    pub fn directory(&self) -> Result<Directory> {
        let principal = self.signed_in()?;
        let (sessions, current) = (self.sessions().clone(), self.id());
        Ok(Directory { sessions, principal, current, actor: None })
    }
}

impl Directory {
    /// Sets the name of the actor that uses the directory on behalf of the principal: an administrator, a
    /// support desk or a job.
    ///
    /// Under every [`Audit`](crate::Audit) setting, the `actor` field of the `revoked`, `all_revoked` and
    /// `opened` events contains this name, or `-` if there is none. The name is truncated to 200 characters,
    /// and control characters in it are replaced.
    ///
    /// The name has no effect on permissions. Before you use the directory, check that the actor is permitted
    /// to do so.
    ///
    /// ```
    /// # #[cfg(feature = "memory")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use unsticky::{Result, Sessions};
    ///
    /// /// Ends all sessions of an account that an administrator disables.
    /// async fn disable(sessions: &Sessions, account: &str, administrator: &str) -> Result<usize> {
    ///     Ok(sessions.of(account).by(administrator).revoke_all().await?.count)
    /// }
    ///
    /// # use unsticky::exchange::Exchange;
    /// let sessions = Sessions::builder(unsticky::connect("memory:")?).build()?;
    /// # let exchange = Exchange::begin(&sessions, [""], None);
    /// # let session = exchange.handle().session().await?;
    /// # session.sign_in("alice")?;
    /// # session.save().await?;
    /// // Alice is signed in once.
    /// assert_eq!(disable(&sessions, "alice", "carol@support").await?, 1);
    /// # Ok(())
    /// # }
    /// # #[cfg(not(feature = "memory"))]
    /// # fn main() {}
    /// ```
    #[doc(alias("on_behalf_of", "audit_actor"))]
    #[must_use]
    pub fn by(self, actor: impl Into<Arc<str>>) -> Self {
        Self { actor: Some(actor.into()), ..self }
    }

    /// Returns the live sessions, with the most recent sign-in first.
    ///
    /// This method loads the directory with one command, and then loads all listed sessions concurrently,
    /// with one command per session. If a session has ended and its sign-in is more than seven minutes old,
    /// two more commands confirm that it has ended. A final command removes all such sessions from the
    /// directory.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = unsticky::Session::detached();
    /// session.sign_in("alice")?;
    /// session.save().await?;
    /// let listed = session.directory()?.list().await?;
    /// assert_eq!(Some(listed[0].id), session.id());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The errors [that all methods share](Directory#errors).
    #[doc(alias = "get_all_sessions")]
    pub async fn list(&self) -> Result<Vec<ListedSession>> {
        let alive = self.handle(&self.budget(), None)?.list().await?;
        let listed = alive.into_iter().map(|(loaded, label)| {
            let clocks = &loaded.record.header.clocks;
            ListedSession {
                id: loaded.id,
                created: clocks.created.to_time_or_last(),
                signed_in_at: clocks.authenticated.unwrap_or(clocks.created).to_time_or_last(),
                last_seen: clocks.last_seen.to_time_or_last(),
                expires_at: clocks.deadline().to_time_or_last(),
                label,
                is_current: self.current == Some(loaded.id),
            }
        });
        Ok(listed.collect())
    }

    /// Returns the number of live sessions. Sends the same commands as [`list`](Self::list).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = unsticky::Session::detached();
    /// session.sign_in("alice")?;
    /// session.save().await?;
    /// assert_eq!(session.directory()?.count().await?, 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The errors [that all methods share](Directory#errors).
    pub async fn count(&self) -> Result<usize> {
        self.list().await.map(|list| list.len())
    }

    /// Revokes one of the principal's sessions (ASVS 5.0 7.5.2).
    ///
    /// Returns `false` if the id does not belong to a live session in this directory; sessions of other
    /// principals are never revoked. If the store has lost the directory, [`open`](Self::open) the session
    /// and call [`OpenSession::revoke`](crate::OpenSession::revoke). To end the current request's own
    /// session, call [`Session::sign_out`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = unsticky::Session::detached();
    /// session.sign_in("alice")?;
    /// session.save().await?;
    /// let id = session.id().unwrap();
    /// let sessions = session.sessions();
    /// assert!(!sessions.of("bob").revoke(id).await?);
    /// assert!(sessions.of("alice").revoke(id).await?);
    /// assert_eq!(sessions.of("alice").count().await?, 0);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The errors [that all methods share](Directory#errors). On error, the revocation may be only partly
    /// done. It is safe to call the method again; `false` can then mean that the first call ended the
    /// session.
    #[doc(alias = "expire_now")]
    pub async fn revoke(&self, id: SessionId) -> Result<bool> {
        let directory = self.clone();
        run_to_completion(|driver| async move {
            let revocation = directory
                .handle(&directory.budget(), Some(&driver))?
                .revoke(RevocationTarget::One(id))
                .await?;
            Ok(revocation.ended.contains(&id))
        })
        .await
    }

    /// Revokes all sessions of the principal. Every sign-in that is already [under way](Self::begin_sign_in)
    /// fails.
    ///
    /// Call this when an account is disabled or deleted (ASVS 5.0 7.4.2), when a password is reset (7.4.3),
    /// and when an administrator ends an account's sessions (7.4.5).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = unsticky::Session::detached();
    /// session.sign_in("alice")?;
    /// session.save().await?;
    /// let revoked = session.sessions().of("alice").revoke_all().await?;
    /// assert_eq!(revoked.count, 1);
    /// assert!(session.reload().await.is_err());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The errors [that all methods share](Directory#errors). On error, the revocation may be only partly
    /// done. It is safe to call the method again.
    #[doc(alias = "logout_everywhere")]
    pub async fn revoke_all(&self) -> Result<Revoked> {
        let directory = self.clone();
        run_to_completion(|driver| async move { directory.revoke_all_except(&driver, None).await })
            .await
    }

    /// Revokes all sessions of the principal except `session`, and replaces the secret of `session`.
    ///
    /// Call this after a password or another factor was changed (ASVS 5.0 7.4.3). Requests in progress that
    /// have an older secret of `session` are treated as if another request had signed in, so a copied cookie
    /// becomes useless.
    ///
    /// The changes made to `session` so far are committed first. As with [`revoke_all`](Self::revoke_all),
    /// every sign-in that is already [under way](Self::begin_sign_in) fails.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = unsticky::Session::detached();
    /// session.sign_in("alice")?;
    /// session.save().await?;
    /// let revoked = session.directory()?.revoke_others(&session).await?;
    /// assert_eq!(revoked.count, 0);
    /// session.reload().await?;
    /// assert!(session.is_signed_in());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotSignedIn`] if `session` does not belong to this principal, and [`ErrorKind::Gone`] if
    /// `session` has ended or another request has replaced its secret. In both cases, no session is revoked.
    ///
    /// The other errors are those of [`Session::save`] and those [that all methods share](Directory#errors).
    /// After one of these, the revocation may be only partly done. It is safe to call the method again.
    #[doc(alias = "logout_other_devices")]
    pub async fn revoke_others(&self, session: &Session) -> Result<Revoked> {
        if *session.signed_in()? != *self.principal {
            return Err(Error::new(
                ErrorKind::NotSignedIn,
                "the session belongs to another principal",
            ));
        }
        let (directory, session) = (self.clone(), session.clone());
        run_to_completion(|driver| async move {
            directory.check()?;
            session.supersede(&driver).await?;
            let gone = || directory.sessions.settings().gone("");
            let kept = session.id().ok_or_else(gone)?;
            directory.revoke_all_except(&driver, Some(kept)).await
        })
        .await
    }

    async fn revoke_all_except(&self, driver: &Driver, kept: Option<SessionId>) -> Result<Revoked> {
        let revocation = self
            .handle(&self.budget(), Some(driver))?
            .revoke(RevocationTarget::AllExcept(kept))
            .await?;
        let is_strict = self.sessions.settings().options.directory == DirectoryMode::Strict;
        Ok(Revoked {
            count: revocation.ended.len(),
            complete: revocation.is_complete || is_strict,
            found: revocation.was_found,
        })
    }

    /// Begins a sign-in. Call this before you verify the password.
    ///
    /// If all sessions of the principal, or all but one, are revoked after this call and before the sign-in
    /// is committed, the commit fails with [`ErrorKind::Revoked`]. A slow sign-in with an old password
    /// therefore fails if you revoke the sessions when the password is changed. The sign-in must be committed
    /// within one hour. If the store loses the principal's directory record between the revocation and the
    /// commit, for example by an eviction, the sign-in does not detect the revocation.
    ///
    /// This method sends one command, which usually saves one at the commit: if the same `Sessions` commits
    /// the sign-in within ten seconds and no session has to be revoked to make room, the commit uses the
    /// directory record that this method read. The commit reads the record again only if it has changed. The
    /// [`SignIn`] keeps the record in memory, unless the record is larger than 16 KiB.
    ///
    /// ```
    /// use unsticky::{ErrorKind, Session};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = Session::detached();
    /// let directory = session.sessions().of("alice");
    /// let sign_in = directory.begin_sign_in().await?;
    /// // The password is verified here. Meanwhile, all sessions are revoked.
    /// directory.revoke_all().await?;
    /// session.sign_in_with(sign_in)?;
    /// assert_eq!(session.save().await.unwrap_err().kind(), ErrorKind::Revoked);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The errors [that all methods share](Directory#errors).
    pub async fn begin_sign_in(&self) -> Result<SignIn> {
        let start = self.handle(&self.budget(), None)?.sign_in_start().await?;
        Ok(SignIn { begun: Some(start), ..SignIn::new(&*self.principal) })
    }

    /// Returns the time that one method call may wait for the store.
    pub(super) fn budget(&self) -> Budget {
        Budget::new(self.sessions.settings().options.timeout)
    }

    fn check(&self) -> Result<()> {
        if self.sessions.settings().options.directory == DirectoryMode::Off {
            return Err(Error::new(ErrorKind::NoDirectory, ""));
        }
        checked_principal(&self.principal)
    }

    pub(super) fn handle<'a>(
        &'a self,
        budget: &'a Budget,
        driver: Option<&'a Driver>,
    ) -> Result<DirectoryHandle<'a>> {
        self.check()?;
        let settings = self.sessions.settings();
        let commands = Commands::new(settings, budget);
        let commands = driver.map_or(commands, |driver| commands.driven_by(driver));
        Ok(DirectoryHandle::new(settings, commands, &self.principal).by(self.actor.as_deref()))
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory")
            .field("current", &self.current)
            .field("actor", &self.actor)
            .finish_non_exhaustive()
    }
}
