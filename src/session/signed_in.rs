//! The extractor for routes that need somebody to be signed in.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::session::Session;

/// A session with somebody signed in; as an argument of a handler it turns all others away.
///
/// They get a 401, or a 303 to the configured
/// [`sign_in_page`](crate::Builder::sign_in_page). To render something else, take
/// `Result<SignedIn, SignInRejection>`.
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
#[doc(alias("login_required", "AuthUser", "Identity"))]
#[derive(Clone)]
#[non_exhaustive]
pub struct SignedIn {
    /// The session.
    pub session: Session,
    /// Who is signed in.
    pub principal: Arc<str>,
}

impl TryFrom<Session> for SignedIn {
    type Error = SignInRejection;

    /// For extractors of your own.
    fn try_from(session: Session) -> Result<Self, SignInRejection> {
        match session.principal() {
            Some(principal) => Ok(Self { session, principal }),
            None => Err(SignInRejection::NotSignedIn {
                sign_in_page: session.sessions().settings().options.sign_in_page.clone(),
            }),
        }
    }
}

/// A session of somebody who proved who they are in the last so many seconds; as an argument of a
/// handler it turns all others away (ASVS 5.0 7.5.1 and 7.5.3).
///
/// Those who are not signed in are answered as by [`SignedIn`]. Those whose proof is too old get a 401
/// of their own, or the same 303. To render something else, such as a page that asks for the password
/// once more, take `Result<AuthenticatedWithin<600>, SignInRejection>`; where the password was right,
/// call [`Session::step_up`].
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

impl<const SECONDS: u64> TryFrom<Session> for AuthenticatedWithin<SECONDS> {
    type Error = SignInRejection;

    /// For extractors of your own.
    fn try_from(session: Session) -> Result<Self, SignInRejection> {
        let SignedIn { session, principal } = session.try_into()?;
        if session.authenticated_within(Duration::from_secs(SECONDS)) {
            return Ok(Self { session, principal });
        }
        let sign_in_page = session.sessions().settings().options.sign_in_page.clone();
        Err(SignInRejection::Stale { sign_in_page })
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

/// Why [`SignedIn`] or [`AuthenticatedWithin`] turned a request away.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SignInRejection {
    /// Nobody is signed in: a 401, or a 303 to the sign-in page.
    #[error("nobody is signed in")]
    NotSignedIn {
        /// The configured page, if there is one.
        sign_in_page: Option<Cow<'static, str>>,
    },
    /// Somebody is signed in, but proved who they are too long ago: a 401, or a 303 to the sign-in
    /// page.
    #[error("the sign-in is too long ago")]
    Stale {
        /// The configured page, if there is one.
        sign_in_page: Option<Cow<'static, str>>,
    },
    /// The session could not be had; its own response is sent.
    #[error(transparent)]
    Session(#[from] Error),
}
