//! Handles one request and its response without a framework. For adapters.
//!
//! The tower layer and the actix-web middleware of this crate are thin wrappers around this module. You can
//! write an adapter for another framework in the same way:
//!
//! 1. Call [`Exchange::begin`] with the request's `Cookie` headers. This does no I/O and parses nothing. Then
//!    call [`Exchange::note_origin`], which detects a common mistake in development.
//! 2. Store the [`Exchange::handle`] where extractors can find it. The first call to
//!    [`SessionHandle::session`] parses the headers and reads the record.
//! 3. Call [`Exchange::finish`] with the response's status, and apply the [`Reply`] to the response.
//! 4. Render this crate's errors as [`ErrorResponse`]s, or with the request's [`ErrorRenderer`] if the
//!    application [renders errors itself](crate::Builder::on_error).
//!
//! ```
//! use unsticky::exchange::{Exchange, Finish};
//! use unsticky::{Key, Sessions};
//!
//! const VISITS: Key<u32> = Key::new("visits");
//!
//! # #[cfg(feature = "memory")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let sessions = Sessions::builder(unsticky::connect("memory:")?).build()?;
//! let exchange = Exchange::begin(&sessions, ["theme=dark"], None);
//! let session = exchange.handle().session().await?;
//! session.update(VISITS, |visits| *visits += 1)?;
//! let reply = match exchange.finish(200) {
//!     Finish::Ready(reply) => reply,
//!     Finish::Pending(reply) => reply.await,
//! };
//! assert!(reply.set_cookie.unwrap().starts_with("__Host-id="));
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "memory"))]
//! # fn main() {}
//! ```

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use crate::completion::RunToCompletion;
use crate::cookie::parse::Presented;
use crate::cookie::plain_http::drops_secure_cookies;
use crate::error::{Error, ErrorKind, Result};
use crate::event;
use crate::session::Session;
use crate::session::commit::ResponseEffects;
use crate::settings::Sessions;

pub use crate::answer::ErrorResponse;
pub use crate::head::request::{RequestHead, Wants};

/// A request whose response is not yet finished.
///
/// If you drop an exchange without calling [`finish`](Self::finish), only a sign-out or `destroy` is
/// committed; all other changes are dropped. Until a handler asks for the session, an exchange costs one
/// small allocation, which its handles share. A nested layer or a second `Cookie` header costs one more. The
/// cookie is parsed when a handler first asks for the session.
#[derive(Debug)]
#[must_use = "the handler's changes are committed only by `finish`"]
pub struct Exchange {
    handle: SessionHandle,
    /// Whether the browser would drop this response's cookie: the cookie is `Secure`, and the request came
    /// from a page of this site that was loaded over plain http.
    drops_cookie: bool,
    /// Whether nothing is left to do: the exchange is finished, or an outer layer with the same [`Sessions`]
    /// finishes the session.
    is_over: bool,
}

impl Exchange {
    /// Begins an exchange. `cookies` are the unchanged values of the request's `Cookie` headers.
    ///
    /// The values are kept as long as a handle exists, so pass a type that is cheap to keep: a clone of the
    /// framework's header value, a `Bytes`, or a `String`. If the request has no `Cookie` header, pass no
    /// values or an empty one.
    ///
    /// If session layers are nested, `outer` is the handle of the next outer layer. If one of the outer
    /// layers has the same `Sessions`, this exchange uses that layer's session, and finishing this exchange
    /// does nothing.
    pub fn begin<C>(
        sessions: &Sessions,
        cookies: impl IntoIterator<Item = C>,
        outer: Option<SessionHandle>,
    ) -> Self
    where
        C: AsRef<[u8]> + Send + Sync + 'static,
    {
        let outer = outer.map(Arc::new);
        let shared = outer.as_ref().and_then(|outer| outer.find(sessions));
        let shared = shared.map(|handle| handle.session.clone());
        let is_over = shared.is_some();
        let session = shared.unwrap_or_else(|| {
            let name = sessions.settings().cookie.name();
            if outer.as_ref().is_some_and(|outer| outer.has_cookie(name)) {
                event::cookie_name_shared(name);
            }
            LazySession::new(sessions.clone(), cookies)
        });
        Self { handle: SessionHandle { session, outer }, drops_cookie: false, is_over }
    }

    /// Checks the value of the request's `Origin` header, if it has one.
    ///
    /// If the origin is this site over [plain HTTP](crate::Cookie#plain-http), and the response sends a
    /// `Secure` cookie that the browser will drop, an event reports the problem, once per [`Sessions`]. The
    /// response is not changed. `head` is called only if the origin uses plain HTTP.
    pub fn note_origin<'a>(
        &mut self,
        origin: Option<&[u8]>,
        head: impl FnOnce() -> RequestHead<'a>,
    ) {
        let is_secure = self.handle.sessions().settings().cookie.is_secure;
        // Whether another site uses plain HTTP does not matter.
        let is_own = |origin: &[u8]| {
            let authority = head().own_authority();
            authority.is_some_and(|own| origin.strip_prefix(b"http://") == Some(own))
        };
        self.drops_cookie = is_secure
            && origin.is_some_and(|origin| drops_secure_cookies(origin) && is_own(origin));
    }

    /// Returns the handle from which extractors get the session.
    #[must_use]
    pub fn handle(&self) -> SessionHandle {
        self.handle.clone()
    }

    /// Commits the handler's changes. `status` is the status of the handler's response.
    ///
    /// Call this method inside a Tokio runtime. If the [`Commit`] is dropped before it has finished, it
    /// continues in that runtime.
    pub fn finish(mut self, status: u16) -> Finish {
        let Some(session) = self.close() else {
            return Finish::Ready(Reply::default());
        };
        let failed = session.sessions().settings().options.on_failed_response.discards(status);
        let drops_cookie = self.drops_cookie;
        if let Some(closed) = session.close_without_commit(failed) {
            return Finish::Ready(Reply::of(&session, closed, None, drops_cookie));
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            let error = Error::unavailable("a commit needs a Tokio runtime");
            let closed = session.close_failed();
            return Finish::Ready(Reply::of(&session, closed, Some(error), drops_cookie));
        };
        Finish::Pending(Commit(RunToCompletion::new(runtime, move |driver| async move {
            let (committed, closed) = session.commit_and_close(&driver, failed).await;
            Reply::of(&session, closed, committed.err(), drops_cookie)
        })))
    }

    /// Returns the session that must be finished, if a handler has asked for it.
    fn close(&mut self) -> Option<Session> {
        if std::mem::replace(&mut self.is_over, true) { None } else { self.handle.session.close() }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(session) = self.close() {
            session.abandon();
        }
    }
}

/// The session of a request. The session is created when a handle is first asked for it.
struct LazySession<C: ?Sized = dyn CookieFields> {
    sessions: Sessions,
    asked: Mutex<Asked>,
    cookies: C,
}

#[derive(Default)]
struct Asked {
    session: Option<Session>,
    /// Whether the exchange is finished. A session that is created after that cannot change the response.
    is_closed: bool,
}

/// The values of a request's `Cookie` headers. There is nearly always exactly one.
trait CookieFields: Send + Sync {
    fn parse(&self, name_and_equals: &[u8]) -> Presented;
}

impl<C: AsRef<[u8]> + Send + Sync> CookieFields for (Option<C>, Vec<C>) {
    fn parse(&self, name_and_equals: &[u8]) -> Presented {
        Presented::parse(self.0.iter().chain(&self.1).map(AsRef::as_ref), name_and_equals)
    }
}

impl LazySession {
    fn new<C>(sessions: Sessions, cookies: impl IntoIterator<Item = C>) -> Arc<Self>
    where
        C: AsRef<[u8]> + Send + Sync + 'static,
    {
        let mut cookies = cookies.into_iter();
        let cookies = (cookies.next(), cookies.collect::<Vec<_>>());
        Arc::new(LazySession { sessions, asked: Mutex::default(), cookies })
    }

    fn session(&self) -> Session {
        let Asked { session, is_closed } = &mut *self.asked();
        let make = || {
            let presented = self.cookies.parse(self.sessions.settings().cookie.name_and_equals());
            let session = Session::new(self.sessions.clone(), presented);
            if *is_closed { session.after_response() } else { session }
        };
        session.get_or_insert_with(make).clone()
    }

    /// Returns the session if it was created. After this call, the session cannot change the response.
    fn close(&self) -> Option<Session> {
        let mut asked = self.asked();
        asked.is_closed = true;
        asked.session.clone()
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The result of [`Exchange::finish`]: a reply, or a commit that must be awaited.
#[derive(Debug)]
#[must_use = "the reply must be applied to the response"]
#[allow(clippy::exhaustive_enums)]
pub enum Finish {
    /// The reply is ready at once, because no store command was needed, or because `finish` was called
    /// outside a Tokio runtime. In the latter case, the reply contains an error.
    Ready(Reply),
    /// The reply is ready when the commit has finished.
    Pending(Commit),
}

/// A commit in progress. If you drop it before it has finished, it continues in a task of its own.
#[derive(Debug)]
#[must_use = "the reply must be applied to the response"]
pub struct Commit(RunToCompletion<Reply>);

impl Future for Commit {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Reply> {
        let ended = || Reply {
            error: Some(Error::new(
                ErrorKind::OutcomeUnknown,
                "the Tokio runtime shut down during the commit",
            )),
            ..Reply::default()
        };
        Pin::new(&mut self.0).poll(cx).map(|reply| reply.unwrap_or_else(ended))
    }
}

/// The changes that the adapter must make to the response.
#[derive(Default)]
#[non_exhaustive]
pub struct Reply {
    /// The value of a `Set-Cookie` header to *add*. If there is one, also set `Cache-Control: no-store`. The
    /// header may contain a credential, so do not log it.
    pub set_cookie: Option<String>,
    /// `true` if the response depends on the session, so `Vary` must include `Cookie`.
    pub vary: bool,
    /// The error that must replace the response, because the handler's changes were not committed.
    pub error: Option<Error>,
}

impl Reply {
    /// Returns `true` if the response stays unchanged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.vary && self.set_cookie.is_none() && self.error.is_none()
    }

    fn of(
        session: &Session,
        closed: ResponseEffects,
        error: Option<Error>,
        drops_cookie: bool,
    ) -> Self {
        if let Some(header) = closed.cookie.as_deref().filter(|_| drops_cookie) {
            session.sessions().settings().tell_of_dropped_cookie(header);
        }
        Self { set_cookie: closed.cookie, vary: closed.used, error }
    }

    /// Returns `true` if `Cookie` must be added to the response's `Vary` headers, whose current values are
    /// `fields`.
    pub fn adds_vary<'a>(&self, fields: impl IntoIterator<Item = &'a [u8]>) -> bool {
        let mut names = fields.into_iter().flat_map(|field| field.split(|byte| *byte == b','));
        self.vary
            && !names.any(|name| {
                let name = name.trim_ascii();
                name == b"*" || name.eq_ignore_ascii_case(b"cookie")
            })
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply")
            .field("set_cookie", &self.set_cookie.as_ref().map(|_| format_args!("..")))
            .field("vary", &self.vary)
            .field("error", &self.error)
            .finish()
    }
}

/// The headers to remove when an error replaces a response. These headers describe the body, its caching and
/// the status.
///
/// All other headers that the handler set stay, such as `Set-Cookie`, CORS headers, a request id and
/// `Strict-Transport-Security`.
pub const REPLACED_FIELDS: [&str; 26] = [
    "accept-ranges",
    "age",
    "cache-control",
    "connection",
    "content-digest",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "digest",
    "etag",
    "expires",
    "last-modified",
    "location",
    "refresh",
    "repr-digest",
    "retry-after",
    "sec-websocket-accept",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "www-authenticate",
];

/// Gives access to a request's session, which is read from the store only on demand.
///
/// If you keep the handle and first ask for the session after the response has begun, the session behaves as
/// it does [after the response](Session#after-the-response): changes are committed only by an explicit call
/// such as [`save`](Session::save), and changes that need a cookie fail with [`ErrorKind::HeadSent`].
#[derive(Clone)]
pub struct SessionHandle {
    session: Arc<LazySession>,
    /// The handle of the next outer layer.
    outer: Option<Arc<SessionHandle>>,
}

impl SessionHandle {
    /// Returns the session. The first call for a request reads the record.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] if the store cannot be read, [`ErrorKind::NewerFormat`] if a newer release
    /// wrote the record, and, in [strict mode](crate::DirectoryMode::Strict), [`ErrorKind::Corrupt`] if the
    /// principal's directory cannot be decoded. In these cases, this method never returns an empty session.
    /// If the session's own record cannot be decoded, the request is anonymous, and an event reports it.
    pub async fn session(self) -> Result<Session> {
        let session = self.session.session();
        session.load().await?;
        Ok(session)
    }

    /// Returns the handle for `sessions`, or `None` if no layer around the route has these `Sessions`.
    ///
    /// Use this if layers with different cookies are nested. Extractors use the handle of the innermost
    /// layer.
    #[must_use]
    pub fn of(&self, sessions: &Sessions) -> Option<Self> {
        self.find(sessions).cloned()
    }

    /// Returns the configuration of the layer.
    #[must_use]
    pub fn sessions(&self) -> &Sessions {
        &self.session.sessions
    }

    /// Iterates over the layers, innermost first.
    fn layers(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |handle| handle.outer.as_deref())
    }

    fn find(&self, sessions: &Sessions) -> Option<&Self> {
        self.layers().find(|handle| handle.sessions().is(sessions))
    }

    fn has_cookie(&self, name: &str) -> bool {
        self.layers().any(|handle| handle.sessions().settings().cookie.name() == name)
    }
}

impl fmt::Debug for SessionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionHandle(..)")
    }
}

/// Returns the error for an extractor on a route without a session layer, and emits an event. `fix` explains
/// how to add the layer.
#[must_use]
pub fn missing_layer(fix: &'static str) -> Error {
    event::missing_layer(fix);
    Error::new(ErrorKind::MissingLayer, fix)
}

/// Renders the errors of one request if the application [renders them itself](crate::Builder::on_error). For
/// adapters.
///
/// If the [`Reply`] has an error, or the handler's response was made from an [`Error`], the adapter replaces
/// the response with the result of [`render`](Self::render). It then puts [`Rendered`] into the response's
/// extensions, so that an outer layer does not render the error again.
#[derive(Clone)]
pub struct ErrorRenderer {
    sessions: Sessions,
    wants: Wants,
}

impl ErrorRenderer {
    /// Returns the renderer for a request, or `None` if the application does not render errors itself. In
    /// that case, `head` is not called.
    #[must_use]
    pub fn of<'a>(sessions: &Sessions, head: impl FnOnce() -> RequestHead<'a>) -> Option<Self> {
        let is_wanted = sessions.settings().options.on_error.is_some();
        is_wanted.then(|| Self { sessions: sessions.clone(), wants: head().wants() })
    }

    /// Returns the response for an error.
    #[must_use]
    pub fn render(&self, error: &Error) -> ErrorResponse {
        let response = ErrorResponse::from(error);
        let Some(on_error) = &self.sessions.settings().options.on_error else { return response };
        let mut response = on_error(response, error, self.wants);
        response.varies_by_wants();
        response
    }
}

impl fmt::Debug for ErrorRenderer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ErrorRenderer").field("wants", &self.wants).finish_non_exhaustive()
    }
}

/// Marks a response as rendered by an [`ErrorRenderer`]. Stored in the response's extensions. For adapters.
#[derive(Debug, Clone, Copy)]
#[allow(clippy::exhaustive_structs)]
pub struct Rendered;
