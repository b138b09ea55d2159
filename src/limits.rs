//! The defaults of everything that bounds waiting and trying, in one place; the table of them is in
//! the documentation of [`Builder`](crate::Builder).

use std::time::Duration;

pub(crate) const TIMEOUT: Duration = Duration::from_secs(1);

pub(crate) const RECORD_BYTES: usize = 64 * 1024;

pub(crate) const COMMIT_ATTEMPTS: u32 = 64;

/// How many attempts of a commit follow each other at once; between the later ones there are pauses.
pub(crate) const PROMPT_ATTEMPTS: u32 = 8;

/// How often a function over a value is called anew because other handles of the request changed that
/// value meanwhile.
pub(crate) const VIEW_ATTEMPTS: u32 = 100;

/// The same for all values, where a change of any of them is one too many.
pub(crate) const REBASE_ATTEMPTS: u32 = 10_000;

pub(crate) const COMMAND_RETRIES: u32 = 2;

/// How many ids are tried for a new session. One is enough unless answers are lost.
pub(crate) const NEW_IDS: u32 = 3;

/// How long nobody can create a session that was ended before it was written: longer than any
/// request waits for the store.
pub(crate) const TOMBSTONE_TTL: Duration = Duration::from_secs(120);

/// Less than half of [`TIMEOUT`], so that one that is used up leaves time to settle a lost answer.
#[cfg(any(feature = "redis", feature = "memcached"))]
pub(crate) const CONNECT: Duration = Duration::from_millis(400);

/// Less than half of [`TIMEOUT`], for the same reason.
#[cfg(any(feature = "redis", feature = "memcached"))]
pub(crate) const RESPONSE: Duration = Duration::from_millis(400);

#[cfg(any(feature = "redis", feature = "memcached"))]
pub(crate) const WAITING: usize = 8192;
