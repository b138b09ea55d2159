//! The checked configuration of an application, and what its requests share.

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

/// The sessions of an application: the store, and everything that is decided once.
///
/// Cheap to clone. Make one at start-up and hand it to the layer or the middleware; handlers get at
/// it by extraction.
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

/// What all requests of an application share.
pub(crate) struct Settings {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) cookie: CookieTemplate,
    pub(crate) options: Options,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) key_locks: KeyLocks,
    /// Namespace and epoch, as every key begins.
    pub(crate) key_prefix: String,
    /// Whether it was told that browsers drop the cookie, because it is `Secure` and their page is not.
    pub(crate) plain_http_told: AtomicBool,
}

/// What an application chooses, as it stands in the configuration.
pub(crate) struct Options {
    pub(crate) lifetime: Lifetime,
    pub(crate) timeout: Duration,
    pub(crate) max_record: usize,
    pub(crate) directory: DirectoryMode,
    /// `None` where nothing was chosen.
    pub(crate) concurrent: Option<ConcurrentSessions>,
    pub(crate) commit_attempts: u32,
    pub(crate) command_retries: u32,
    pub(crate) on_failed_response: OnFailedResponse,
    pub(crate) gone_status: u16,
    pub(crate) pages: Pages,
    pub(crate) on_error: Option<Arc<OnError>>,
    pub(crate) audit: Audit,
}

/// The pages for those who are turned away.
#[derive(Clone, Default)]
pub(crate) struct Pages {
    pub(crate) sign_in: Option<Cow<'static, str>>,
    pub(crate) step_up: Option<Cow<'static, str>>,
}

impl Pages {
    /// Whether an address can stand in a Location header field, is the same page wherever the visitor comes
    /// from, and can be told where to lead back to: nothing can be added after a fragment.
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

    /// The error of a request whose session ended meanwhile.
    pub(crate) fn gone(&self, context: &'static str) -> Error {
        Error::answered_with(ErrorKind::Gone, context, self.options.gone_status)
    }

    /// Which record an event is about.
    pub(crate) fn record_key<'a>(&self, key: &'a StoreKey) -> RecordKey<'a> {
        RecordKey { audit: self.options.audit, key }
    }

    /// Who an event is about.
    pub(crate) fn who<'a>(&'a self, principal: Option<&'a str>) -> Who<'a> {
        Who { audit: self.options.audit, cookie_name: self.cookie.name(), principal }
    }

    /// Who an event of a session is about.
    pub(crate) fn who_of<'a>(&'a self, session: &'a Loaded) -> Who<'a> {
        self.who(session.record.header.principal.as_deref())
    }

    /// Whether a session's cookie came back for the first time, where that has to be noted.
    pub(crate) fn confirms(&self, loaded: &Loaded) -> bool {
        loaded.record.header.is_unconfirmed
            && loaded.authority.is_presented
            && self.options.concurrent().rejects()
            && loaded.secret_status() == SecretStatus::Current
    }

    /// Tells, the first time, that the browser drops the token in this Set-Cookie header field.
    pub(crate) fn tell_of_dropped_cookie(&self, header: &str) {
        if self.cookie.is_set_by(header) && !self.plain_http_told.swap(true, Ordering::Relaxed) {
            event::secure_cookie_on_plain_http(self.cookie.name());
        }
    }

    /// Whether a use of a session that stands like this is worth a write.
    pub(crate) fn refresh_due(&self, header: &Header, now: Millis) -> bool {
        header.clocks.refresh_due(now, &header.effective_lifetime(&self.options.lifetime))
    }

    /// A new write's tag.
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

/// What becomes of a handler's changes when its response says that it failed: a status of 5xx, or 408,
/// which is how a time limit further in cuts a handler off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum OnFailedResponse {
    /// Nothing is kept but an end of the session. The default.
    ///
    /// What must count although the answer is an error is written by
    /// [`transact`](crate::Session::transact) or [`save`](crate::Session::save).
    #[default]
    Discard,
    /// Everything is kept, as after any other response. A panic still keeps nothing but an end.
    Commit,
}

impl OnFailedResponse {
    /// Whether the changes of a handler with a response of this status are dropped.
    pub(crate) fn discards(self, status: u16) -> bool {
        self == Self::Discard && (status >= 500 || status == 408)
    }
}

/// Whether the sessions of each principal are listed; see [`Directory`](crate::Directory).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum DirectoryMode {
    /// They are not: a sign-in is two commands, and nothing can be listed, limited or revoked.
    ///
    /// Sessions that were signed in meanwhile stay unlisted when this is changed; another
    /// [`epoch`](crate::Builder::epoch) ends them.
    Off,
    /// A sign-in enters its session in the directory of its principal, with two commands more, or one
    /// after [`begin_sign_in`](crate::Directory::begin_sign_in). Other requests cost the same. The default.
    #[default]
    Listed,
    /// A session in which somebody is signed in is valid only while the directory lists it: each
    /// request that uses one is two commands, one after the other. An end of sessions is one write, and
    /// holds whatever becomes of the deletions after it; where the directory is evicted or lost, all
    /// sessions on it end.
    Strict,
}

/// How many sessions a directory lists at the most, whatever the policy is.
pub(crate) const CAPACITY: u16 = 1000;

/// How many sessions of one principal there may be at once (ASVS 5.0 7.1.2).
///
/// It is decided at the sign-in, before a session is changed or a cookie sent. Sessions that ended do not count,
/// however they ended.
#[doc(alias("maximum_sessions", "SessionConcurrency"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConcurrentSessions {
    /// As many as the directory holds: 1000. Beyond that a sign-in fails with
    /// [`ErrorKind::TooManySessions`].
    Allow,
    /// At most so many, from 1 to 1000; the one whose sign-in is the longest ago ends for a new one. Where
    /// its server is down it ends as soon as the directory is used and that server is back.
    EvictOldest(u16),
    /// At most so many, from 1 to 1000; a new sign-in fails with
    /// [`ErrorKind::TooManySessions`].
    ///
    /// So that an answer that never arrives locks nobody out, the first use of a sign-in's cookie confirms
    /// it, with one write. Where the limit is reached, a new sign-in revokes sessions that were never
    /// confirmed, the oldest first. Of two sign-ins at once, such as a double click, the later one
    /// therefore revokes the earlier one, whose cookie no browser has used yet; the limit holds at
    /// every moment. A confirmed session whose holder lost a later secret, because the answer to a
    /// rotation was lost, counts until its idle timeout or a revocation.
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
    /// The oldest of a hundred goes.
    fn default() -> Self {
        Self::EvictOldest(100)
    }
}
