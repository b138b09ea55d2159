use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::head::request::RequestHead;
use crate::session::Session;
use crate::session::signed_in::{SignedIn, admit};
use crate::sessions::builder::ConfigError;
use crate::settings::Pages;

/// What a group of routes needs of its requests; the tower layer and the actix-web middleware of the same
/// name put it around the group, *inside* the session layer.
///
/// A request that does not meet it is answered as the extractor of the same meaning answers it, and does
/// not reach the routes:
///
/// - [`signed_in`](Self::signed_in) as [`SignedIn`];
/// - [`authenticated_within`](Self::authenticated_within) as
///   [`AuthenticatedWithin`](crate::AuthenticatedWithin);
/// - [`permit`](Self::permit): 403, [`ErrorKind::Forbidden`].
///
/// A navigation of a browser is sent to the sign-in page, with its own address in the field `next`, which
/// [`Next`](crate::Next) reads there; everything else gets a 401. So one configuration serves pages and an
/// API. While the store is down the answer is a 503, never the sign-in page. The session is read once: an
/// extractor of a guarded handler costs no further store command.
///
/// ```
/// use std::time::Duration;
/// use unsticky::{Guard, Key};
///
/// const ROLE: Key<String> = Key::new("role");
///
/// let staff = Guard::signed_in().permit(|user| Ok(user.session.get(ROLE)?.as_deref() == Some("staff")));
/// let danger = Guard::authenticated_within(Duration::from_secs(600)).step_up_page("/confirm")?;
/// # let _ = (staff, danger);
/// # Ok::<_, unsticky::ConfigError>(())
/// ```
#[doc(alias("login_required", "require_login", "permission_required", "AuthorizeRequest"))]
#[derive(Clone)]
#[must_use]
pub struct Guard {
    /// How long ago the user may have authenticated.
    within: Option<Duration>,
    permits: Vec<Arc<Permit>>,
    pages: Pages,
}

type Permit = dyn Fn(&SignedIn) -> Result<bool> + Send + Sync;

impl Guard {
    /// Requires a user who is signed in.
    pub fn signed_in() -> Self {
        Self { within: None, permits: Vec::new(), pages: Pages::default() }
    }

    /// Requires a user who is signed in and authenticated within this time (ASVS 5.0 7.5.1 and 7.5.3).
    pub fn authenticated_within(duration: Duration) -> Self {
        Self { within: Some(duration), ..Self::signed_in() }
    }

    /// Also requires that `permit` returns `true` for the user who is signed in; `false` is a 403,
    /// [`ErrorKind::Forbidden`], and its error is the answer. Called several times, all of them must
    /// permit.
    ///
    /// It decides on the session as this request has read it. A permission that may be withdrawn while
    /// sessions live is better looked up by the principal than kept in the session (ASVS 5.0 8.3.2).
    pub fn permit(
        mut self,
        permit: impl Fn(&SignedIn) -> Result<bool> + Send + Sync + 'static,
    ) -> Self {
        self.permits.push(Arc::new(permit));
        self
    }

    /// Where this guard sends those who are not signed in. Default: the configured
    /// [`sign_in_page`](crate::Builder::sign_in_page).
    ///
    /// # Errors
    ///
    /// [`ConfigError::Page`] if the address cannot stand in a header field.
    pub fn sign_in_page(mut self, page: impl Into<Cow<'static, str>>) -> Result<Self, ConfigError> {
        self.pages.sign_in = Some(checked(page.into())?);
        Ok(self)
    }

    /// Where this guard sends those who authenticated too long ago. Default: the configured
    /// [`step_up_page`](crate::Builder::step_up_page), else the sign-in page.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Page`] if the address cannot stand in a header field.
    pub fn step_up_page(mut self, page: impl Into<Cow<'static, str>>) -> Result<Self, ConfigError> {
        self.pages.step_up = Some(checked(page.into())?);
        Ok(self)
    }

    /// What the request's session must meet; for adapters.
    ///
    /// # Errors
    ///
    /// The answer: [`ErrorKind::NotSignedIn`], [`ErrorKind::StaleSignIn`], [`ErrorKind::Forbidden`], or what
    /// the function of [`permit`](Self::permit) failed with.
    pub fn check(&self, session: Session, head: &RequestHead<'_>) -> Result<()> {
        let user = admit(session, self.within, &self.pages, Some(head))?;
        for permit in &self.permits {
            if !permit(&user)? {
                return Err(Error::new(ErrorKind::Forbidden, ""));
            }
        }
        Ok(())
    }
}

fn checked(page: Cow<'static, str>) -> Result<Cow<'static, str>, ConfigError> {
    if Pages::is_address(&page) { Ok(page) } else { Err(ConfigError::Page) }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("within", &self.within).finish_non_exhaustive()
    }
}
