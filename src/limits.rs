//! The default for every limit on waiting and retrying. The documentation of [`Builder`](crate::Builder) has
//! a table of the limits that an application can set.

use std::time::Duration;

pub(crate) const TIMEOUT: Duration = Duration::from_secs(1);

pub(crate) const RECORD_BYTES: usize = 64 * 1024;

pub(crate) const COMMIT_ATTEMPTS: u32 = 64;

/// How many attempts a commit makes without a pause. There is a pause before each later attempt.
pub(crate) const PROMPT_ATTEMPTS: u32 = 8;

/// How many attempts `Session::take` and `Session::update` make while other handles in the same request keep
/// changing the value. Each attempt runs the application's code on the value.
pub(crate) const VIEW_ATTEMPTS: u32 = 100;

/// How many attempts are made to recompute the view while other handles in the same request keep changing the
/// session.
pub(crate) const REBASE_ATTEMPTS: u32 = 10_000;

pub(crate) const COMMAND_RETRIES: u32 = 2;

/// How many ids are tried for a new session. The first is nearly always enough; others are tried if the
/// answer to a `create` is lost.
pub(crate) const NEW_IDS: u32 = 3;

/// How long a tombstone prevents the creation of a session that was revoked before it was written. This is
/// longer than the longest store timeout that an application can configure.
pub(crate) const TOMBSTONE_TTL: Duration = Duration::from_secs(120);

/// Less than half of [`TIMEOUT`], so that there is still time to settle an in-doubt write after a connection
/// attempt has failed.
#[cfg(any(feature = "redis", feature = "memcached"))]
pub(crate) const CONNECT: Duration = Duration::from_millis(400);

/// Less than half of [`TIMEOUT`], so that there is still time to settle an in-doubt write.
#[cfg(any(feature = "redis", feature = "memcached"))]
pub(crate) const RESPONSE: Duration = Duration::from_millis(400);

#[cfg(any(feature = "redis", feature = "memcached"))]
pub(crate) const WAITING: usize = 8192;
