//! A sign-in that a handler requests.

use std::sync::{Arc, Weak};
use std::time::Duration;
use std::{fmt, ptr};

use crate::clock::Millis;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Store, StoreKey, Stored};

/// The maximum length of a label, in bytes.
pub(crate) const LABEL_BYTES: usize = 128;

/// The maximum time from a call to `begin_sign_in` to the sign-in's commit. A directory record is therefore
/// kept for at least this long after each write, so that it remembers a revocation of all sessions.
pub(crate) const SIGN_IN_WINDOW: Duration = Duration::from_secs(60 * 60);

/// How long a sign-in may use the directory record that `begin_sign_in` read, without reading the record
/// again.
const YOUNG: Duration = Duration::from_secs(10);

/// The maximum size in bytes of a directory record that a sign-in keeps in memory.
pub(crate) const KEPT_BYTES: usize = 16 * 1024;

/// Identifies the last time that all sessions in a directory, or all but one, were revoked.
pub(crate) type Mark = [u8; 8];

/// The maximum length of a principal in bytes, enough for account ids and email addresses.
const MAX_PRINCIPAL: usize = 1024;

pub(crate) fn checked_principal(principal: &str) -> Result<()> {
    match principal.len() {
        1..=MAX_PRINCIPAL => Ok(()),
        _ => Err(Error::new(ErrorKind::InvalidPrincipal, "")),
    }
}

/// A sign-in with options, for [`Session::sign_in_with`](crate::Session::sign_in_with). It can have a label,
/// and it can begin before the password is verified.
///
/// A `SignIn` from [`Directory::begin_sign_in`](crate::Directory::begin_sign_in) keeps in memory the
/// directory record that was read, unless the record is larger than 16 KiB.
///
/// ```
/// use unsticky::{Result, Session, Sessions};
///
/// # struct Account { id: String }
/// # impl Account { async fn takes(&self, password: &str) -> bool { true } }
/// # async fn look_up(name: &str) -> Option<Account> { None }
/// // Works as a handler in axum and in actix-web.
/// async fn sign_in(session: Session, sessions: Sessions, name: &str, password: &str) -> Result<bool> {
///     // Use the account's stable id, because a name can be typed in several ways.
///     let Some(account) = look_up(name).await else { return Ok(false) };
///     // Begin before the password is verified: if the password is changed and all sessions are revoked during
///     // the sign-in, the commit fails.
///     let sign_in = sessions.of(&account.id).begin_sign_in().await?;
///     if !account.takes(password).await {
///         return Ok(false);
///     }
///     session.sign_in_with(sign_in.label("Firefox on Linux"))?;
///     Ok(true)
/// }
/// # let _ = sign_in;
/// ```
#[derive(Clone)]
pub struct SignIn {
    pub(crate) principal: Arc<str>,
    pub(crate) label: Option<Arc<str>>,
    pub(crate) begun: Option<SignInStart>,
    /// Whether this is a step-up: the signed-in user has authenticated again, so the session must still
    /// exist.
    pub(crate) is_step_up: bool,
}

/// What [`Directory::begin_sign_in`](crate::Directory::begin_sign_in) remembers about the directory.
#[derive(Debug, Clone)]
pub(crate) struct SignInStart {
    /// The directory's mark, or `None` if it had none.
    pub(crate) mark: Option<Mark>,
    pub(crate) at: Millis,
    /// The directory record that was read, unless it is larger than [`KEPT_BYTES`].
    pub(crate) directory: Option<BegunDirectory>,
}

/// The directory record that `begin_sign_in` read.
#[derive(Debug, Clone)]
pub(crate) struct BegunDirectory {
    /// The store from which the record was read. Used only for comparison. Weak, so that a `SignIn` does not
    /// keep the store alive.
    pub(crate) store: Weak<dyn Store>,
    pub(crate) key: StoreKey,
    /// The stored record, or `None` if there was none.
    pub(crate) stored: Option<Stored>,
}

impl SignInStart {
    /// Returns the directory record that was read, provided that it was read within the last ten seconds,
    /// under the same key and from the same store.
    pub(crate) fn young_directory(
        &self,
        store: &Arc<dyn Store>,
        key: &StoreKey,
        now: Millis,
    ) -> Option<&BegunDirectory> {
        let is_young = (self.at..=self.at.plus(YOUNG)).contains(&now);
        self.directory.as_ref().filter(|directory| {
            let is_same_store = ptr::addr_eq(directory.store.as_ptr(), Arc::as_ptr(store));
            is_young && is_same_store && directory.key == *key
        })
    }
}

impl SignIn {
    /// Creates a sign-in that begins when it is committed. For a sign-in that begins before the password is
    /// verified, use [`Directory::begin_sign_in`](crate::Directory::begin_sign_in).
    ///
    /// `principal` is your application's stable id for the account, 1 to 1024 bytes long.
    #[must_use]
    pub fn new(principal: impl AsRef<str>) -> Self {
        let principal = principal.as_ref().into();
        Self { principal, label: None, begun: None, is_step_up: false }
    }

    /// Sets the label that the list of sessions shows for this session, for example the browser or the
    /// location.
    ///
    /// By default, the session keeps the label that it already has, if any. A label is truncated to 128
    /// bytes, at a character boundary, so you can pass a User-Agent unchanged. The list does not escape
    /// labels, so escape them when you put them in a page. If the [directory is turned
    /// off](crate::DirectoryMode::Off), the label is not stored.
    #[must_use]
    pub fn label(self, label: impl AsRef<str>) -> Self {
        let label = label.as_ref();
        let end = (0..=label.len().min(LABEL_BYTES)).rev().find(|end| label.is_char_boundary(*end));
        Self { label: Some(label[..end.unwrap_or(0)].into()), ..self }
    }
}

impl fmt::Debug for SignIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignIn").field("has_begun", &self.begun.is_some()).finish_non_exhaustive()
    }
}

#[cfg(all(test, feature = "memory"))]
mod tests {
    use crate::store::{Kind, MemoryStore};

    use super::*;

    #[test]
    fn begun_directory_is_used_for_ten_seconds_where_it_was_read() {
        let (read_at, store) = (Millis(50_000), Arc::new(MemoryStore::new()) as Arc<dyn Store>);
        let key = |id| StoreKey::new("shop", Kind::Directory, id);
        let directory =
            BegunDirectory { store: Arc::downgrade(&store), key: key("a"), stored: None };
        let start = SignInStart { mark: None, at: read_at, directory: Some(directory) };
        let is_used = |store: &Arc<dyn Store>, id, millis| {
            start.young_directory(store, &key(id), Millis(millis)).is_some()
        };
        for (millis, expected) in [(49_999, false), (50_000, true), (60_000, true), (60_001, false)]
        {
            assert_eq!(is_used(&store, "a", millis), expected, "{millis}");
        }
        assert!(!is_used(&store, "b", 50_000), "another key");
        let other = Arc::new(MemoryStore::new()) as Arc<dyn Store>;
        assert!(!is_used(&other, "a", 50_000), "another store");
        let large = SignInStart { directory: None, ..start.clone() };
        assert!(large.young_directory(&store, &key("a"), read_at).is_none());
    }
}
