//! One request and its response, without a framework: for adapters.
//!
//! The tower layer and the actix-web middleware of this crate are thin shells around this module, and
//! an adapter for another framework can be one too:
//!
//! 1. [`Exchange::begin`] with the request's Cookie header fields: no I/O, and nothing is parsed; and
//!    [`Exchange::note_origin`], which helps in development;
//! 2. [`Exchange::handle`] goes where extractors find it; [`SessionHandle::session`] parses the fields and reads
//!    the record when a handler first asks;
//! 3. [`Exchange::finish`] with the response's status, and its [`Reply`] applied to the response;
//! 4. errors of this crate are rendered as [`ErrorResponse`]s, or by the [`ErrorRenderer`] of the request if the
//!    application [renders them itself](crate::Builder::on_error).
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

/// A request whose response is not finished. Dropping it keeps nothing of what the handler did but
/// an end of the session.
///
/// It costs one small allocation, which its handles share. The cookie is parsed and the session made
/// when a handler first asks for it.
#[derive(Debug)]
#[must_use = "what the handler changed is kept only by `finish`"]
pub struct Exchange {
    handle: SessionHandle,
    /// The request came from a page whose browser drops a `Secure` cookie.
    drops_cookie: bool,
    /// Nothing is left to do here: it is finished, or a layer further out has the same [`Sessions`],
    /// whose session is used here and finished there.
    is_over: bool,
}

impl Exchange {
    /// Begins with the values of the request's Cookie header fields, as they came. They are kept for as
    /// long as there is a handle, so pass what is cheap to keep: a clone of the framework's header value, a
    /// `Bytes`, or a `String`. For a request without the field pass nothing, or an empty value.
    ///
    /// `outer` is the handle of a layer further out, where several are nested. If one of them has the
    /// same `Sessions`, this exchange uses its session, and finishing it does nothing.
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

    /// Looks at the value of the request's Origin header field, if there is one. If it is a page of this site on
    /// [plain http](crate::Cookie#plain-http), and a `Secure` cookie is sent to it that its browser will drop, the
    /// log says so, once for these [`Sessions`]. The response stays the same. `head` is called only for such an
    /// origin.
    pub fn note_origin<'a>(
        &mut self,
        origin: Option<&[u8]>,
        head: impl FnOnce() -> RequestHead<'a>,
    ) {
        let is_secure = self.handle.sessions().settings().cookie.is_secure;
        // What another site's page is loaded over says nothing of this one.
        let is_own = |origin: &[u8]| {
            let authority = head().own_authority();
            authority.is_some_and(|own| origin.strip_prefix(b"http://") == Some(own))
        };
        self.drops_cookie = is_secure
            && origin.is_some_and(|origin| drops_secure_cookies(origin) && is_own(origin));
    }

    /// What extractors get the session from.
    #[must_use]
    pub fn handle(&self) -> SessionHandle {
        self.handle.clone()
    }

    /// Commits what the handler changed; `status` is its response's.
    ///
    /// Must be called inside a tokio runtime: a commit that is dropped unfinished goes on there.
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
            let error = Error::unavailable("a commit needs a tokio runtime");
            let closed = session.close_failed();
            return Finish::Ready(Reply::of(&session, closed, Some(error), drops_cookie));
        };
        Finish::Pending(Commit(RunToCompletion::new(runtime, move |driver| async move {
            let (committed, closed) = session.commit_and_close(&driver, failed).await;
            Reply::of(&session, closed, committed.err(), drops_cookie)
        })))
    }

    /// The session that is left to be finished, if somebody has asked for it.
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

/// The session of a request, which is made when a handle is first asked for it.
struct LazySession<C: ?Sized = dyn CookieFields> {
    sessions: Sessions,
    asked: Mutex<Asked>,
    cookies: C,
}

#[derive(Default)]
struct Asked {
    session: Option<Session>,
    /// The exchange is over: a session that is made now comes too late for its response.
    is_closed: bool,
}

/// The values of a request's Cookie header fields. There is nearly always one.
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

    /// The session, if it was made; from now on it comes too late.
    fn close(&self) -> Option<Session> {
        let mut asked = self.asked();
        asked.is_closed = true;
        asked.session.clone()
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of an exchange: at once, or after store commands.
#[derive(Debug)]
#[must_use = "the reply has to be applied to the response"]
#[allow(clippy::exhaustive_enums)]
pub enum Finish {
    /// There was nothing to do.
    Ready(Reply),
    /// The reply comes when the commit is done.
    Pending(Commit),
}

/// A commit under way: when it is dropped unfinished, it goes on in a task of its own.
#[derive(Debug)]
#[must_use = "the reply has to be applied to the response"]
pub struct Commit(RunToCompletion<Reply>);

impl Future for Commit {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Reply> {
        let ended = || Reply {
            error: Some(Error::new(
                ErrorKind::OutcomeUnknown,
                "the runtime of the commit has ended",
            )),
            ..Reply::default()
        };
        Pin::new(&mut self.0).poll(cx).map(|reply| reply.unwrap_or_else(ended))
    }
}

/// What is to be done to the response.
#[derive(Default)]
#[non_exhaustive]
pub struct Reply {
    /// A Set-Cookie header field to be *added*; `Cache-Control: no-store` goes with it. It holds a
    /// credential: do not log it.
    pub set_cookie: Option<String>,
    /// Whether the response depends on the session, so that `Vary` must name `Cookie`.
    pub vary: bool,
    /// What the response is to be replaced by, as the handler's changes were not kept.
    pub error: Option<Error>,
}

impl Reply {
    /// Whether the response stays as it is.
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

    /// Whether `Cookie` is still to be added to the response's Vary header fields, given those it has.
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

/// The header fields that go when a response is replaced by that of an error: those that speak of the
/// body, of its caching and of the status. All others of the handler stay, such as Set-Cookie, those of
/// CORS, a request id and Strict-Transport-Security.
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

/// The session of a request before anybody has asked for it.
///
/// A handle that is kept, and asked only after the response has begun, gets a session as it is
/// [after the response](Session#after-the-response): nothing is committed without
/// [`save`](Session::save), and what needs a cookie fails with [`ErrorKind::HeadSent`].
#[derive(Clone)]
pub struct SessionHandle {
    session: Arc<LazySession>,
    /// That of the next layer further out.
    outer: Option<Arc<SessionHandle>>,
}

impl SessionHandle {
    /// Reads the record, if this is the first time that somebody asks, and returns the session.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] if the store cannot be read, [`ErrorKind::NewerFormat`] if a newer
    /// release wrote the record, and, in [strict mode](crate::DirectoryMode::Strict),
    /// [`ErrorKind::Corrupt`] if the principal's directory cannot be decoded. Never an empty session
    /// in place of an error.
    pub async fn session(self) -> Result<Session> {
        let session = self.session.session();
        session.load().await?;
        Ok(session)
    }

    /// The handle that belongs to `sessions`, where layers with different cookies are nested; the
    /// innermost layer's is the one that extractors use.
    #[must_use]
    pub fn of(&self, sessions: &Sessions) -> Option<Self> {
        self.find(sessions).cloned()
    }

    /// The configuration of the layer.
    #[must_use]
    pub fn sessions(&self) -> &Sessions {
        &self.session.sessions
    }

    /// From the innermost layer outwards.
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

/// The error of an extractor on a route without the layer, naming the fix.
#[must_use]
pub fn missing_layer(fix: &'static str) -> Error {
    event::missing_layer(fix);
    Error::new(ErrorKind::MissingLayer, fix)
}

/// Renders the errors of one request, where the application [does that
/// itself](crate::Builder::on_error); for adapters.
///
/// When the response passes, the adapter replaces it by what [`render`](Self::render) makes of the reply's
/// error, or, without one, of the [`Error`] that the response stands for already. It leaves [`Rendered`]
/// with the response, so that a layer further out renders no error twice.
#[derive(Clone)]
pub struct ErrorRenderer {
    sessions: Sessions,
    wants: Wants,
}

impl ErrorRenderer {
    /// `None` if the application does not render errors itself. Then `head` is not called.
    #[must_use]
    pub fn of<'a>(sessions: &Sessions, head: impl FnOnce() -> RequestHead<'a>) -> Option<Self> {
        let is_wanted = sessions.settings().options.on_error.is_some();
        is_wanted.then(|| Self { sessions: sessions.clone(), wants: head().wants() })
    }

    /// The response of an error.
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

/// The mark of a response that an [`ErrorRenderer`] has made, in the response's extensions; for adapters.
#[derive(Debug, Clone, Copy)]
#[allow(clippy::exhaustive_structs)]
pub struct Rendered;
