use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::event;
use crate::head::origin;
use crate::head::request::RequestHead;
use crate::session::Session;
use crate::session::signed_in::{SignedIn, admit};
use crate::sessions::builder::ConfigError;
use crate::settings::Pages;

/// Protects a group of routes: only requests that meet the guard's conditions reach the handlers.
///
/// Apply a guard to the routes with `tower::GuardLayer` or `actix::GuardMiddleware`, *inside* the session
/// layer. A request that does not meet a condition gets this response:
///
/// - [`signed_in`](Self::signed_in): the response of [`SignedIn`];
/// - [`authenticated_within`](Self::authenticated_within): the response of
///   [`AuthenticatedWithin`](crate::AuthenticatedWithin);
/// - [`permit`](Self::permit): 403, [`ErrorKind::Forbidden`];
/// - [`same_origin`](Self::same_origin): 403, [`ErrorKind::CrossOrigin`], whether or not a user is signed in.
///
/// If the user must sign in, a browser navigation is redirected to the sign-in page, if one is configured,
/// and all other requests get a 401. One configuration can therefore serve both pages and an API. The
/// redirect can pass the path of the original request in the `next` query parameter, which the sign-in page
/// reads with [`Next`](crate::Next); see [`Builder::sign_in_page`](crate::Builder::sign_in_page). While the
/// store is down, the response to a request with a session cookie is a 503 and never the sign-in page. The
/// session is read once: an extractor in a guarded handler does not read it again.
///
/// ```
/// use std::time::Duration;
/// use unsticky::{Guard, Key};
///
/// const ROLE: Key<String> = Key::new("role");
///
/// let staff = Guard::signed_in().permit(|user| Ok(user.session.get(ROLE)?.as_deref() == Some("staff")));
/// let danger = Guard::authenticated_within(Duration::from_secs(600)).step_up_page("/confirm")?;
/// let all_routes = Guard::same_origin();
/// assert!(staff.needs_session() && danger.needs_session());
/// assert!(!all_routes.needs_session());
/// # Ok::<_, unsticky::ConfigError>(())
/// ```
#[doc(alias("login_required", "require_login", "permission_required", "AuthorizeRequest"))]
#[derive(Clone)]
#[must_use]
pub struct Guard {
    needs_user: bool,
    /// The maximum time since the user authenticated.
    within: Option<Duration>,
    permits: Vec<Arc<Permit>>,
    pages: Pages,
    /// The trusted origins, if cross-site requests are rejected.
    trusted: Option<Vec<String>>,
}

type Permit = dyn Fn(&SignedIn) -> Result<bool> + Send + Sync;

impl Guard {
    /// Requires a signed-in user.
    pub fn signed_in() -> Self {
        Self { needs_user: true, ..Self::nothing() }
    }

    /// Requires a signed-in user who authenticated within the last `duration` (ASVS 5.0 7.5.1 and 7.5.3).
    pub fn authenticated_within(duration: Duration) -> Self {
        Self { within: Some(duration), ..Self::signed_in() }
    }

    /// Rejects requests that the browser sends on behalf of another site (cross-site request forgery, ASVS
    /// 5.0 3.5.1 to 3.5.3 and 4.4.2).
    ///
    /// This guard does not need a session, so you can apply it to all routes. To add its rules to another
    /// guard, use [`and_same_origin`].
    ///
    /// The following rules are checked in this order. A request passes as soon as one of them holds, and is
    /// rejected if none holds:
    ///
    /// 1. its method is GET, HEAD or OPTIONS, and it does not ask for an upgrade, as a WebSocket handshake
    ///    does;
    /// 2. its `Origin` is one that you [`trust`](Self::trust);
    /// 3. its `Sec-Fetch-Site` is `same-origin` or `none`; any other value is rejected;
    /// 4. it has neither `Sec-Fetch-Site` nor `Origin`, so it does not come from a browser;
    /// 5. the host and port in its `Origin` match those in the request's target or, if the target has none,
    ///    in its `Host`.
    ///
    /// Handlers of GET, HEAD and OPTIONS
    /// requests must therefore not change anything. Over plain HTTP, and in browsers released before 2023,
    /// the fifth rule decides, so a proxy must forward `Host` unchanged.
    ///
    /// [`and_same_origin`]: Self::and_same_origin
    #[doc(alias("csrf", "xsrf", "CsrfLayer"))]
    pub fn same_origin() -> Self {
        Self::nothing().and_same_origin()
    }

    fn nothing() -> Self {
        let (permits, pages) = (Vec::new(), Pages::default());
        Self { needs_user: false, within: None, permits, pages, trusted: None }
    }

    /// Also applies the rules of [`same_origin`](Self::same_origin).
    pub fn and_same_origin(mut self) -> Self {
        self.trusted.get_or_insert_default();
        self
    }

    /// Also applies the rules of [`same_origin`](Self::same_origin), and accepts requests from this origin,
    /// for example from a sign-in service that posts a form back.
    ///
    /// This origin can then send any request to the guarded routes, so give the route that needs it a
    /// separate guard. The origin is compared byte for byte with the `Origin` header. Write it as
    /// `https://login.example`, in lower case, and with a port only if it is not the scheme's default port.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Origin`] if a browser would not send the origin in this form.
    pub fn trust(mut self, origin: impl Into<String>) -> Result<Self, ConfigError> {
        let origin = origin.into();
        if !origin::is_origin(&origin) {
            return Err(ConfigError::Origin);
        }
        self.trusted.get_or_insert_default().push(origin);
        Ok(self)
    }

    /// Also requires a signed-in user for whom `permit` returns `true`.
    ///
    /// If `permit` returns `false`, the response is a 403, [`ErrorKind::Forbidden`]. If it returns an error,
    /// that error is the response. If you call this method several times, every function must permit the
    /// request.
    ///
    /// `permit` sees the session as this request read it. If a permission can be withdrawn while sessions are
    /// alive, do not store it in the session (ASVS 5.0 8.3.2). Look it up by the principal instead, in a
    /// middleware that takes [`SignedIn`] and returns [`Error::forbidden`].
    pub fn permit(
        mut self,
        permit: impl Fn(&SignedIn) -> Result<bool> + Send + Sync + 'static,
    ) -> Self {
        self.needs_user = true;
        self.permits.push(Arc::new(permit));
        self
    }

    /// Sets the page to which this guard redirects users who are not signed in. Default: the configured
    /// [`sign_in_page`](crate::Builder::sign_in_page).
    ///
    /// # Errors
    ///
    /// [`ConfigError::Page`] if `page` is neither a path that begins with `/` nor a complete URL, or if it
    /// has a fragment, a space, or characters other than printable ASCII.
    pub fn sign_in_page(mut self, page: impl Into<Cow<'static, str>>) -> Result<Self, ConfigError> {
        self.pages.sign_in = Some(checked(page.into())?);
        Ok(self)
    }

    /// Sets the page to which this guard redirects users who authenticated too long ago. Default: the
    /// configured [`step_up_page`](crate::Builder::step_up_page), or else the sign-in page.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Page`] if `page` is neither a path that begins with `/` nor a complete URL, or if it
    /// has a fragment, a space, or characters other than printable ASCII.
    pub fn step_up_page(mut self, page: impl Into<Cow<'static, str>>) -> Result<Self, ConfigError> {
        self.pages.step_up = Some(checked(page.into())?);
        Ok(self)
    }

    /// Checks the conditions that do not need the session. For adapters.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::CrossOrigin`].
    pub fn check_head(&self, head: &RequestHead<'_>) -> Result<()> {
        let Some(trusted) = &self.trusted else { return Ok(()) };
        origin::check(head, trusted).map_err(|foreign| {
            event::cross_origin(foreign.as_str());
            Error::decided_by(origin::VARY, ErrorKind::CrossOrigin, None)
        })
    }

    /// Returns `true` if [`check`](Self::check) must be called with the session. For adapters.
    #[must_use]
    pub fn needs_session(&self) -> bool {
        self.needs_user
    }

    /// Checks the conditions on the session. For adapters.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotSignedIn`], [`ErrorKind::StaleSignIn`], [`ErrorKind::Forbidden`], or the error of a
    /// function that was passed to [`permit`](Self::permit).
    pub fn check(&self, session: Session, head: &RequestHead<'_>) -> Result<()> {
        let user = admit(session, self.within, &self.pages, Some(head))?;
        for permit in &self.permits {
            if !permit(&user)? {
                let settings = user.session.sessions().settings();
                event::forbidden(user.session.id(), settings.who(Some(&user.principal)));
                return Err(Error::forbidden());
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
        f.debug_struct("Guard")
            .field("needs_user", &self.needs_user)
            .field("within", &self.within)
            .field("trusted", &self.trusted)
            .finish_non_exhaustive()
    }
}
