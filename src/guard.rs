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

/// What a group of routes needs of its requests; the tower layer and the actix-web middleware of the same
/// name put it around the group, *inside* the session layer.
///
/// A request that does not meet it is answered as the extractor of the same meaning answers it, and does
/// not reach the routes:
///
/// - [`signed_in`](Self::signed_in) as [`SignedIn`];
/// - [`authenticated_within`](Self::authenticated_within) as
///   [`AuthenticatedWithin`](crate::AuthenticatedWithin);
/// - [`permit`](Self::permit): 403, [`ErrorKind::Forbidden`];
/// - [`same_origin`](Self::same_origin): 403, [`ErrorKind::CrossOrigin`], whoever the user is.
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
/// let all_routes = Guard::same_origin();
/// # let _ = (staff, danger, all_routes);
/// # Ok::<_, unsticky::ConfigError>(())
/// ```
#[doc(alias("login_required", "require_login", "permission_required", "AuthorizeRequest"))]
#[derive(Clone)]
#[must_use]
pub struct Guard {
    needs_user: bool,
    /// How long ago the user may have authenticated.
    within: Option<Duration>,
    permits: Vec<Arc<Permit>>,
    pages: Pages,
    /// Where other sites' requests are refused: those that are trusted.
    trusted: Option<Vec<String>>,
}

type Permit = dyn Fn(&SignedIn) -> Result<bool> + Send + Sync;

impl Guard {
    /// Requires a user who is signed in.
    pub fn signed_in() -> Self {
        Self { needs_user: true, ..Self::nothing() }
    }

    /// Requires a user who is signed in and authenticated within this time (ASVS 5.0 7.5.1 and 7.5.3).
    pub fn authenticated_within(duration: Duration) -> Self {
        Self { within: Some(duration), ..Self::signed_in() }
    }

    /// Requires that no other site made the browser send the request (cross-site request forgery, ASVS 5.0
    /// 3.5.1 to 3.5.3 and 4.4.2). It uses no session, so it may be around all routes; [`and_same_origin`]
    /// adds it to another guard.
    ///
    /// A request passes if any of these holds, in this order:
    ///
    /// 1. its method is GET, HEAD or OPTIONS, and it asks for no upgrade, as the handshake of a WebSocket
    ///    does;
    /// 2. its `Origin` is one that you [`trust`](Self::trust);
    /// 3. its `Sec-Fetch-Site` is `same-origin` or `none`; any other value is refused;
    /// 4. it has neither `Sec-Fetch-Site` nor `Origin`: no browser has sent it;
    /// 5. the host and port of its `Origin` are those of the request's target, or else of its `Host`.
    ///
    /// So GET routes must change nothing. Over plain http, and in browsers of before 2023, the fifth rule
    /// decides: a proxy in front must then pass `Host` on as it came.
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

    /// Also requires what [`same_origin`](Self::same_origin) does.
    pub fn and_same_origin(mut self) -> Self {
        self.trusted.get_or_insert_default();
        self
    }

    /// Also requires what [`same_origin`](Self::same_origin) does, and lets requests of this origin pass, such
    /// as those of a sign-in service that posts a form back. The origin may then send any request that this guard
    /// is around, so give the route that needs it a guard of its own. It is compared byte for byte with what browsers send:
    /// `https://login.example`, in small letters, and with a port only if it is not the scheme's own.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Origin`] if no browser would send this.
    pub fn trust(mut self, origin: impl Into<String>) -> Result<Self, ConfigError> {
        let origin = origin.into();
        if !origin::is_origin(&origin) {
            return Err(ConfigError::Origin);
        }
        self.trusted.get_or_insert_default().push(origin);
        Ok(self)
    }

    /// Also requires that `permit` returns `true` for the user who is signed in; `false` is a 403,
    /// [`ErrorKind::Forbidden`], and its error is the answer. Called several times, all of them must
    /// permit.
    ///
    /// It decides on the session as this request has read it. A permission that may be withdrawn while
    /// sessions live is better looked up by the principal than kept in the session (ASVS 5.0 8.3.2): in a
    /// middleware of yours that takes [`SignedIn`] and answers [`Error::forbidden`].
    pub fn permit(
        mut self,
        permit: impl Fn(&SignedIn) -> Result<bool> + Send + Sync + 'static,
    ) -> Self {
        self.needs_user = true;
        self.permits.push(Arc::new(permit));
        self
    }

    /// Where this guard sends those who are not signed in. Default: the configured
    /// [`sign_in_page`](crate::Builder::sign_in_page).
    ///
    /// # Errors
    ///
    /// [`ConfigError::Page`] if it is neither a path from the root nor a whole address, cannot stand in a header
    /// field, or has a fragment.
    pub fn sign_in_page(mut self, page: impl Into<Cow<'static, str>>) -> Result<Self, ConfigError> {
        self.pages.sign_in = Some(checked(page.into())?);
        Ok(self)
    }

    /// Where this guard sends those who authenticated too long ago. Default: the configured
    /// [`step_up_page`](crate::Builder::step_up_page), else the sign-in page.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Page`] if it is neither a path from the root nor a whole address, cannot stand in a header
    /// field, or has a fragment.
    pub fn step_up_page(mut self, page: impl Into<Cow<'static, str>>) -> Result<Self, ConfigError> {
        self.pages.step_up = Some(checked(page.into())?);
        Ok(self)
    }

    /// What is decided without the session; for adapters.
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

    /// Whether there is anything to [`check`](Self::check) of the session; for adapters.
    #[must_use]
    pub fn needs_session(&self) -> bool {
        self.needs_user
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
