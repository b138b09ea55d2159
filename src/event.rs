//! What is worth telling an operator, as `tracing` events of the target `unsticky`.
//!
//! Without the feature `tracing` every function here is empty.

use crate::error::Error;
use crate::session::SessionId;
use crate::store::StoreKey;

macro_rules! events {
    ($($(#[$doc:meta])* $level:ident $name:ident($($field:ident: $type:ty),*) $message:literal;)*) => {$(
        $(#[$doc])*
        #[inline]
        pub(crate) fn $name($($field: $type),*) {
            #[cfg(feature = "tracing")]
            tracing::$level!(
                target: "unsticky",
                event = stringify!($name),
                $($field = %$field,)*
                $message
            );
            #[cfg(not(feature = "tracing"))]
            { $(let _ = $field;)* }
        }
    )*};
}

events! {
    /// An extractor found no session layer around its route.
    error missing_layer(fix: &str) "the session extractor is used without the session layer";
    /// The bytes under a session's key are no record; they are left as they are.
    error corrupt_record(id: SessionId) "a stored record cannot be decoded";
    /// A later release of this crate wrote the record.
    error newer_format(id: SessionId) "a stored record has a newer format";
    /// A known id came with a secret that is not its own: a stale cookie or an attack.
    warn wrong_secret(id: SessionId) "a session id came with a wrong secret";
    /// More than one valid token came with one request.
    warn several_valid_tokens(count: usize) "several valid session tokens came with one request";
    /// The record was past its deadline while the store still had it.
    debug expired(id: SessionId) "an expired session was presented";
    /// Another request changed the session first.
    debug conflict(id: SessionId) "a commit met a newer record";
    /// The session ended, or was signed in anew, while a request was changing it.
    warn gone(id: SessionId) "changes were dropped: their session is gone";
    /// The answer to a write was lost and is being settled.
    warn outcome_in_doubt(key: &StoreKey) "the answer to a write was lost";
    /// The store did not answer in time.
    warn store_failed(verb: &str) "the store did not answer in time";
    /// A sliding expiry was not extended; the request itself goes on.
    warn refresh_failed(id: SessionId, error: &Error) "an idle timeout could not be extended";
    /// Changes were made and never committed.
    warn changes_dropped(count: u64) "session changes were never committed";
}
