//! One request and its response, without a framework: for adapters.
//!
//! The tower layer and the actix-web middleware of this crate are thin shells around this module, and
//! an adapter for another framework can be one too:
//!
//! 1. [`Exchange::begin`] with the request's Cookie header fields: no I/O;
//! 2. [`Exchange::handle`] goes where extractors find it; [`Handle::session`] reads the record when a
//!    handler first asks;
//! 3. [`Exchange::finish`] with the response's status, and its [`Reply`] applied to the response.
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
//! let exchange = Exchange::begin(&sessions, [&b"theme=dark"[..]], None);
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

use std::borrow::Cow;
use std::fmt;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};

use crate::config::{OnServerError, Sessions};
use crate::cookie::Presented;
use crate::error::{Error, ErrorKind, Result};
use crate::event;
use crate::lasting::Lasting;
use crate::session::Session;

/// A request whose response is not finished. Dropping it keeps nothing of what the handler did but
/// an end of the session.
///
/// Nothing is allocated before somebody asks for the [`handle`](Self::handle).
#[derive(Debug)]
#[must_use = "what the handler changed is kept only by `finish`"]
pub struct Exchange {
    sessions: Sessions,
    presented: Presented,
    outer: Option<Handle>,
    session: OnceLock<Session>,
}

impl Exchange {
    /// Begins with the values of the request's Cookie header fields, as they came.
    ///
    /// `outer` is the handle of a layer further out, where several are nested.
    pub fn begin<'a>(
        sessions: &Sessions,
        cookies: impl IntoIterator<Item = &'a [u8]>,
        outer: Option<Handle>,
    ) -> Self {
        let name = sessions.settings().cookie.name_and_equals();
        let presented = Presented::find(cookies, name);
        Self { sessions: sessions.clone(), presented, outer, session: OnceLock::new() }
    }

    /// What extractors get the session from.
    #[must_use]
    pub fn handle(&self) -> Handle {
        let session = self.session.get_or_init(|| {
            let outer = self.outer.clone().map(|outer| outer.0);
            Session::new(self.sessions.clone(), self.presented.clone(), outer)
        });
        Handle(session.clone())
    }

    /// Commits what the handler changed; `status` is its response's.
    ///
    /// Must be called inside a tokio runtime: a commit that is dropped unfinished goes on there.
    pub fn finish(mut self, status: u16) -> Finish {
        let Some(session) = self.session.take() else {
            return Finish::Ready(Reply::default());
        };
        let policy = session.sessions().settings().on_server_error;
        let failed = status >= 500 && policy == OnServerError::Discard;
        if session.is_settled(failed) {
            return Finish::Ready(Reply::of(&session, failed, None));
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            let error = Error::unavailable("a commit needs a tokio runtime");
            return Finish::Ready(Reply::of(&session, true, Some(error)));
        };
        Finish::Pending(Commit(Lasting::new(runtime, async move {
            let error = session.commit_at_the_end(failed).await.err();
            Reply::of(&session, failed, error)
        })))
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            session.abandon();
        }
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
pub struct Commit(Lasting<Reply>);

impl Future for Commit {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Reply> {
        Pin::new(&mut self.0).poll(cx)
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
    fn of(session: &Session, failed: bool, error: Option<Error>) -> Self {
        let (set_cookie, vary) = session.close(failed);
        Self { set_cookie, vary, error }
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

/// The session of a request before anybody has asked for it.
#[derive(Clone)]
pub struct Handle(Session);

impl Handle {
    /// Reads the record, if this is the first time that somebody asks, and returns the session.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`] if the store can not be read, [`ErrorKind::NewerFormat`] if a newer
    /// release wrote the record, and, in [strict mode](crate::DirectoryMode::Strict),
    /// [`ErrorKind::Corrupt`] if the principal's directory can not be decoded. Never an empty session
    /// in place of an error.
    pub async fn session(self) -> Result<Session> {
        self.0.load().await?;
        Ok(self.0)
    }

    /// The handle that belongs to `sessions`, where layers with different cookies are nested; the
    /// innermost layer's is the one that extractors use.
    #[must_use]
    pub fn of(&self, sessions: &Sessions) -> Option<Self> {
        self.0.of(sessions).cloned().map(Self)
    }

    /// The configuration of the layer.
    #[must_use]
    pub fn sessions(&self) -> &Sessions {
        self.0.sessions()
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handle(..)")
    }
}

/// The error of an extractor on a route without the layer, naming the fix.
#[must_use]
pub fn missing_layer(fix: &'static str) -> Error {
    event::missing_layer(fix);
    Error::new(ErrorKind::MissingLayer, fix)
}

/// An error as a response: what every adapter renders.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rendered {
    /// The status code.
    pub status: u16,
    /// The body, plain text.
    pub body: Cow<'static, str>,
    /// The Location header field.
    pub location: Option<Cow<'static, str>>,
    /// The Retry-After header field, in seconds.
    pub retry_after: Option<&'static str>,
}

impl From<&Error> for Rendered {
    fn from(error: &Error) -> Self {
        let status = error.status();
        Self {
            status,
            body: match error.kind() {
                // A mistake in the program and no secret: whoever sees it should learn the fix.
                ErrorKind::MissingLayer => error.to_string().into(),
                kind => kind.message().into(),
            },
            location: None,
            retry_after: (status == 503).then_some("1"),
        }
    }
}
