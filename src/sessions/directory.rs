//! The sessions of a principal: listed, counted, limited and ended.
//!
//! The directory of a principal is a record of its own, in the same store and under the same four
//! verbs. A session is entered there before its cookie is sent, so every session that a browser can
//! open is listed; what is to end is marked there before it is deleted, so whoever reads the directory
//! next finishes what a process that died has left.

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

/// The sessions of one principal; see [`Sessions::of`] and [`Session::directory`].
///
/// Every method has the configured [timeout](crate::Builder::timeout) to itself, and fails with
/// [`ErrorKind::NoDirectory`] where the [directory](crate::Builder::directory) is turned off, with
/// [`ErrorKind::InvalidPrincipal`] for a principal that no session can have, with [`ErrorKind::Corrupt`] where
/// the directory cannot be decoded (it stays as it is; the event names its key), and otherwise as
/// [`Session::save`] does.
///
/// # What is promised
///
/// - Every session of a principal whose cookie was sent is listed while it lives, also where processes die
///   between any two commands. A sign-in that dies before may leave a record that is not listed: nobody
///   can open it, and the store drops it after its idle timeout.
/// - What [`revoke_all`](Self::revoke_all) and the others have ended when they return is dead, whatever
///   was under way: a sign-in, a rotation, a slow save, a refresh.
/// - What a process that died has left half done is finished by whoever uses the directory next.
///
/// Memcached evicts. Where it has evicted a directory, the sessions on it go on without being listed,
/// until they end by themselves or sign in again. Where that is not good enough,
/// [`DirectoryMode::Strict`] makes a session valid only while it is listed.
///
/// # What it costs
///
/// A sign-in sends two more commands, a load and a write, and only the write shortly after
/// [`begin_sign_in`](Self::begin_sign_in), if the directory is below the limit and has not changed since.
/// Without a session before, the load is sent together with the new session's record: three commands in
/// two round trips. A sign-in that is refused sends one more, to delete that record.
///
/// Sessions that have ended stay in the directory until it is listed, or until the limit is reached. A
/// sign-in that finds the limit reached looks whether sessions have ended, with one load of the whole
/// record each: under `EvictOldest` at up to 16 of them, under `Reject` and `Allow` at 16 at a time until
/// there is room. Under `EvictOldest` with a limit over 16, a session that has ended and is not among
/// those looked at still counts, so the oldest one may be revoked although another had ended. A session
/// counts until the store has removed its record, whatever a process's clock says.
///
/// The store keeps a directory for the longest absolute timeout that a session in it has, or the configured
/// one, and at least an hour, from its last change on; and five minutes longer.
#[doc(alias("SessionRegistry", "FindByIndexNameSessionRepository"))]
#[derive(Clone)]
pub struct Directory {
    pub(super) sessions: Sessions,
    pub(super) principal: Arc<str>,
    current: Option<SessionId>,
    /// Who acts on behalf of the principal.
    pub(super) actor: Option<Arc<str>>,
}

/// A session in its principal's directory. It holds nothing secret, and can be answered as JSON: all fields
/// under their names, the times as RFC 3339 in UTC and whole seconds.
#[doc(alias = "SessionInformation")]
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedSession {
    /// The public id, for [`Directory::revoke`].
    pub id: SessionId,
    /// When the session began, perhaps with nobody signed in.
    pub created: OffsetDateTime,
    /// When its principal proved the last time who they are.
    pub signed_in_at: OffsetDateTime,
    /// When it was last used, to within the
    /// [refresh threshold](crate::Lifetime::refresh_after).
    pub last_seen: OffsetDateTime,
    /// When it ends if nobody uses it again.
    pub expires_at: OffsetDateTime,
    /// What the application called it.
    pub label: Option<Arc<str>>,
    /// Whether it is the one whose [`directory`](Session::directory) was asked for.
    pub is_current: bool,
}

/// What a revocation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Revoked {
    /// How many sessions were alive and are no more.
    pub count: usize,
    /// Whether these were all there were, as far as the directory can tell. `false` where there was none:
    /// nobody signed in, all entries ended long ago, or the store has evicted it; and for the configured
    /// absolute timeout after that, in which sessions that are not listed may still live (longer only
    /// where one was given a longer lifetime of its own). Always true in
    /// [strict mode](DirectoryMode::Strict), where what is not listed is not valid.
    ///
    /// A directory that was evicted, and begun anew by a sign-in before anything was revoked, cannot be
    /// told from a first one: where the store evicts, only strict mode is certain.
    pub complete: bool,
    /// Whether there was a directory of this principal. `false`: nobody signed in under this name lately, or
    /// the store has evicted the directory. An operator's page can say so: perhaps the name is misspelt.
    pub found: bool,
}

impl Sessions {
    /// The sessions of a principal: for administrators, and for what happens to an account, such as a
    /// changed password.
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
    /// The sessions of the one who is signed in, this one marked.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotSignedIn`] where nobody is.
    pub fn directory(&self) -> Result<Directory> {
        let principal = self.signed_in()?;
        let (sessions, current) = (self.sessions().clone(), self.id());
        Ok(Directory { sessions, principal, current, actor: None })
    }
}

impl Directory {
    /// The same directory, used by somebody on behalf of the principal: an administrator, a support desk or a
    /// job. The events `revoked` and `opened` tell it in their field `actor`, under every
    /// [`Audit`](crate::Audit) setting, cut to 200 characters and with control characters replaced. Default:
    /// nobody, which they tell as `-`.
    ///
    /// It is told as it is given here and permits nothing: whether somebody may do this is for the application
    /// to decide before.
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

    /// The sessions that are alive, the newest sign-in first: one command for the directory, and one for
    /// each session in it, all at once. A session that has ended, and whose sign-in is more than seven
    /// minutes old, takes two more commands to make sure of that, and one for all of them to remove them
    /// from the directory.
    ///
    /// # Errors
    ///
    /// As [above](Self).
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

    /// How many sessions live; at the cost of [`list`](Self::list).
    ///
    /// # Errors
    ///
    /// As [above](Self).
    pub async fn count(&self) -> Result<usize> {
        self.list().await.map(|list| list.len())
    }

    /// Ends one of the principal's sessions, and nobody else's: false where the id is not that of a
    /// session that is listed here and lives (ASVS 5.0 7.5.2). One that is no longer listed because the store
    /// has lost the directory is ended by [`open`](Self::open) and
    /// [`OpenSession::revoke`](crate::OpenSession::revoke).
    ///
    /// To end the session of the request itself, use [`Session::sign_out`].
    ///
    /// # Errors
    ///
    /// As [above](Self). The end may be decided and not yet carried out then: call it again.
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

    /// Ends all of the principal's sessions, and every sign-in that has
    /// [begun](Self::begin_sign_in) before: for an account that was disabled or deleted, and for a
    /// password that was reset (ASVS 5.0 7.4.2 and 7.4.5).
    ///
    /// # Errors
    ///
    /// As [above](Self). The end may be decided and not yet carried out then: call it again.
    #[doc(alias = "logout_everywhere")]
    pub async fn revoke_all(&self) -> Result<Revoked> {
        let directory = self.clone();
        run_to_completion(|driver| async move { directory.revoke_all_except(&driver, None).await })
            .await
    }

    /// Revokes all of the principal's sessions but this one, which gets a new secret: after a password or
    /// another factor was changed (ASVS 5.0 7.4.3). Requests that are under way with an older secret of
    /// this session find it signed in anew, so a copied cookie is worth nothing from then on.
    ///
    /// What `session` has changed so far is committed first. Sign-ins that have
    /// [begun](Self::begin_sign_in) before fail, as for [`revoke_all`](Self::revoke_all).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotSignedIn`] if `session` is not this principal's, [`ErrorKind::Gone`] if it ended
    /// or another request replaced its secret (no session is revoked then), the errors of
    /// [`Session::save`], and those [above](Self). On such an error the revocation may be only partly
    /// done; call it again, it is idempotent.
    #[doc(alias = "logout_other_devices")]
    pub async fn revoke_others(&self, session: &Session) -> Result<Revoked> {
        if *session.signed_in()? != *self.principal {
            return Err(Error::new(ErrorKind::NotSignedIn, "the session is not this principal's"));
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

    /// Begins a sign-in before the password is verified: if all of the principal's sessions are ended
    /// meanwhile, its commit fails with [`ErrorKind::Revoked`], so a password that has just been
    /// changed lets nobody in who was slow. One command, which the sign-in saves later: if it is
    /// committed within ten seconds by the same `Sessions`, and no session has to end for it, it starts
    /// from the directory as it was read here, and reads it again only if it has changed. The [`SignIn`]
    /// holds that record in memory, unless it is larger than 16 KiB.
    ///
    /// It has an hour to its end. A store that evicts the directory between the revocation and the
    /// sign-in forgets the revocation for it.
    ///
    /// # Errors
    ///
    /// As [above](Self).
    pub async fn begin_sign_in(&self) -> Result<SignIn> {
        let start = self.handle(&self.budget(), None)?.sign_in_start().await?;
        Ok(SignIn { begun: Some(start), ..SignIn::new(&*self.principal) })
    }

    /// The time that a method has.
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
