//! Who signs in, as a request says it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Millis;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Stored;

/// How many bytes a label may have.
pub(crate) const LABEL_BYTES: usize = 128;

/// How long a sign-in that was begun may take to its end, and so how long a directory remembers that
/// everything was revoked.
pub(crate) const SIGN_IN_WINDOW: Duration = Duration::from_secs(60 * 60);

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
    /// The directory's record, if there was one.
    pub(crate) directory: Option<Stored>,
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
