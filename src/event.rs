//! What is worth telling an operator: as `tracing` events of the target `unsticky`, and as counters of
//! the `metrics` facade. `docs/observability.md` has the table.
//!
//! Without either feature every function here is empty.

use std::fmt;

use tokio::time::Instant;
#[cfg(feature = "tracing")]
use tracing::field::{Value, display};

#[cfg(feature = "tracing")]
use crate::error::causes;
use crate::error::{Error, one_line};
use crate::record::token::{SessionId, encoded_digest};
use crate::store::{Kind, StoreKey};

/// How the events of feature `tracing` name the people whom they are about; see
/// [`Builder::audit`](crate::Builder::audit).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Audit {
    /// By the digest of their principal that is also the last part of their directory's key: the same for
    /// all events of one account. Whoever can guess the name of an account can recognise it. The default.
    #[default]
    Digest,
    /// By their principal as it is, cut to 200 characters and with control characters replaced: for logs that
    /// may hold what the application uses as a principal.
    Principal,
    /// Not at all: the key of a directory is told without the digest that it ends in, too. Sessions are still
    /// told by their public id, and by the label that the application gave them.
    Nothing,
}

/// Who an event is about, named as configured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Who<'a> {
    pub(crate) audit: Audit,
    pub(crate) cookie_name: &'a str,
    /// `None`: nobody is signed in there.
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

/// The key of a record. That of a directory names a principal.
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

/// What the application called a session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Label<'a>(pub(crate) Option<&'a str>);

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(self.0.unwrap_or(NONE), LONGEST_NAME))
    }
}

/// Who acted on behalf of the principal; see [`Directory::by`](crate::Directory::by).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Actor<'a>(pub(crate) Option<&'a str>);

impl fmt::Display for Actor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(self.0.unwrap_or(NONE), LONGEST_NAME))
    }
}

/// The text of a field that has nothing to tell.
const NONE: &str = "-";

/// How many characters of a name, a label or an actor are told.
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

/// What can be a field of an event, and its text there: one that the application has chosen is a string,
/// which logs put in quotes, so that it cannot pass for another field.
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
printed_as_they_are!(SessionId, RecordKey<'_>, &str, usize);

/// Chosen by the application.
#[cfg(feature = "tracing")]
impl Field for Who<'_> {
    fn text(&self) -> impl Value {
        self.to_string()
    }
}

/// Chosen by the application, and perhaps by its visitors.
#[cfg(feature = "tracing")]
impl Field for Label<'_> {
    fn text(&self) -> impl Value {
        self.to_string()
    }
}

/// Chosen by the application, and perhaps by those who use its pages for administrators.
#[cfg(feature = "tracing")]
impl Field for Actor<'_> {
    fn text(&self) -> impl Value {
        self.to_string()
    }
}

/// A visitor has no session.
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

/// Tells how long a store took for a command that was begun then, whatever its answer was.
#[inline]
pub(crate) fn store_answered(verb: &'static str, begun: Instant) {
    #[cfg(feature = "metrics")]
    metrics::histogram!("unsticky_store_seconds", "verb" => verb).record(begun.elapsed());
    #[cfg(not(feature = "metrics"))]
    let _ = (verb, begun);
}

events! {
    /// A session was stored for the first time.
    debug created(id: SessionId) "a session was created";
    /// Somebody signed in, or proved once more who they are.
    info signed_in(id: SessionId, principal: Who<'_>, label: Label<'_>, reason: &str) "somebody signed in";
    /// The secret was replaced without a sign-in.
    info rotated(id: SessionId, principal: Who<'_>, reason: &str) "a session has a new secret";
    /// A session was ended by its own request.
    info signed_out(id: SessionId, principal: Who<'_>, reason: &str) "a session was ended";
    /// A session was ended by its principal's directory, or by an operator.
    info revoked(id: SessionId, principal: Who<'_>, label: Label<'_>, actor: Actor<'_>, reason: &str) "a session was revoked";
    /// All sessions of a principal are to end, and sign-ins that have begun are to fail.
    info all_revoked(principal: Who<'_>, actor: Actor<'_>, reason: &str) "all sessions of a principal were revoked";
    /// Strict mode: a session that its principal's directory does not list.
    warn unlisted(id: SessionId, principal: Who<'_>) "a session was presented that is not listed any more";
    /// There are as many sessions of a principal as are allowed.
    info sign_in_refused(key: RecordKey<'_>, principal: Who<'_>) "a sign-in was refused: too many sessions";
    /// All sessions of a principal were ended after the sign-in had begun.
    warn sign_in_overtaken(key: RecordKey<'_>, principal: Who<'_>) "a sign-in was overtaken by the end of all sessions";
    /// An extractor found no session layer around its route.
    error missing_layer(fix: &str) "the session extractor is used without the session layer";
    /// The bytes under a key are no record; they are left as they are.
    error corrupt_record(key: RecordKey<'_>) "a stored record cannot be decoded";
    /// A later release of this crate wrote the record.
    error newer_format(key: RecordKey<'_>) "a stored record has a newer format";
    /// The store knows no such id: a session that has ended, or a guess.
    debug unknown_session(id: SessionId) "a session was presented that is not stored";
    /// A known id came with a secret that is not its own: a stale cookie or an attack.
    warn wrong_secret(id: SessionId, principal: Who<'_>) "a session id came with a wrong secret";
    /// More than one valid token came with one request.
    warn several_valid_tokens(count: usize) "several valid session tokens came with one request";
    /// The record was past its deadline while the store still had it.
    debug expired(id: SessionId) "an expired session was presented";
    /// Another request changed the session first.
    debug conflict(id: SessionId) "a commit met a newer record";
    /// The session ended, or was signed in anew, while a request was changing it.
    warn gone(id: SessionId, principal: Who<'_>) "changes were dropped: their session is gone";
    /// The answer to a write was lost and is being settled.
    warn outcome_in_doubt(key: RecordKey<'_>) "the answer to a write was lost";
    /// Whether a write was applied could not be found out; its request failed.
    error outcome_unknown(error: &Error) "it is unknown whether a session was written";
    /// The store could not be reached, refused a command, or did not answer in time.
    warn store_failed(verb: &str, error: &Error) "a command of the store failed";
    /// A sliding expiry was not extended; the request itself goes on.
    warn refresh_failed(id: SessionId, error: &Error) "an idle timeout could not be extended";
    /// Changes were made and never committed.
    warn changes_dropped(count: usize) "session changes were never committed";
    /// A request failed, and what it had changed was not kept.
    debug changes_discarded(count: usize) "session changes of a failed request were discarded";
    /// Two session layers, one inside the other, read and write one cookie.
    error cookie_name_shared(name: &str) "nested session layers share a cookie name: give each of them its own with Builder::cookie";
    /// A guard's function did not permit a request.
    info forbidden(id: Option<SessionId>, principal: Who<'_>) "a request was not permitted";
    /// A page of another site made a browser send a request that may change something.
    warn cross_origin(reason: &str) "a request of another site was refused";
    /// The browser drops the cookie of a page that it loaded over plain http from another machine.
    warn secure_cookie_on_plain_http(name: &str) "a Secure session cookie was sent to a page on plain http, where browsers drop it: use https, or for development only Builder::cookie(Cookie::new(\"a name\").insecure())";
    /// The application opened a session outside a request.
    info opened(id: SessionId, principal: Who<'_>, actor: Actor<'_>) "a session was opened outside a request";
    /// Messages for the next page are lost: no cookie may be sent for them, there is no room, or they
    /// cannot be decoded.
    info flash_dropped(count: usize) "messages for the next page were dropped";
    /// A request had no CSRF token, or one that is not its session's.
    info csrf_refused(id: Option<SessionId>, principal: Who<'_>, reason: &str) "a request had no valid CSRF token";
}
