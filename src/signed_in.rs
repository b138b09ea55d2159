//! The extractor for routes that need somebody to be signed in.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::exchange::Rendered;
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
                sign_in_page: session.sessions().settings().sign_in_page.clone(),
            }),
        }
    }
}

impl fmt::Debug for SignedIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedIn").field("session", &self.session).finish_non_exhaustive()
    }
}

/// Why [`SignedIn`] turned a request away.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SignInRejection {
    /// Nobody is signed in: a 401, or a 303 to the sign-in page.
    #[error("nobody is signed in")]
    NotSignedIn {
        /// The configured page, if there is one.
        sign_in_page: Option<Cow<'static, str>>,
    },
    /// The session could not be had; its own response is sent.
    #[error(transparent)]
    Session(#[from] Error),
}

impl From<&SignInRejection> for Rendered {
    fn from(rejection: &SignInRejection) -> Self {
        match rejection {
            SignInRejection::NotSignedIn { sign_in_page } => Self {
                status: if sign_in_page.is_some() { 303 } else { 401 },
                body: "nobody is signed in".into(),
                location: sign_in_page.clone(),
                retry_after: None,
            },
            SignInRejection::Session(error) => error.into(),
        }
    }
}
