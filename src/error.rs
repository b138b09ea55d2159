//! The crate's error type and its kinds.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn StdError + Send + Sync + 'static>;

/// Describes why an operation on a session, a directory or a store failed.
///
/// Branch on [`kind`](Self::kind). `Display` prints one line for logs, and [`source`](StdError::source)
/// returns the cause, for example the Redis client's error. An error is cheap to clone and contains no
/// secret.
///
/// An error is also a response in axum and in actix-web, so `session.get(KEY)?` works in a handler. The
/// response's status code is [`status`](Self::status) and its body is [`ErrorKind::message`], unless the
/// application [renders errors itself](crate::Builder::on_error).
///
/// ```
/// use unsticky::{ErrorKind, Key, Session};
///
/// let session = Session::detached();
/// session.insert(Key::<String>::new("theme"), "dark").unwrap();
/// let error = session.get(Key::<u32>::new("theme")).unwrap_err();
/// assert_eq!((error.kind(), error.status()), (ErrorKind::Decode, 500));
/// assert!(!error.is_retryable());
/// ```
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    context: Cow<'static, str>,
    status: Option<u16>,
    redirect: Option<Redirect>,
    source: Option<Source>,
}

/// The redirect that an error becomes, or would become if the request's headers were different.
struct Redirect {
    location: Option<Cow<'static, str>>,
    /// The request headers that the decision depends on, as the value of `Vary`.
    vary: &'static str,
}

/// Names the cause of an [`Error`], so that callers can branch on it.
///
/// The number in parentheses is the HTTP status code of the error response.
///
/// "Nothing was written" refers to the request's session. A revocation through a
/// [`Directory`](crate::Directory) may be only partly done when it returns an error. Revocations are
/// idempotent, so call the method again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The store could not be reached or did not answer in time. Nothing was written (503).
    Unavailable,
    /// A write was sent, but its answer was lost. The store may or may not have applied the write (503).
    OutcomeUnknown,
    /// The store rejected a read or a write, for example because it is out of memory, is read-only,
    /// or does not permit the command. Nothing was written (503).
    Refused,
    /// Other requests changed the session each time this one tried to write, until the limit on attempts or
    /// the time limit was reached. Nothing was written (503).
    Contended,
    /// A newer release of this crate wrote the record, in a format that this release cannot read.
    /// The record is left unchanged (503).
    NewerFormat,
    /// The random number generator (by default, the operating system's) failed, so no session id, secret or
    /// CSRF token could be generated (503).
    Randomness,
    /// The session has ended, or another request has replaced its secret, for example by signing in, and this
    /// operation [needs](crate::Session#what-a-request-may-do) the current one. The changes were dropped
    /// (409, or the [configured status](crate::Builder::gone_status)).
    Gone,
    /// This request called [`take`](crate::Session::take) on a value, but another request changed or took the
    /// value before this request committed. Nothing was written (409).
    ValueChanged,
    /// The record, its key in the store, or a flash message would exceed the size limit. Nothing was written
    /// (500).
    TooLarge,
    /// A value could not be encoded, or it encodes to something that
    /// [cannot be decoded again](crate::Key#values). Nothing was changed (500).
    Encode,
    /// A stored value could not be decoded as the key's type. The value is left unchanged (500).
    Decode,
    /// A session's record or a directory record could not be decoded. The record is left unchanged
    /// (500).
    Corrupt,
    /// The function that was passed to [`update`](crate::Session::update) panicked when it was called again
    /// on a newer value. Nothing was written (500).
    UpdatePanicked,
    /// The function that was passed to [`update`](crate::Session::update), or a value's `Deserialize`
    /// implementation, changed a session while it ran (500).
    Reentrant,
    /// The principal is empty or longer than 1024 bytes. Nothing was written (400).
    InvalidPrincipal,
    /// The request requires a signed-in user (401, or 303 to the
    /// [sign-in page](crate::Builder::sign_in_page)).
    NotSignedIn,
    /// The user is signed in, but authenticated too long ago for this request (401, or 303 to the
    /// [step-up page](crate::Builder::step_up_page)).
    StaleSignIn,
    /// A [`Guard`](crate::Guard), or the handler itself with [`Error::forbidden`], does not permit
    /// the request (403).
    Forbidden,
    /// The browser sent this request on behalf of a page on another site (403).
    CrossOrigin,
    /// The request's CSRF token is missing or does not belong to this session (403).
    InvalidCsrfToken,
    /// The principal already has the maximum number of
    /// [concurrent sessions](crate::Builder::concurrent_sessions). No session was created or changed,
    /// except that an earlier sign-out or `destroy` of the same request is carried out (409).
    TooManySessions,
    /// All sessions of the principal, or all but one, were revoked while this sign-in was under way, or more
    /// than one hour passed between [`begin_sign_in`](crate::Directory::begin_sign_in) and the commit. No
    /// session was created or changed, except that an earlier sign-out or `destroy` of the same request is
    /// carried out (401).
    Revoked,
    /// The [directory](crate::DirectoryMode) is turned off (500).
    NoDirectory,
    /// An extractor or a guard was used on a route that no session layer or middleware wraps (500).
    MissingLayer,
    /// The response headers were already sent, so a cookie can no longer be set (500).
    HeadSent,
}

impl ErrorKind {
    /// Returns the name of the kind: the variant's name in snake case, such as `not_signed_in`.
    ///
    /// Use it in JSON responses and as a metric label. The names do not change between releases.
    ///
    /// ```
    /// assert_eq!(unsticky::ErrorKind::NotSignedIn.as_str(), "not_signed_in");
    /// ```
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::Refused => "refused",
            Self::Contended => "contended",
            Self::NewerFormat => "newer_format",
            Self::Randomness => "randomness",
            Self::Gone => "gone",
            Self::ValueChanged => "value_changed",
            Self::TooLarge => "too_large",
            Self::Encode => "encode",
            Self::Decode => "decode",
            Self::Corrupt => "corrupt",
            Self::UpdatePanicked => "update_panicked",
            Self::Reentrant => "reentrant",
            Self::InvalidPrincipal => "invalid_principal",
            Self::NotSignedIn => "not_signed_in",
            Self::StaleSignIn => "stale_sign_in",
            Self::Forbidden => "forbidden",
            Self::CrossOrigin => "cross_origin",
            Self::InvalidCsrfToken => "invalid_csrf_token",
            Self::TooManySessions => "too_many_sessions",
            Self::Revoked => "revoked",
            Self::NoDirectory => "no_directory",
            Self::MissingLayer => "missing_layer",
            Self::HeadSent => "head_sent",
        }
    }

    /// Returns a message for the visitor with advice on how to continue. The message contains no details of
    /// the deployment.
    ///
    /// The message is the body of the error response, unless the application
    /// [renders errors](crate::Builder::on_error) itself. For logs, print the [`Error`] instead.
    ///
    /// ```
    /// assert_eq!(unsticky::ErrorKind::NotSignedIn.message(), "Please sign in.");
    /// ```
    #[must_use]
    pub const fn message(self) -> &'static str {
        match self {
            Self::Unavailable
            | Self::Refused
            | Self::Contended
            | Self::NewerFormat
            | Self::Randomness => "This is temporarily unavailable. Please try again.",
            Self::OutcomeUnknown => {
                "Your change may not have been saved. Reload the page and check."
            }
            Self::Gone => {
                "Your session ended or changed in another tab. Reload the page and try again."
            }
            Self::ValueChanged => {
                "This was changed or used in another tab. Reload the page and try again."
            }
            Self::InvalidPrincipal => "The account's identifier is empty or too long.",
            Self::NotSignedIn => "Please sign in.",
            Self::StaleSignIn => "Please confirm your identity.",
            Self::Forbidden => "You do not have permission to do this.",
            Self::CrossOrigin => "This request came from another site and was refused.",
            Self::InvalidCsrfToken => "This form has expired. Reload the page and try again.",
            Self::TooManySessions => {
                "You are signed in on too many devices. Sign out on one of them and try again."
            }
            Self::Revoked => {
                "You were signed out everywhere while signing in. Please sign in again."
            }
            Self::TooLarge
            | Self::Encode
            | Self::Decode
            | Self::Corrupt
            | Self::UpdatePanicked
            | Self::Reentrant
            | Self::NoDirectory
            | Self::MissingLayer
            | Self::HeadSent => "Something went wrong on our side.",
        }
    }

    /// Describes the failure for logs and operators.
    const fn description(self) -> &'static str {
        match self {
            Self::Unavailable => "the session store is unavailable",
            Self::OutcomeUnknown => "the outcome of a write to the session store is unknown",
            Self::Refused => "the session store refused the command",
            Self::Contended => "too many requests are changing the session at once",
            Self::NewerFormat => "the session was written by a newer release",
            Self::Randomness => "the operating system's random number generator failed",
            Self::Gone => "the session has ended, or another request has replaced its secret",
            Self::ValueChanged => "another request changed or took the value first",
            Self::TooLarge => "the session is too large",
            Self::Encode => "a session value could not be encoded",
            Self::Decode => "a session value could not be decoded",
            Self::Corrupt => "the session record could not be decoded",
            Self::UpdatePanicked => {
                "an update function panicked when it was called again on a newer value"
            }
            Self::Reentrant => {
                "a session was changed inside an update function or while a value was being decoded"
            }
            Self::InvalidPrincipal => "the principal is empty or longer than 1024 bytes",
            Self::NotSignedIn => "the user is not signed in",
            Self::StaleSignIn => "the user authenticated too long ago",
            Self::Forbidden => "the request is not permitted",
            Self::CrossOrigin => "the request was sent by another site",
            Self::InvalidCsrfToken => {
                "the CSRF token is missing or does not belong to this session"
            }
            Self::TooManySessions => "the principal has too many concurrent sessions",
            Self::Revoked => {
                "the sign-in began before the account's sessions were revoked, or more than one hour ago"
            }
            Self::NoDirectory => "the directory is turned off",
            Self::MissingLayer => "no session layer wraps this route",
            Self::HeadSent => "the response headers were already sent, so no cookie can be set",
        }
    }

    const fn status(self) -> u16 {
        match self {
            Self::Unavailable
            | Self::OutcomeUnknown
            | Self::Refused
            | Self::Contended
            | Self::NewerFormat
            | Self::Randomness => 503,
            Self::Gone | Self::ValueChanged | Self::TooManySessions => 409,
            Self::NotSignedIn | Self::StaleSignIn | Self::Revoked => 401,
            Self::Forbidden | Self::CrossOrigin | Self::InvalidCsrfToken => 403,
            Self::InvalidPrincipal => 400,
            Self::TooLarge
            | Self::Encode
            | Self::Decode
            | Self::Corrupt
            | Self::UpdatePanicked
            | Self::Reentrant
            | Self::NoDirectory
            | Self::MissingLayer
            | Self::HeadSent => 500,
        }
    }
}

impl Error {
    /// Creates an error. `context` adds detail to the log line and must not contain a secret.
    #[cold]
    pub(crate) fn new(kind: ErrorKind, context: impl Into<Cow<'static, str>>) -> Self {
        Self::made(kind, context.into(), None, None)
    }

    #[cold]
    pub(crate) fn with_source(
        kind: ErrorKind,
        context: impl Into<Cow<'static, str>>,
        source: impl Into<Source>,
    ) -> Self {
        Self::made(kind, context.into(), None, Some(source.into()))
    }

    fn made(
        kind: ErrorKind,
        context: Cow<'static, str>,
        status: Option<u16>,
        source: Option<Source>,
    ) -> Self {
        Self(Arc::new(Inner { kind, context, status, redirect: None, source }))
    }

    /// Creates the error for a request that is redirected to `location`, or would be if its headers were
    /// different. `vary` names these headers.
    #[cold]
    pub(crate) fn decided_by(
        vary: &'static str,
        kind: ErrorKind,
        location: Option<Cow<'static, str>>,
    ) -> Self {
        Self(Arc::new(Inner {
            kind,
            context: Cow::Borrowed(""),
            status: location.is_some().then_some(303),
            redirect: Some(Redirect { location, vary }),
            source: None,
        }))
    }

    /// Creates the error for a store that could not reach its server and **wrote nothing**.
    ///
    /// The caller may send the command again. If a write may have reached the server, return
    /// [`outcome_unknown`](Self::outcome_unknown) instead.
    pub fn unavailable(source: impl Into<Box<dyn StdError + Send + Sync + 'static>>) -> Self {
        Self::with_source(ErrorKind::Unavailable, "", source)
    }

    /// Creates the error for a store that does not know whether the server applied a write.
    ///
    /// The caller reads the record again to find out.
    pub fn outcome_unknown(source: impl Into<Box<dyn StdError + Send + Sync + 'static>>) -> Self {
        Self::with_source(ErrorKind::OutcomeUnknown, "", source)
    }

    /// Creates the error for a store whose server rejected the command and **wrote nothing**.
    pub fn refused(source: impl Into<Box<dyn StdError + Send + Sync + 'static>>) -> Self {
        Self::with_source(ErrorKind::Refused, "", source)
    }

    /// Creates the error for a record or a key that the store or its server rejected because of its size.
    /// **Nothing was written.**
    pub fn too_large(source: impl Into<Box<dyn StdError + Send + Sync + 'static>>) -> Self {
        Self::with_source(ErrorKind::TooLarge, "", source)
    }

    /// Creates the error for a store that received an invalid answer to a **read**.
    ///
    /// After a write, return [`outcome_unknown`](Self::outcome_unknown) instead.
    pub fn corrupt(source: impl Into<Box<dyn StdError + Send + Sync + 'static>>) -> Self {
        Self::with_source(ErrorKind::Corrupt, "", source)
    }

    /// Creates the error for an [`Entropy`](crate::Entropy) source that failed.
    pub fn randomness(source: impl Into<Box<dyn StdError + Send + Sync + 'static>>) -> Self {
        Self::with_source(ErrorKind::Randomness, "", source)
    }

    /// Creates the error for a handler that does not permit what the signed-in user requested.
    ///
    /// The response is the same as that of [`Guard::permit`](crate::Guard::permit). Use this error for
    /// decisions that depend on more than the session.
    ///
    /// ```
    /// use unsticky::{Error, ErrorKind, Result, SignedIn};
    ///
    /// async fn order(user: SignedIn, owner: &str) -> Result<String> {
    ///     if *user.principal != *owner {
    ///         return Err(Error::forbidden());
    ///     }
    ///     Ok("the order".to_owned())
    /// }
    /// # let session = unsticky::Session::detached();
    /// # session.sign_in("alice").unwrap();
    /// # let user = SignedIn::try_from(session).unwrap();
    /// # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    /// # let error = runtime.block_on(order(user, "bob")).unwrap_err();
    /// # assert_eq!((error.kind(), error.status()), (ErrorKind::Forbidden, 403));
    /// ```
    #[must_use]
    pub fn forbidden() -> Self {
        Self::new(ErrorKind::Forbidden, "")
    }

    /// Returns the kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns `true` if the failed operation certainly wrote nothing to the session and may succeed when it
    /// is retried.
    ///
    /// This is the case for [`Unavailable`](ErrorKind::Unavailable), [`Refused`](ErrorKind::Refused),
    /// [`Contended`](ErrorKind::Contended), [`NewerFormat`](ErrorKind::NewerFormat) and
    /// [`Randomness`](ErrorKind::Randomness).
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.kind(),
            ErrorKind::Unavailable
                | ErrorKind::Refused
                | ErrorKind::Contended
                | ErrorKind::NewerFormat
                | ErrorKind::Randomness
        )
    }

    /// Returns the page to which the response redirects the visitor with a 303: the sign-in page or the
    /// step-up page. `None` if the response does not redirect.
    #[must_use]
    pub fn location(&self) -> Option<&str> {
        self.0.redirect.as_ref()?.location.as_deref()
    }

    /// Returns the request headers that the response depends on, as the value of `Vary`.
    pub(crate) fn vary(&self) -> Option<&'static str> {
        self.0.redirect.as_ref().map(|redirect| redirect.vary)
    }

    /// Returns the HTTP status code of the error response.
    ///
    /// The status is 303 if there is a [`location`](Self::location), the
    /// [configured status](crate::Builder::gone_status) for [`ErrorKind::Gone`], and otherwise the number in
    /// the documentation of the [`ErrorKind`].
    #[must_use]
    pub fn status(&self) -> u16 {
        self.0.status.unwrap_or_else(|| self.kind().status())
    }

    pub(crate) fn answered_with(kind: ErrorKind, context: &'static str, status: u16) -> Self {
        Self::made(kind, Cow::Borrowed(context), Some(status), None)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind().description())?;
        if !self.0.context.is_empty() {
            write!(f, ": {}", self.0.context)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Error");
        debug.field("kind", &self.kind());
        if !self.0.context.is_empty() {
            debug.field("context", &self.0.context);
        }
        if let Some(source) = &self.0.source {
            debug.field("source", source);
        }
        debug.finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

/// Makes untrusted text safe to print within a log line: replaces control characters, line separators and
/// text direction marks with spaces (ASVS 5.0 16.4.1).
pub(crate) fn one_line(text: &str, longest: usize) -> String {
    text.chars().take(longest).map(|char| if is_plain(char) { char } else { ' ' }).collect()
}

/// Returns whether a character neither ends a line nor controls a terminal.
pub(crate) fn is_plain(char: char) -> bool {
    !char.is_control()
        && !matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Returns an error and the chain of its sources as one line.
pub(crate) fn causes(error: &Error) -> String {
    /// The maximum length in characters. Errors from an application's own store may be of any length.
    const LONGEST: usize = 1000;

    let mut text = error.to_string();
    let mut source = StdError::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Many errors already print their source.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    one_line(&text, LONGEST)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io;

    use super::*;

    /// Applications send these names to their clients, so they never change.
    const NAMES: &[(ErrorKind, &str, u16)] = &[
        (ErrorKind::Unavailable, "unavailable", 503),
        (ErrorKind::OutcomeUnknown, "outcome_unknown", 503),
        (ErrorKind::Refused, "refused", 503),
        (ErrorKind::Contended, "contended", 503),
        (ErrorKind::NewerFormat, "newer_format", 503),
        (ErrorKind::Randomness, "randomness", 503),
        (ErrorKind::Gone, "gone", 409),
        (ErrorKind::ValueChanged, "value_changed", 409),
        (ErrorKind::TooLarge, "too_large", 500),
        (ErrorKind::Encode, "encode", 500),
        (ErrorKind::Decode, "decode", 500),
        (ErrorKind::Corrupt, "corrupt", 500),
        (ErrorKind::UpdatePanicked, "update_panicked", 500),
        (ErrorKind::Reentrant, "reentrant", 500),
        (ErrorKind::InvalidPrincipal, "invalid_principal", 400),
        (ErrorKind::NotSignedIn, "not_signed_in", 401),
        (ErrorKind::StaleSignIn, "stale_sign_in", 401),
        (ErrorKind::Forbidden, "forbidden", 403),
        (ErrorKind::CrossOrigin, "cross_origin", 403),
        (ErrorKind::InvalidCsrfToken, "invalid_csrf_token", 403),
        (ErrorKind::TooManySessions, "too_many_sessions", 409),
        (ErrorKind::Revoked, "revoked", 401),
        (ErrorKind::NoDirectory, "no_directory", 500),
        (ErrorKind::MissingLayer, "missing_layer", 500),
        (ErrorKind::HeadSent, "head_sent", 500),
    ];

    #[test]
    fn names_and_statuses_are_those_of_the_table() {
        for (kind, name, status) in NAMES {
            assert_eq!((kind.as_str(), kind.status()), (*name, *status));
            // The name is always the variant's name in snake case.
            let mut snake = String::new();
            for (place, letter) in format!("{kind:?}").chars().enumerate() {
                if letter.is_uppercase() && place > 0 {
                    snake.push('_');
                }
                snake.extend(letter.to_lowercase());
            }
            assert_eq!(snake, *name);
        }
    }

    #[test]
    fn every_kind_has_its_own_name() {
        let names: BTreeSet<_> = NAMES.iter().map(|(kind, ..)| kind.as_str()).collect();
        // The match in `message` has an arm for each kind.
        let source = include_str!("error.rs");
        let (_, messages) = source.split_once("pub const fn message").unwrap_or_default();
        let (messages, _) = messages.split_once("const fn description").unwrap_or_default();
        assert_eq!(names.len(), messages.matches("Self::").count());
    }

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: io::Error,
    }

    #[test]
    fn log_line_contains_the_sources() {
        let reset = || io::Error::new(io::ErrorKind::ConnectionReset, "the link is gone");
        for (error, text) in [
            (
                Error::unavailable("no connection"),
                "the session store is unavailable: no connection",
            ),
            (
                Error::unavailable(Layer { text: "cannot connect to h:1", source: reset() }),
                "the session store is unavailable: cannot connect to h:1: the link is gone",
            ),
            (
                Error::unavailable(Layer { text: "h:1: the link is gone", source: reset() }),
                "the session store is unavailable: h:1: the link is gone",
            ),
            (
                Error::with_source(
                    ErrorKind::Unavailable,
                    "h",
                    Error::corrupt("no\r\nvalue\u{1b}[0m"),
                ),
                "the session store is unavailable: h: the session record could not be decoded: no  \
                 value [0m",
            ),
            (Error::outcome_unknown(""), "the outcome of a write to the session store is unknown"),
        ] {
            assert_eq!(causes(&error), text);
        }
        let long = Error::unavailable("x".repeat(9000));
        assert_eq!(causes(&long).len(), 1000);
    }
}
