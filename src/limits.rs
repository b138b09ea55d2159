//! The defaults of all limits on waiting and retrying. The documentation of [`Builder`](crate::Builder) has a table
//! of those that an application can set.

use std::time::Duration;

pub(crate) const TIMEOUT: Duration = Duration::from_secs(1);

pub(crate) const RECORD_BYTES: usize = 64 * 1024;

pub(crate) const COMMIT_ATTEMPTS: u32 = 64;

/// How many attempts of a commit follow each other without a pause. There are pauses between the later ones.
pub(crate) const PROMPT_ATTEMPTS: u32 = 8;

/// How often a function over a value is called again because another handle of the same request changed the value
/// during the call.
pub(crate) const VIEW_ATTEMPTS: u32 = 100;

/// The same for a function over all values, which is called again after a change of any value.
pub(crate) const REBASE_ATTEMPTS: u32 = 10_000;

pub(crate) const COMMAND_RETRIES: u32 = 2;

/// How many ids are tried for a new session. The first is enough unless answers are lost.
pub(crate) const NEW_IDS: u32 = 3;

/// How long a session that was revoked before it was written cannot be created: longer than any request waits for
/// the store.
pub(crate) const TOMBSTONE_TTL: Duration = Duration::from_secs(120);

/// Less than half of [`TIMEOUT`], so that there is time to settle a lost answer after a connection has failed.
#[cfg(any(feature = "redis", feature = "memcached"))]
pub(crate) const CONNECT: Duration = Duration::from_millis(400);

/// Less than half of [`TIMEOUT`], so that there is time to settle a write whose answer was lost.
#[cfg(any(feature = "redis", feature = "memcached"))]
pub(crate) const RESPONSE: Duration = Duration::from_millis(400);

#[cfg(any(feature = "redis", feature = "memcached"))]
pub(crate) const WAITING: usize = 8192;
