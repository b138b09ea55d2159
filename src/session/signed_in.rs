//! Requests that need a user who is signed in: one decision, for the extractors and for guards.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::head::local_path::LocalPath;
use crate::head::request::{RequestHead, Wants};
use crate::session::Session;
use crate::settings::Pages;

/// A session with a user who is signed in. As an argument of a handler it rejects every other request, with
/// [`ErrorKind::NotSignedIn`].
///
/// Navigations are sent to the configured [`sign_in_page`](crate::Builder::sign_in_page), everything else
/// gets a 401. To handle the rejection yourself, take `Result<SignedIn>`. For a whole group of routes,
/// there is [`Guard`](crate::Guard).
///
/// ```
/// use unsticky::SignedIn;
///
/// // The same in an axum handler and in one of actix-web.
/// async fn profile(SignedIn { principal, .. }: SignedIn) -> String {
///     format!("the profile of {principal}")
/// }
/// # let _ = profile;
/// ```
///
/// # Pages for everybody
///
/// A page that also serves visitors takes [`Maybe<SignedIn>`](Maybe): nobody is `None`, and an outage of
/// the store stays an error. In axum, `Option<SignedIn>` is the same. **In actix-web it is not**: its
/// `Option` turns every error into `None`, so a user who is signed in seems to be nobody while the store is
/// down.
#[doc(alias("login_required", "AuthUser", "Identity"))]
#[derive(Clone)]
#[non_exhaustive]
pub struct SignedIn {
    /// The session.
    pub session: Session,
    /// Who is signed in.
    pub principal: Arc<str>,
}

impl SignedIn {
    /// What the extractor does with the session of a request; for adapters.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotSignedIn`], with the page that the visitor is sent to if the request is a navigation.
    pub fn of(session: Session, head: &RequestHead<'_>) -> Result<Self> {
        admit(session, None, &Pages::default(), Some(head))
    }
}

impl TryFrom<Session> for SignedIn {
    type Error = Error;

    /// For code that has no request at hand: nobody is sent to another page.
    fn try_from(session: Session) -> Result<Self> {
        admit(session, None, &Pages::default(), None)
    }
}

/// A session whose user authenticated within the last `SECONDS` seconds. As an argument of a handler it
/// rejects every other request (ASVS 5.0 7.5.1 and 7.5.3).
///
/// Who is not signed in is answered as by [`SignedIn`]. Who authenticated longer ago gets
/// [`ErrorKind::StaleSignIn`]: navigations are sent to the configured
/// [`step_up_page`](crate::Builder::step_up_page), everything else gets a 401. The page asks for the
/// password, or another factor, and calls [`Session::step_up`]. To handle the rejection yourself, take
/// `Result<AuthenticatedWithin<600>>`.
///
/// ```
/// use unsticky::AuthenticatedWithin;
///
/// // At most ten minutes ago.
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
    /// Who is signed in.
    pub principal: Arc<str>,
}

impl<const SECONDS: u64> AuthenticatedWithin<SECONDS> {
    /// What the extractor does with the session of a request; for adapters.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotSignedIn`] and [`ErrorKind::StaleSignIn`], with the page that the visitor is sent to
    /// if the request is a navigation.
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

    /// For code that has no request at hand: nobody is sent to another page.
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

/// [`SignedIn`], or nobody: for pages that also serve visitors, in axum and in actix-web.
///
/// `Maybe<SignedIn>` is `None` where nobody is signed in, and `Maybe<AuthenticatedWithin<600>>` also where
/// the user authenticated longer ago. Everything else stays an error: while the store is down the answer is
/// a 503, never the page of a visitor.
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
    /// What the extractor does with the session of a request; for adapters.
    ///
    /// # Errors
    ///
    /// Whatever is no answer to the question, who is signed in.
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

/// The extractors that [`Maybe`] can hold. Nobody else can implement it.
pub trait Guarded: Sized {
    /// The extractor, of a session.
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

/// The user of a session, who must be signed in, and have authenticated `within` this time. `own`: pages
/// that go before the configured ones.
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

/// The error of a visitor who is sent to this page if the request is a navigation.
fn turned_away(kind: ErrorKind, page: Option<&str>, head: Option<&RequestHead<'_>>) -> Error {
    let Some((page, head)) = page.zip(head) else { return Error::new(kind, "") };
    // Sent from the page to itself, a browser would go round in circles.
    let location = (head.wants() == Wants::Page && !head.is_for(page)).then(|| {
        let back = LocalPath::of(head).filter(|_| LocalPath::can_follow(page));
        Cow::Owned(back.map_or_else(|| page.to_owned(), |path| path.after(page)))
    });
    Error::decided_by(Wants::VARY, kind, location)
}
