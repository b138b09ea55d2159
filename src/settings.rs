//! The checked configuration of an application, and the state that its requests share.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::answer::OnError;
use crate::clock::{Clock, Millis};
use crate::cookie::template::CookieTemplate;
use crate::entropy::Entropy;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{self, Audit, RecordKey, Who};
use crate::key_lock::KeyLocks;
use crate::limits;
use crate::record::authority::SecretStatus;
use crate::record::header::Header;
use crate::record::lifetime::Lifetime;
use crate::record::loaded::Loaded;
use crate::record::tag::Tag;
use crate::record::token::SessionId;
use crate::store::{Kind, Store, StoreKey, TAG_LEN};

/// The sessions of an application: the store and the configuration.
///
/// Build this value once when the application starts, with [`Sessions::builder`], and pass it to the session
/// layer or middleware. Handlers can take it as an argument. Cloning is cheap.
///
/// ```
/// use std::time::Duration;
/// use unsticky::{Lifetime, Sessions};
///
/// # #[cfg(feature = "memory")]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let url = "memory:";
/// let hour = Duration::from_secs(60 * 60);
/// let sessions = Sessions::builder(unsticky::connect(url)?)
///     .namespace("shop")
///     .lifetime(Lifetime::new(hour, 12 * hour))
///     .build()?;
/// # let _ = sessions;
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "memory"))]
/// # fn main() {}
/// ```
#[doc(alias("SessionManager", "SessionManagerLayer"))]
#[derive(Clone)]
pub struct Sessions(Arc<Settings>);

/// The configuration and state that all requests of an application share.
pub(crate) struct Settings {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) cookie: CookieTemplate,
    pub(crate) options: Options,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) key_locks: KeyLocks,
    /// The beginning of every key: the namespace and the epoch.
    pub(crate) key_prefix: String,
    /// Whether the event about a `Secure` cookie on plain HTTP has already been emitted.
    pub(crate) plain_http_told: AtomicBool,
}

/// The settings that an application can choose.
pub(crate) struct Options {
    pub(crate) lifetime: Lifetime,
    pub(crate) timeout: Duration,
    pub(crate) max_record: usize,
    pub(crate) directory: DirectoryMode,
    /// `None` if the application has not set it.
    pub(crate) concurrent: Option<ConcurrentSessions>,
    pub(crate) commit_attempts: u32,
    pub(crate) command_retries: u32,
    pub(crate) on_failed_response: OnFailedResponse,
    pub(crate) gone_status: u16,
    pub(crate) pages: Pages,
    pub(crate) on_error: Option<Arc<OnError>>,
    pub(crate) audit: Audit,
}

/// The pages to which rejected requests are redirected.
#[derive(Clone, Default)]
pub(crate) struct Pages {
    pub(crate) sign_in: Option<Cow<'static, str>>,
    pub(crate) step_up: Option<Cow<'static, str>>,
}

impl Pages {
    /// Returns whether a page's URL is valid in a `Location` header, does not depend on the current page, and
    /// has no fragment. (A query cannot be appended after a fragment.)
    pub(crate) fn is_address(page: &str) -> bool {
        let is_whole = page.starts_with('/') || page.contains("://");
        is_whole && page.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
    }
}

impl Options {
    pub(crate) fn concurrent(&self) -> ConcurrentSessions {
        self.concurrent.unwrap_or_default()
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lifetime: Lifetime::default(),
            timeout: limits::TIMEOUT,
            max_record: limits::RECORD_BYTES,
            directory: DirectoryMode::default(),
            concurrent: None,
            commit_attempts: limits::COMMIT_ATTEMPTS,
            command_retries: limits::COMMAND_RETRIES,
            on_failed_response: OnFailedResponse::default(),
            gone_status: 409,
            pages: Pages::default(),
            on_error: None,
            audit: Audit::default(),
        }
    }
}

impl Settings {
    pub(crate) fn now(&self) -> Millis {
        Millis(self.clock.unix_millis())
    }

    pub(crate) fn key(&self, id: SessionId) -> StoreKey {
        StoreKey::new(&self.key_prefix, Kind::Session, id.encoded(&mut [0; SessionId::ENCODED_LEN]))
    }

    /// Returns the error for a request that has lost its session: the session has ended, or another request
    /// has replaced its secret.
    pub(crate) fn gone(&self, context: &'static str) -> Error {
        Error::answered_with(ErrorKind::Gone, context, self.options.gone_status)
    }

    /// Returns the key of a record in the form in which events show it.
    pub(crate) fn record_key<'a>(&self, key: &'a StoreKey) -> RecordKey<'a> {
        RecordKey { audit: self.options.audit, key }
    }

    /// Returns the account that an event is about.
    pub(crate) fn who<'a>(&'a self, principal: Option<&'a str>) -> Who<'a> {
        Who { audit: self.options.audit, cookie_name: self.cookie.name(), principal }
    }

    /// Returns the account that a session's events are about.
    pub(crate) fn who_of<'a>(&'a self, session: &'a Loaded) -> Who<'a> {
        self.who(session.record.header.principal.as_deref())
    }

    /// Returns whether this is the first use of a sign-in's cookie, and the limit on concurrent sessions
    /// requires the session to be confirmed.
    pub(crate) fn confirms(&self, loaded: &Loaded) -> bool {
        loaded.record.header.is_unconfirmed
            && loaded.authority.is_presented
            && self.options.concurrent().rejects()
            && loaded.secret_status() == SecretStatus::Current
    }

    /// Emits an event, once only, if this `Set-Cookie` header sets a token, because the browser will drop it.
    pub(crate) fn tell_of_dropped_cookie(&self, header: &str) {
        if self.cookie.is_set_by(header) && !self.plain_http_told.swap(true, Ordering::Relaxed) {
            event::secure_cookie_on_plain_http(self.cookie.name());
        }
    }

    /// Returns whether the idle timeout of a session is due to be extended.
    pub(crate) fn refresh_due(&self, header: &Header, now: Millis) -> bool {
        header.clocks.refresh_due(now, &header.effective_lifetime(&self.options.lifetime))
    }

    /// Returns a random tag for a write.
    pub(crate) fn tag(&self) -> Result<Tag> {
        let mut tag = [0; TAG_LEN];
        self.entropy.fill(&mut tag)?;
        Ok(Tag(tag))
    }
}

impl Sessions {
    pub(crate) fn new(settings: Settings) -> Self {
        Self(Arc::new(settings))
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.0
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions")
            .field("store", &self.0.store)
            .field("cookie", &self.0.cookie)
            .field("lifetime", &self.0.options.lifetime)
            .field("timeout", &self.0.options.timeout)
            .finish_non_exhaustive()
    }
}

/// Determines whether a handler's changes are committed if its response has status 5xx or 408. Timeout layers
/// use 408 when they abort a handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum OnFailedResponse {
    /// Drops the changes. Only a sign-out or [`destroy`](crate::Session::destroy) is still committed. This is
    /// the default.
    ///
    /// To store a change even if the response is an error, use [`transact`](crate::Session::transact) or
    /// [`save`](crate::Session::save).
    #[default]
    Discard,
    /// Commits the changes, as after any other response. If the handler panics, the changes are dropped all
    /// the same, as with [`Discard`](Self::Discard).
    Commit,
}

impl OnFailedResponse {
    /// Returns whether the changes are dropped if the response has this status.
    pub(crate) fn discards(self, status: u16) -> bool {
        self == Self::Discard && (status >= 500 || status == 408)
    }
}

/// Determines whether the sessions of each principal are listed in a [`Directory`](crate::Directory).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum DirectoryMode {
    /// No directory is kept, so sessions cannot be listed, limited or revoked. A sign-in sends no commands
    /// for a directory.
    ///
    /// If you turn the directory on later, an existing session stays unlisted until its user authenticates
    /// again or its lifetime is extended. To end all existing sessions, change the
    /// [`epoch`](crate::Builder::epoch).
    Off,
    /// A sign-in lists its session in the principal's directory, which takes two additional commands, or
    /// usually one after [`begin_sign_in`](crate::Directory::begin_sign_in). A step-up, or a change that lets
    /// a signed-in session live longer, also updates the directory. Other requests send no additional
    /// commands. This is the default.
    #[default]
    Listed,
    /// Strict mode: a signed-in session is valid only while the directory lists it.
    ///
    /// Each request that uses a signed-in session reads two records, one after the other. A revocation takes
    /// effect with a single write, even if the deletions that follow fail. If the store evicts or loses the
    /// directory record, all sessions in it end.
    Strict,
}

/// The maximum number of sessions in a directory, regardless of the configured limit.
pub(crate) const CAPACITY: u16 = 1000;

/// Limits the concurrent sessions of a principal (ASVS 5.0 7.1.2). Default: `EvictOldest(100)`.
///
/// The limit is applied at sign-in, before a session is changed or a cookie is sent. Sessions that have ended
/// do not count, whatever the reason.
#[doc(alias("maximum_sessions", "SessionConcurrency"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConcurrentSessions {
    /// Allows up to 1000 sessions, the capacity of a directory. One more sign-in fails with
    /// [`ErrorKind::TooManySessions`].
    Allow,
    /// Allows this many sessions, from 1 to 1000. At one more sign-in, the session with the oldest sign-in
    /// is revoked to make room. If the server that holds that session is down, the session is deleted
    /// when the directory is first used after the server is back.
    EvictOldest(u16),
    /// Allows this many sessions, from 1 to 1000. One more sign-in fails with
    /// [`ErrorKind::TooManySessions`].
    ///
    /// If a sign-in's response is lost, its session must not lock the user out. The first use of a sign-in's
    /// cookie therefore confirms the session, with one write. When the limit is reached, a new sign-in
    /// revokes sessions that were never confirmed, the oldest first. For example, after a double click, the
    /// later sign-in revokes the session of the earlier one, whose cookie the browser has not used yet.
    /// Concurrent sign-ins do not exceed the limit. If the response to a later request is lost and that
    /// request rotated the secret, the session is already confirmed, so it counts until it expires or is
    /// revoked.
    Reject(u16),
}

impl ConcurrentSessions {
    pub(crate) fn most(self) -> u16 {
        match self {
            Self::Allow => CAPACITY,
            Self::EvictOldest(most) | Self::Reject(most) => most,
        }
    }

    pub(crate) fn evicts(self) -> bool {
        matches!(self, Self::EvictOldest(_))
    }

    pub(crate) fn rejects(self) -> bool {
        matches!(self, Self::Reject(_))
    }
}

impl Default for ConcurrentSessions {
    /// Returns `EvictOldest(100)`.
    fn default() -> Self {
        Self::EvictOldest(100)
    }
}
