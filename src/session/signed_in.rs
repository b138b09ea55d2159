//! Requires a signed-in user. The extractors and the guards share this code.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::head::local_path::LocalPath;
use crate::head::request::{RequestHead, Wants};
use crate::session::Session;
use crate::settings::Pages;

/// Requires a signed-in user.
///
/// Take `SignedIn` as a handler argument. If no user is signed in, the request fails with
/// [`ErrorKind::NotSignedIn`]: browser navigations are redirected to the
/// [`sign_in_page`](crate::Builder::sign_in_page), if one is configured, and all other requests get a 401. To
/// handle the error yourself, take `Result<SignedIn>`. To protect a group of routes, use
/// [`Guard`](crate::Guard).
///
/// ```
/// use unsticky::SignedIn;
///
/// // Works as a handler in axum and in actix-web.
/// async fn profile(SignedIn { principal, .. }: SignedIn) -> String {
///     format!("the profile of {principal}")
/// }
/// # let _ = profile;
/// ```
///
/// # Pages for everyone
///
/// If a page also serves anonymous visitors, take [`Maybe<SignedIn>`](Maybe). It is `None` if no user is
/// signed in; a store outage is still an error. In axum, `Option<SignedIn>` does the same. **In actix-web it
/// does not**: there, `Option` turns every error into `None`, so signed-in users appear to be signed out
/// while the store is down.
#[doc(alias("login_required", "AuthUser", "Identity"))]
#[derive(Clone)]
#[non_exhaustive]
pub struct SignedIn {
    /// The session.
    pub session: Session,
    /// The signed-in principal.
    pub principal: Arc<str>,
}

impl SignedIn {
    /// Implements the extractor. For adapters.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotSignedIn`]. If the request is a navigation and a page is configured, the error
    /// contains the URL to redirect to.
    pub fn of(session: Session, head: &RequestHead<'_>) -> Result<Self> {
        admit(session, None, &Pages::default(), Some(head))
    }
}

impl TryFrom<Session> for SignedIn {
    type Error = Error;

    /// Converts without a request, so the error never redirects.
    fn try_from(session: Session) -> Result<Self> {
        admit(session, None, &Pages::default(), None)
    }
}

/// Requires that the user authenticated within the last `SECONDS` seconds (ASVS 5.0 7.5.1 and 7.5.3).
///
/// Take `AuthenticatedWithin` as a handler argument. If no user is signed in, the request fails as with
/// [`SignedIn`]. If the user last authenticated too long ago, the request fails with
/// [`ErrorKind::StaleSignIn`]: browser navigations are redirected to the configured
/// [`step_up_page`](crate::Builder::step_up_page), or else to the configured sign-in page, and all other
/// requests get a 401. The handler of the step-up page asks for the password or another factor, and then
/// calls [`Session::step_up`]. To handle the error yourself, take `Result<AuthenticatedWithin<600>>`.
///
/// ```
/// use unsticky::AuthenticatedWithin;
///
/// // The user authenticated at most ten minutes ago.
/// async fn delete_account(user: AuthenticatedWithin<600>) -> String {
///     format!("goodbye {}", user.principal)
/// }
/// # let _ = delete_account;
/// ```
#[doc(alias = "sudo_mode")]
#[derive(Clone)]
#[non_exhaustive]
pub struct AuthenticatedWithin<const SECONDS: u64> {
    /// The session.
    pub session: Session,
    /// The signed-in principal.
    pub principal: Arc<str>,
}

impl<const SECONDS: u64> AuthenticatedWithin<SECONDS> {
    /// Implements the extractor. For adapters.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotSignedIn`] and [`ErrorKind::StaleSignIn`]. If the request is a navigation and a page
    /// is configured, the error contains the URL to redirect to.
    pub fn of(session: Session, head: &RequestHead<'_>) -> Result<Self> {
        Self::admitted(session, Some(head))
    }

    fn admitted(session: Session, head: Option<&RequestHead<'_>>) -> Result<Self> {
        let within = Duration::from_secs(SECONDS);
        let SignedIn { session, principal } =
            admit(session, Some(within), &Pages::default(), head)?;
        Ok(Self { session, principal })
    }
}

impl<const SECONDS: u64> TryFrom<Session> for AuthenticatedWithin<SECONDS> {
    type Error = Error;

    /// Converts without a request, so the error never redirects.
    fn try_from(session: Session) -> Result<Self> {
        Self::admitted(session, None)
    }
}

impl<const SECONDS: u64> fmt::Debug for AuthenticatedWithin<SECONDS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthenticatedWithin")
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for SignedIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedIn").field("session", &self.session).finish_non_exhaustive()
    }
}

/// Makes [`SignedIn`] or [`AuthenticatedWithin`] optional, for pages that also serve anonymous visitors.
///
/// `Maybe<SignedIn>` is `None` if no user is signed in. `Maybe<AuthenticatedWithin<600>>` is also `None` if
/// the user authenticated more than 600 seconds ago. All other errors remain errors: while the store is down,
/// the response is a 503 and never the page for anonymous visitors. `Maybe` works in axum and in actix-web.
///
/// ```
/// use unsticky::{Maybe, SignedIn};
///
/// async fn front_page(Maybe(user): Maybe<SignedIn>) -> String {
///     match user {
///         Some(user) => format!("welcome back, {}", user.principal),
///         None => "welcome".to_owned(),
///     }
/// }
/// # let _ = front_page;
/// ```
#[doc(alias("Option", "OptionalUser", "AnonymousUser"))]
#[derive(Debug, Clone)]
#[allow(clippy::exhaustive_structs)]
pub struct Maybe<T>(pub Option<T>);

impl<T: Guarded> Maybe<T> {
    /// Implements the extractor. For adapters.
    ///
    /// # Errors
    ///
    /// The errors of `T`, except [`ErrorKind::NotSignedIn`] and [`ErrorKind::StaleSignIn`].
    pub fn of(session: Session, head: &RequestHead<'_>) -> Result<Self> {
        match T::guarded(session, head) {
            Ok(user) => Ok(Self(Some(user))),
            Err(error)
                if matches!(error.kind(), ErrorKind::NotSignedIn | ErrorKind::StaleSignIn) =>
            {
                Ok(Self(None))
            }
            Err(error) => Err(error),
        }
    }
}

/// The extractors that [`Maybe`] can contain: [`SignedIn`] and [`AuthenticatedWithin`].
///
/// The trait is sealed: you cannot implement it.
pub trait Guarded: Sized {
    /// Implements the extractor.
    #[doc(hidden)]
    fn guarded(session: Session, head: &RequestHead<'_>) -> Result<Self>;
}

impl Guarded for SignedIn {
    fn guarded(session: Session, head: &RequestHead<'_>) -> Result<Self> {
        Self::of(session, head)
    }
}

impl<const SECONDS: u64> Guarded for AuthenticatedWithin<SECONDS> {
    fn guarded(session: Session, head: &RequestHead<'_>) -> Result<Self> {
        Self::of(session, head)
    }
}

/// Returns the session's signed-in user, who must have authenticated `within` this time. The pages in `own`
/// take precedence over the configured ones.
pub(crate) fn admit(
    session: Session,
    within: Option<Duration>,
    own: &Pages,
    head: Option<&RequestHead<'_>>,
) -> Result<SignedIn> {
    let configured = &session.sessions().settings().options.pages;
    let sign_in = || own.sign_in.as_deref().or(configured.sign_in.as_deref());
    let step_up = || own.step_up.as_deref().or(configured.step_up.as_deref()).or_else(sign_in);
    let Some(principal) = session.principal() else {
        return Err(turned_away(ErrorKind::NotSignedIn, sign_in(), head));
    };
    if within.is_some_and(|within| !session.authenticated_within(within)) {
        return Err(turned_away(ErrorKind::StaleSignIn, step_up(), head));
    }
    Ok(SignedIn { session, principal })
}

/// Returns the error for a rejected request. The error redirects to `page` if the request is a navigation to
/// a different page.
fn turned_away(kind: ErrorKind, page: Option<&str>, head: Option<&RequestHead<'_>>) -> Error {
    let Some((page, head)) = page.zip(head) else { return Error::new(kind, "") };
    // A page that redirects to itself would cause an endless loop.
    let location = (head.wants() == Wants::Page && !head.is_for(page)).then(|| {
        let back = LocalPath::of(head).filter(|_| LocalPath::can_follow(page));
        Cow::Owned(back.map_or_else(|| page.to_owned(), |path| path.after(page)))
    });
    Error::decided_by(Wants::VARY, kind, location)
}
