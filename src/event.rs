//! Events for operators: `tracing` events with the `unsticky` target, and counters for the `metrics` facade.
//! `docs/observability.md` documents each event and counter.
//!
//! Without the `tracing` and `metrics` features, every function here is empty.

use std::fmt;

use tokio::time::Instant;
#[cfg(feature = "tracing")]
use tracing::field::{Value, display};

#[cfg(feature = "tracing")]
use crate::error::causes;
use crate::error::{Error, one_line};
use crate::record::token::{SessionId, encoded_digest};
use crate::store::{Kind, StoreKey};

/// How `tracing` events identify an account; set with [`Builder::audit`](crate::Builder::audit).
///
/// The counters from the `metrics` feature never identify an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Audit {
    /// Identifies the account by a digest of its principal. The key of the principal's directory ends in the
    /// same digest. This is the default.
    ///
    /// All events about an account contain the same digest, so you can search for them together. The digest
    /// is a pseudonym: anyone who can guess a principal can compute its digest.
    #[default]
    Digest,
    /// Identifies the account by its principal, truncated to 200 characters and with control characters
    /// replaced.
    ///
    /// Choose this only if your logs may contain what your application uses as a principal.
    Principal,
    /// Does not identify the account. The digest is also left out of directory keys.
    ///
    /// Events still contain the session's public id and the label that the application gave the session.
    Nothing,
}

/// The account that an event is about, identified as configured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Who<'a> {
    pub(crate) audit: Audit,
    pub(crate) cookie_name: &'a str,
    /// `None` if no user is signed in.
    pub(crate) principal: Option<&'a str>,
}

impl fmt::Display for Who<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.principal, self.audit) {
            (None, _) | (_, Audit::Nothing) => f.write_str(NONE),
            (Some(principal), Audit::Principal) => f.write_str(&one_line(principal, LONGEST_NAME)),
            (Some(principal), Audit::Digest) => {
                f.write_str(&encoded_digest(self.cookie_name, principal.as_bytes()))
            }
        }
    }
}

/// The key of a record. The key of a directory record contains the digest of a principal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecordKey<'a> {
    pub(crate) audit: Audit,
    pub(crate) key: &'a StoreKey,
}

impl fmt::Display for RecordKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.key.kind(), self.audit) {
            (Kind::Directory, Audit::Nothing) => {
                let place = self.key.as_str().rsplit_once(':').map_or("", |(place, _)| place);
                write!(f, "{place}:{NONE}")
            }
            _ => self.key.fmt(f),
        }
    }
}

/// The label that the application gave a session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Label<'a>(pub(crate) Option<&'a str>);

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(self.0.unwrap_or(NONE), LONGEST_NAME))
    }
}

/// The person or program that acted on behalf of the principal; see [`Directory::by`](crate::Directory::by).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Actor<'a>(pub(crate) Option<&'a str>);

impl fmt::Display for Actor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(self.0.unwrap_or(NONE), LONGEST_NAME))
    }
}

/// The text of a field without a value.
const NONE: &str = "-";

/// The maximum number of characters that are printed of a principal, a label or an actor.
const LONGEST_NAME: usize = 200;

macro_rules! events {
    ($($(#[$doc:meta])* $level:ident $name:ident($($field:ident: $type:ty),*) $message:literal;)*) => {$(
        $(#[$doc])*
        #[inline]
        pub(crate) fn $name($($field: $type),*) {
            #[cfg(feature = "tracing")]
            tracing::$level!(
                target: "unsticky",
                event = stringify!($name),
                $($field = Field::text(&$field),)*
                $message
            );
            #[cfg(feature = "metrics")]
            metrics::counter!(concat!("unsticky_", stringify!($name), "_total")).increment(1);
            #[cfg(not(feature = "tracing"))]
            { $(let _ = $field;)* }
        }
    )*};
}

/// Converts a field of an event to its text. Text that the application chose is recorded as a string. Logs
/// put strings in quotes, so such text cannot imitate a different field.
#[cfg(feature = "tracing")]
trait Field {
    fn text(&self) -> impl Value;
}

#[cfg(feature = "tracing")]
macro_rules! printed_as_they_are {
    ($($field:ty),*) => {$(
        impl Field for $field {
            fn text(&self) -> impl Value {
                display(self)
            }
        }
    )*};
}

#[cfg(feature = "tracing")]
printed_as_they_are!(SessionId, RecordKey<'_>, &str, usize, bool);

/// The application chooses the principal.
#[cfg(feature = "tracing")]
impl Field for Who<'_> {
    fn text(&self) -> impl Value {
        self.to_string()
    }
}

/// The application chooses the label, or lets its users choose it.
#[cfg(feature = "tracing")]
impl Field for Label<'_> {
    fn text(&self) -> impl Value {
        self.to_string()
    }
}

/// The application chooses the actor, and may take it from a form.
#[cfg(feature = "tracing")]
impl Field for Actor<'_> {
    fn text(&self) -> impl Value {
        self.to_string()
    }
}

/// A request may have no session.
#[cfg(feature = "tracing")]
impl Field for Option<SessionId> {
    fn text(&self) -> impl Value {
        display(self.map_or_else(|| NONE.to_owned(), |id| id.to_string()))
    }
}

#[cfg(feature = "tracing")]
impl Field for &Error {
    fn text(&self) -> impl Value {
        display(causes(self))
    }
}

/// Records how long the store took to answer a command, regardless of the answer.
#[inline]
pub(crate) fn store_answered(verb: &'static str, started: Instant) {
    #[cfg(feature = "metrics")]
    metrics::histogram!("unsticky_store_seconds", "verb" => verb).record(started.elapsed());
    #[cfg(not(feature = "metrics"))]
    let _ = (verb, started);
}

events! {
    /// A session was stored for the first time.
    debug created(id: SessionId) "a session was created";
    /// A user signed in or authenticated again.
    info signed_in(id: SessionId, principal: Who<'_>, label: Label<'_>, reason: &str) "a user signed in";
    /// The secret was replaced without a sign-in.
    info rotated(id: SessionId, principal: Who<'_>, reason: &str) "the secret of a session was replaced";
    /// A request ended its own session.
    info signed_out(id: SessionId, principal: Who<'_>, reason: &str) "a request ended its own session";
    /// A session was ended through the directory, or by an operator.
    info revoked(id: SessionId, principal: Who<'_>, label: Label<'_>, actor: Actor<'_>, reason: &str) "a session was revoked";
    /// All sessions of a principal, or all but one, were revoked. Sign-ins already under way will fail.
    info all_revoked(principal: Who<'_>, actor: Actor<'_>, count: usize, found: bool, reason: &str) "all sessions of a principal, or all but one, were revoked";
    /// In strict mode, the directory does not list the session.
    warn unlisted(id: SessionId, principal: Who<'_>) "a presented session is not listed in its directory";
    /// A sign-in was refused because the principal already has the maximum number of sessions.
    info sign_in_refused(key: RecordKey<'_>, principal: Who<'_>) "a sign-in was refused: too many sessions";
    /// A sign-in failed because all sessions of the principal, or all but one, were revoked after the sign-in
    /// had begun.
    warn sign_in_overtaken(key: RecordKey<'_>, principal: Who<'_>) "a sign-in failed because sessions were revoked in the meantime";
    /// An extractor found no session layer around its route.
    error missing_layer(fix: &str) "the session extractor is used without the session layer";
    /// The bytes under a key are not a record. They are left unchanged.
    error corrupt_record(key: RecordKey<'_>) "a stored record cannot be decoded";
    /// A later release of this crate wrote the record.
    error newer_format(key: RecordKey<'_>) "a stored record has a newer format";
    /// The store has no session with this id.
    debug unknown_session(id: SessionId) "a presented session is not stored";
    /// A stored session was presented with the wrong secret: a stale cookie or an attack.
    warn wrong_secret(id: SessionId, principal: Who<'_>) "a session id was presented with the wrong secret";
    /// A request presented more than one valid token.
    warn several_valid_tokens(count: usize) "one request presented several valid session tokens";
    /// The session was past its deadline, but the store still had it.
    debug expired(id: SessionId) "an expired session was presented";
    /// Another request wrote the session first.
    debug conflict(id: SessionId) "another request wrote the session first";
    /// The session ended, or another request replaced its secret, while a request was changing the session.
    warn gone(id: SessionId, principal: Who<'_>) "changes were dropped: the session has ended, or another request has replaced its secret";
    /// The answer to a `create` or a `replace` was lost, so the write is in doubt. A `delete` is only sent
    /// again.
    warn outcome_in_doubt(key: RecordKey<'_>) "the answer to a write was lost";
    /// The session layer could not find out whether a write was applied, so the operation failed.
    error outcome_unknown(error: &Error) "it is unknown whether a session was written";
    /// The store could not be reached, refused a command, or did not answer in time.
    warn store_failed(verb: &str, error: &Error) "a store command failed";
    /// An idle timeout was not extended. The request itself continues.
    warn refresh_failed(id: SessionId, error: &Error) "an idle timeout could not be extended";
    /// Changes were made but never committed.
    warn changes_dropped(count: usize) "session changes were never committed";
    /// A request failed, and its changes were not kept.
    debug changes_discarded(count: usize) "the session changes of a failed request were discarded";
    /// Two nested session layers use the same cookie.
    error cookie_name_shared(name: &str) "nested session layers share a cookie name: give each of them its own with Builder::cookie";
    /// The function passed to `Guard::permit` did not permit a request.
    info forbidden(id: Option<SessionId>, principal: Who<'_>) "a request was not permitted";
    /// A page on another site made a browser send a request that may change something.
    warn cross_origin(reason: &str) "a cross-site request was refused";
    /// The browser drops the cookie, because the page was loaded over plain HTTP from another machine.
    warn secure_cookie_on_plain_http(name: &str) "a Secure session cookie was sent to a page on plain http, where browsers drop it: use https, or for development only Builder::cookie(Cookie::new(\"a name\").insecure())";
    /// The application opened a session outside a request.
    info opened(id: SessionId, principal: Who<'_>, actor: Actor<'_>) "a session was opened outside a request";
    /// Flash messages were lost because no cookie may be sent for them, the record has no room, or they
    /// cannot be decoded.
    info flash_dropped(count: usize) "flash messages were dropped";
    /// A request had no CSRF token, or one that belongs to a different session.
    info csrf_refused(id: Option<SessionId>, principal: Who<'_>, reason: &str) "a request had no valid CSRF token";
}
