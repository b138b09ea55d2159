//! Who signs in, as a request says it.

use std::sync::{Arc, Weak};
use std::time::Duration;
use std::{fmt, ptr};

use crate::clock::Millis;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Store, StoreKey, Stored};

/// How many bytes a label may have.
pub(crate) const LABEL_BYTES: usize = 128;

/// How long a sign-in that was begun may take to its end, and so how long a directory remembers that
/// everything was revoked.
pub(crate) const SIGN_IN_WINDOW: Duration = Duration::from_secs(60 * 60);

/// How long a directory that was read when a sign-in began is acted on without being read again.
const YOUNG: Duration = Duration::from_secs(10);

/// How large a directory's record is at most that a sign-in keeps from its beginning.
pub(crate) const KEPT_BYTES: usize = 16 * 1024;

/// What a directory's last revocation of all sessions is recognised by.
pub(crate) type Mark = [u8; 8];

/// How many bytes a principal may have: account ids and addresses, not documents.
const MAX_PRINCIPAL: usize = 1024;

pub(crate) fn checked_principal(principal: &str) -> Result<()> {
    match principal.len() {
        1..=MAX_PRINCIPAL => Ok(()),
        _ => Err(Error::new(ErrorKind::InvalidPrincipal, "")),
    }
}

/// Who signs in; for [`Session::sign_in_with`](crate::Session::sign_in_with).
///
/// One of [`Directory::begin_sign_in`](crate::Directory::begin_sign_in) holds up to 16 KiB: the directory as
/// it was read.
///
/// ```
/// use unsticky::{Result, Session, Sessions};
///
/// # struct Account { id: String }
/// # impl Account { async fn takes(&self, password: &str) -> bool { true } }
/// # async fn look_up(name: &str) -> Option<Account> { None }
/// // The same in an axum handler and in one of actix-web.
/// async fn sign_in(session: Session, sessions: Sessions, name: &str, password: &str) -> Result<bool> {
///     // The account's own id: a name can be typed in several ways.
///     let Some(account) = look_up(name).await else { return Ok(false) };
///     // Before the password is looked at: if it is changed meanwhile, and all sessions ended, this
///     // sign-in fails.
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
    /// Of the one who is signed in already: it needs the session.
    pub(crate) is_step_up: bool,
}

/// What a sign-in found in the directory when it began.
#[derive(Debug, Clone)]
pub(crate) struct SignInStart {
    /// The mark of the last revocation; `None` where nothing was revoked.
    pub(crate) mark: Option<Mark>,
    pub(crate) at: Millis,
    /// The directory as it was read, unless it is large.
    pub(crate) directory: Option<BegunDirectory>,
}

/// A directory as it was read when a sign-in began.
#[derive(Debug, Clone)]
pub(crate) struct BegunDirectory {
    /// Only to be compared: a sign-in that is kept must not keep a store.
    pub(crate) store: Weak<dyn Store>,
    pub(crate) key: StoreKey,
    /// Its record, if there was one.
    pub(crate) stored: Option<Stored>,
}

impl SignInStart {
    /// The directory as it was read, if that was a moment ago, and from the place where this sign-in's is.
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
    /// A sign-in that begins when it is committed; see
    /// [`Directory::begin_sign_in`](crate::Directory::begin_sign_in) for one that begins before the
    /// password is verified.
    ///
    /// `principal` is the application's own name for the account, of 1 to 1024 bytes: a stable one,
    /// such as its id.
    #[must_use]
    pub fn new(principal: impl AsRef<str>) -> Self {
        let principal = principal.as_ref().into();
        Self { principal, label: None, begun: None, is_step_up: false }
    }

    /// What the list of sessions calls this one: the browser, the place. It is cut to 128 bytes, at a
    /// character boundary, so a User-Agent may be passed as it came. It is listed as it is, so escape it
    /// in a page. Without a [directory](crate::DirectoryMode::Off) it is not stored. Default: none, or the one
    /// that the session has.
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
