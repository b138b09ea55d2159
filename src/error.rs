//! The one error type, and its kinds.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn StdError + Send + Sync + 'static>;

/// What went wrong with a session.
///
/// The type is opaque: branch on [`kind`](Self::kind), print it, or follow
/// [`source`](StdError::source). It is cheap to clone, holds no secret, and is a response in axum
/// and in actix-web, so `session.get(KEY)?` works in a handler; [`status`](Self::status) tells
/// which response that is.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    context: Cow<'static, str>,
    status: Option<u16>,
    redirect: Option<Redirect>,
    source: Option<Source>,
}

/// Where an error sends its visitor.
struct Redirect {
    location: Option<Cow<'static, str>>,
    /// The header fields of the request that decided it.
    vary: &'static str,
}

/// The kinds of [`Error`], one for each thing a caller can branch on.
///
/// Where a kind says that nothing was written, that is of the session and its request. What a
/// [`Directory`](crate::Directory) was asked to end may be decided and only partly carried out; to ask
/// once more does no harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The store could not be reached or did not answer in time, and nothing was written (503).
    Unavailable,
    /// A write was sent and its answer was lost; it may or may not have been applied (503).
    OutcomeUnknown,
    /// The store answered that it will not do what it was asked, a read or a write: out of memory,
    /// read only, not permitted. Nothing was written (503).
    Refused,
    /// Other writers kept changing the session until the attempts or the time were used up.
    /// Nothing was written (503).
    Contended,
    /// The record was written by a newer release of this crate, in a format this one does not
    /// know. It is left as it is (503).
    NewerFormat,
    /// The operating system gave no randomness, so no id and no secret could be made (503).
    Randomness,
    /// The session ended, or somebody signed in on it, while this request was changing it. The
    /// changes were not kept and the session was not brought back (409, or as configured).
    Gone,
    /// A value handed out by `take` was changed or taken by another request first. Nothing was
    /// written (409).
    ValueChanged,
    /// The record or its key would be over the size limit. Nothing was written (500).
    TooLarge,
    /// A value could not be encoded, or [could not be read again](crate::Key#values). Nothing was
    /// changed (500).
    Encode,
    /// A stored value could not be decoded into the type that was asked for. It stays as it is
    /// (500).
    Decode,
    /// A stored record, a session's or a directory's, could not be decoded. It stays as it is (500).
    Corrupt,
    /// The function of an `update` panicked when it was replayed on a newer record (500).
    UpdatePanicked,
    /// The function of an [`update`](crate::Session::update), or the decoding of a value, changed the
    /// session itself (500).
    Reentrant,
    /// A principal is empty or longer than 1024 bytes. Nothing was written (400).
    InvalidPrincipal,
    /// The request needs a user who is signed in (401, or a 303 to the sign-in page).
    NotSignedIn,
    /// The user is signed in, but authenticated too long ago for this request (401, or a 303 to the
    /// step-up page).
    StaleSignIn,
    /// A [`Guard`](crate::Guard) does not permit the request (403).
    Forbidden,
    /// A page of another site made the browser send this request (403).
    CrossOrigin,
    /// The request's CSRF token is missing, or is not one of this session (403).
    InvalidCsrfToken,
    /// There are as many sessions of this principal already as are allowed at once. No
    /// session was changed or begun (409).
    TooManySessions,
    /// All sessions of the principal were ended after this sign-in had begun, or it has taken more
    /// than an hour. No session was changed or begun (401).
    Revoked,
    /// The directory of sessions is turned off (500).
    NoDirectory,
    /// The extractor was used on a route that the session layer does not wrap (500).
    MissingLayer,
    /// The response's head has left already, so a cookie can no longer be sent (500).
    HeadSent,
}

impl ErrorKind {
    /// The kind's name, for answers in JSON and for labels: `unavailable`, `not_signed_in` and so on, the
    /// variant's name in small letters with underscores. It stays as it is from release to release.
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

    /// A sentence for the visitor: what they can do, and no detail of the deployment. It is the body of a
    /// response that nobody [renders](crate::Builder::on_error). An [`Error`] prints what happened instead,
    /// for logs.
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
            | Self::Randomness => "This is not available for a moment. Please try again.",
            Self::OutcomeUnknown => {
                "It is not certain whether this was saved. Please reload the page and look."
            }
            Self::Gone => {
                "Your session has ended or has changed in another window. Please reload the page and try again."
            }
            Self::ValueChanged => {
                "This was changed or used in another window. Please reload the page and try again."
            }
            Self::InvalidPrincipal => "The name of the account is empty or too long.",
            Self::NotSignedIn => "Please sign in.",
            Self::StaleSignIn => "Please confirm that it is you.",
            Self::Forbidden => "You may not do this.",
            Self::CrossOrigin => "This request came from another site and was refused.",
            Self::InvalidCsrfToken => {
                "This form has expired. Please reload the page and try again."
            }
            Self::TooManySessions => {
                "You are signed in in too many places. Please sign out in one of them."
            }
            Self::Revoked => {
                "You were signed out everywhere in the meantime. Please sign in again."
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

    /// What happened, for those who run the application.
    const fn description(self) -> &'static str {
        match self {
            Self::Unavailable => "the session store is unavailable",
            Self::OutcomeUnknown => "it is unknown whether the session was written",
            Self::Refused => "the session store refused the command",
            Self::Contended => "the session is being changed by too many requests at once",
            Self::NewerFormat => "the session was written by a newer release",
            Self::Randomness => "no randomness could be had for a session",
            Self::Gone => "the session has ended or was signed in anew",
            Self::ValueChanged => "the value was changed or taken by another request",
            Self::TooLarge => "the session is too large",
            Self::Encode => "a session value could not be encoded",
            Self::Decode => "a session value could not be decoded",
            Self::Corrupt => "the session record could not be decoded",
            Self::UpdatePanicked => "an update function panicked when it was replayed",
            Self::Reentrant => "a function over the session changed the session",
            Self::InvalidPrincipal => "the account name is empty or too long",
            Self::NotSignedIn => "nobody is signed in",
            Self::StaleSignIn => "the sign-in is too long ago",
            Self::Forbidden => "the request is not permitted",
            Self::CrossOrigin => "the request was sent by another site",
            Self::InvalidCsrfToken => "the CSRF token is missing or is not one of this session",
            Self::TooManySessions => "too many sessions of this account at once",
            Self::Revoked => "all sessions were ended while the sign-in was under way",
            Self::NoDirectory => "the directory of sessions is turned off",
            Self::MissingLayer => "no session layer wraps this route",
            Self::HeadSent => "the response has begun, so no cookie can be sent",
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
    /// An error of this kind; `context` says what was being done, without any secret.
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

    /// The error of a visitor who was sent to another page, or not, by these header fields of the request.
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

    /// For stores: the server could not be reached, and **nothing was written**.
    ///
    /// The caller may send the command again. Where a write may have reached the server, say
    /// [`outcome_unknown`](Self::outcome_unknown) instead.
    pub fn unavailable(source: impl Into<Box<dyn StdError + Send + Sync + 'static>>) -> Self {
        Self::with_source(ErrorKind::Unavailable, "", source)
    }

    /// For stores: the write may have been applied and may not.
    ///
    /// The caller settles it by reading the record back.
    pub fn outcome_unknown(source: impl Into<Box<dyn StdError + Send + Sync + 'static>>) -> Self {
        Self::with_source(ErrorKind::OutcomeUnknown, "", source)
    }

    /// For stores: the server answered that it will not do this, and **nothing was written**.
    pub fn refused(source: impl Into<Box<dyn StdError + Send + Sync + 'static>>) -> Self {
        Self::with_source(ErrorKind::Refused, "", source)
    }

    /// For stores: the record or its key is over the backend's limit, and **nothing was written**.
    pub fn too_large(source: impl Into<Box<dyn StdError + Send + Sync + 'static>>) -> Self {
        Self::with_source(ErrorKind::TooLarge, "", source)
    }

    /// For stores: the answer to a **read** was not one that it can have. After a write, such an
    /// answer leaves the outcome unknown.
    pub fn corrupt(source: impl Into<Box<dyn StdError + Send + Sync + 'static>>) -> Self {
        Self::with_source(ErrorKind::Corrupt, "", source)
    }

    /// For sources of randomness: there is none to be had.
    pub fn randomness(source: impl Into<Box<dyn StdError + Send + Sync + 'static>>) -> Self {
        Self::with_source(ErrorKind::Randomness, "", source)
    }

    /// For handlers: the user who is signed in may not do this. The answer is that of
    /// [`Guard::permit`](crate::Guard::permit), for what depends on more than the session.
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

    /// What kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same request may be sent again and may then succeed, without any doubt about
    /// what the failed one did.
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

    /// The page that the visitor is sent to, for the Location header field of a 303: one to sign in, or to
    /// authenticate again. `None` where the response is the error itself.
    #[must_use]
    pub fn location(&self) -> Option<&str> {
        self.0.redirect.as_ref()?.location.as_deref()
    }

    /// The header fields of the request that decided which response this error becomes.
    pub(crate) fn vary(&self) -> Option<&'static str> {
        self.0.redirect.as_ref().map(|redirect| redirect.vary)
    }

    /// The HTTP status code of the response this error becomes: as the variants of [`ErrorKind`]
    /// say, as configured for a session that is gone, or 303 where there is a
    /// [`location`](Self::location).
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

/// A text that may come from anywhere as a part of one line, which reads the way it is written: without
/// control characters, separators of lines and marks that change the direction (ASVS 5.0 16.4.1).
pub(crate) fn one_line(text: &str, longest: usize) -> String {
    text.chars().take(longest).map(|char| if is_plain(char) { char } else { ' ' }).collect()
}

/// Whether a character neither ends a line nor commands a terminal.
pub(crate) fn is_plain(char: char) -> bool {
    !char.is_control()
        && !matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// An error and the chain of its sources, which say why, in one line.
pub(crate) fn causes(error: &Error) -> String {
    /// Stores of applications may have sources of any length.
    const LONGEST: usize = 1000;

    let mut text = error.to_string();
    let mut source = StdError::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Many errors print their source themselves.
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

    /// Applications send these to their clients: a name that is here never changes.
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
            // The variant's name, so that nobody has to look it up.
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
    fn error_is_told_with_its_sources() {
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
                "the session store is unavailable: h: the session record could not be decoded: no  value [0m",
            ),
            (Error::outcome_unknown(""), "it is unknown whether the session was written"),
        ] {
            assert_eq!(causes(&error), text);
        }
        let long = Error::unavailable("x".repeat(9000));
        assert_eq!(causes(&long).len(), 1000);
    }
}
