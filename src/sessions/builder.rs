//! The configuration of an application, built and checked once.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use crate::answer::ErrorResponse;
use crate::clock::{Clock, SystemClock};
use crate::cookie::template::{Cookie, CookieTemplate};
use crate::entropy::{Entropy, OsEntropy};
use crate::error::{Error, Result};
use crate::event::Audit;
use crate::head::request::Wants;
use crate::key_lock::KeyLocks;
use crate::record::lifetime::Lifetime;
use crate::settings::{
    CAPACITY, ConcurrentSessions, DirectoryMode, OnFailedResponse, Options, Pages, Sessions,
    Settings,
};
use crate::store::Store;

impl Sessions {
    /// Begins a configuration. The store comes from [`connect`](crate::connect) or from one of the
    /// stores' constructors.
    pub fn builder(store: impl Store) -> Builder {
        Builder {
            store: Arc::new(store),
            cookie: Cookie::default(),
            namespace: None,
            epoch: 0,
            options: Options::default(),
            clock: Arc::new(SystemClock),
            entropy: Arc::new(OsEntropy),
        }
    }
}

/// A configuration in the making; see [`Sessions::builder`].
///
/// # Limits
///
/// Everything that bounds waiting and trying, with its default:
///
/// | what | default | set with |
/// |---|---|---|
/// | a request's wait for the store in all | 1 s | [`timeout`](Self::timeout) |
/// | one command's part of it | half of what is left | – |
/// | attempts of a commit on ever newer records | 64 | [`commit_attempts`](Self::commit_attempts) |
/// | retries of one command | 2 | [`command_retries`](Self::command_retries) |
/// | a record's size | 65 536 bytes | [`max_record_bytes`](Self::max_record_bytes) |
/// | sessions of one principal at once | 100 | [`concurrent_sessions`](Self::concurrent_sessions) |
/// | connecting to a server | 400 ms | `connect_timeout` of the store's builder |
/// | the answer to a command | 400 ms | `response_timeout` of the store's builder |
/// | commands that wait for one server, in each runtime | 8192 | `max_waiting` of the store's builder |
#[must_use]
pub struct Builder {
    store: Arc<dyn Store>,
    cookie: Cookie,
    namespace: Option<Cow<'static, str>>,
    epoch: u32,
    options: Options,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
}

impl Builder {
    /// The cookie. Default: `__Host-id; Path=/; Secure; HttpOnly; SameSite=Lax`.
    #[doc(alias("cookie_name", "with_name"))]
    pub fn cookie(self, cookie: Cookie) -> Self {
        Self { cookie, ..self }
    }

    /// How long sessions live that do not choose for themselves. Default: idle 30 minutes, absolute
    /// 24 hours. The idle timeout must not be longer than the absolute one.
    #[doc(alias("with_expiry", "session_lifecycle", "ttl"))]
    pub fn lifetime(mut self, lifetime: Lifetime) -> Self {
        self.options.lifetime = lifetime;
        self
    }

    /// The first part of every key in the store, so that applications can share one. One to 64 letters,
    /// digits or any of `._-`.
    ///
    /// Default: the cookie's name, so that applications with different cookie names share nothing. A name
    /// that is no valid namespace stands there as `=` and the 43 characters of base64url of its SHA-256,
    /// which no namespace of your own can be.
    pub fn namespace(self, namespace: impl Into<Cow<'static, str>>) -> Self {
        Self { namespace: Some(namespace.into()), ..self }
    }

    /// The second part of every key. Default: 0. Another number ends every session of the
    /// deployment at no cost for any request; the old records are never read again and expire.
    ///
    /// A changed list of Memcached servers needs another number in the same release; the documentation of
    /// `MemcachedStore` says why.
    pub fn epoch(self, epoch: u32) -> Self {
        Self { epoch, ..self }
    }

    /// How long a request waits for the store in all: load, commit, conflicts and lost answers
    /// together. Default: one second. From ten milliseconds to one minute.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = timeout;
        self
    }

    /// How many bytes a session's record may have. Default: 65 536; from 2048 to 1 000 000,
    /// which Memcached stores as it comes.
    pub fn max_record_bytes(mut self, max_record: usize) -> Self {
        self.options.max_record = max_record;
        self
    }

    /// Whether the sessions of each principal are listed. Default: [`DirectoryMode::Listed`].
    pub fn directory(mut self, directory: DirectoryMode) -> Self {
        self.options.directory = directory;
        self
    }

    /// How many sessions of one principal there may be at once, and what becomes of one more. Default:
    /// `EvictOldest(100)`. A limit needs the [directory](Self::directory).
    #[doc(alias = "maximum_sessions")]
    pub fn concurrent_sessions(mut self, concurrent: ConcurrentSessions) -> Self {
        self.options.concurrent = Some(concurrent);
        self
    }

    /// How often a commit is tried on ever newer records before the request fails with
    /// [`ErrorKind::Contended`](crate::ErrorKind::Contended). Default: 64; from 1 to 1000.
    ///
    /// The first eight attempts follow each other at once, the later ones after pauses of at most
    /// one millisecond that grow to at most 16 ms, at random; the [`timeout`](Self::timeout)
    /// bounds them as well.
    pub fn commit_attempts(mut self, commit_attempts: u32) -> Self {
        self.options.commit_attempts = commit_attempts;
        self
    }

    /// How often one command is retried: one that certainly did nothing, and one whose lost answer
    /// was settled as not applied. Default: 2; at most 100, and within the
    /// [`timeout`](Self::timeout). With 0 an idle connection that the server has closed is a failed
    /// request.
    pub fn command_retries(mut self, command_retries: u32) -> Self {
        self.options.command_retries = command_retries;
        self
    }

    /// What a response of status 5xx or 408 does to the handler's changes. Default:
    /// [`OnFailedResponse::Discard`].
    pub fn on_failed_response(mut self, on_failed_response: OnFailedResponse) -> Self {
        self.options.on_failed_response = on_failed_response;
        self
    }

    /// The status code of a response whose session was ended, or signed in anew, by another request
    /// meanwhile. Default: 409. From 400 to 599.
    pub fn gone_status(mut self, status: u16) -> Self {
        self.options.gone_status = status;
        self
    }

    /// Where [`SignedIn`](crate::SignedIn), [`AuthenticatedWithin`](crate::AuthenticatedWithin) and
    /// [`Guard`](crate::Guard) send those who are not signed in: a 303 to this address. Default: none, they
    /// get a 401.
    ///
    /// Only navigations of a browser are sent there, by their `Sec-Fetch-Mode`, or if a browser does not
    /// send that, by an `Accept` with `text/html`; everything else gets a 401. If the page is a path of this
    /// site, a GET or a HEAD takes its own address along in the field `next`, which
    /// [`Next`](crate::Next) reads on the page.
    pub fn sign_in_page(mut self, location: impl Into<Cow<'static, str>>) -> Self {
        self.options.pages.sign_in = Some(location.into());
        self
    }

    /// Where [`AuthenticatedWithin`](crate::AuthenticatedWithin) and [`Guard`](crate::Guard) send those who
    /// are signed in and authenticated too long ago, as in [`sign_in_page`](Self::sign_in_page): to the page
    /// that calls [`step_up`](crate::Session::step_up). Default: the sign-in page, which must then ask those who
    /// are signed in as well: if it sends them back at once, the browser goes round in circles.
    pub fn step_up_page(mut self, location: impl Into<Cow<'static, str>>) -> Self {
        self.options.pages.step_up = Some(location.into());
        self
    }

    /// Renders every error of this crate that becomes a response: of extractors, of guards, of handlers that
    /// return one, and of changes that could not be kept. Default: plain text.
    ///
    /// `render` gets the response as it would be sent, to which [`html`](ErrorResponse::html) and
    /// [`json`](ErrorResponse::json) give another body, the error, and what the request wants. It is called
    /// as the response passes the session layer, also for a redirect to the sign-in page. A response that a
    /// handler has made of an error itself stays as it is. The status that `render` returns has no effect on
    /// whether the request's changes are kept. Where layers are nested, the
    /// innermost one with a function renders. Errors of the framework itself, such as a malformed form or an
    /// unknown path, are not this crate's; a fallback handler can take [`Wants`] as an argument.
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use unsticky::{Sessions, Wants};
    ///
    /// let sessions = Sessions::builder(unsticky::connect("memory:")?)
    ///     .on_error(|response, error, wants| match wants {
    ///         Wants::Page => response.html(format!("<h1>Sorry</h1><p>{}", error.kind().message())),
    ///         Wants::Data => response.json(format!(r#"{{"error":"{}"}}"#, error.kind().as_str())),
    ///     })
    ///     .build()?;
    /// # let _ = sessions;
    /// # }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias("error_handler", "handle_error"))]
    pub fn on_error(
        mut self,
        render: impl Fn(ErrorResponse, &Error, Wants) -> ErrorResponse + Send + Sync + 'static,
    ) -> Self {
        self.options.on_error = Some(Arc::new(render));
        self
    }

    /// How events name the people whom they are about. Default: [`Audit::Digest`].
    pub fn audit(mut self, audit: Audit) -> Self {
        self.options.audit = audit;
        self
    }

    /// The clock. Default: [`SystemClock`].
    pub fn clock(self, clock: impl Clock) -> Self {
        Self { clock: Arc::new(clock), ..self }
    }

    /// Where ids and secrets come from. Default: the operating system.
    pub fn entropy(self, entropy: impl Entropy) -> Self {
        Self { entropy: Arc::new(entropy), ..self }
    }

    /// Checks the configuration.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] says which setting is not allowed and why. The store is not contacted.
    pub fn build(self) -> Result<Sessions, ConfigError> {
        if self.namespace.as_ref().is_some_and(|namespace| !is_namespace(namespace)) {
            return Err(ConfigError::Namespace);
        }
        check(&self.options)?;
        self.cookie.validate().map_err(ConfigError::Cookie)?;
        Ok(self.unchecked())
    }

    /// The settings as they are; for those that are known to be allowed.
    pub(crate) fn unchecked(self) -> Sessions {
        let namespace = match self.namespace {
            Some(namespace) => namespace,
            None if is_namespace(self.cookie.name()) => self.cookie.name().to_owned().into(),
            None => {
                format!("={}", URL_SAFE_NO_PAD.encode(Sha256::digest(self.cookie.name()))).into()
            }
        };
        Sessions::new(Settings {
            store: self.store,
            cookie: CookieTemplate::new(&self.cookie),
            options: self.options,
            clock: self.clock,
            entropy: self.entropy,
            key_locks: KeyLocks::default(),
            key_prefix: format!("{namespace}:{}:", self.epoch),
            plain_http_told: AtomicBool::new(false),
        })
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("store", &self.store)
            .field("cookie", &self.cookie)
            .field("lifetime", &self.options.lifetime)
            .finish_non_exhaustive()
    }
}

/// Refuses what would do nothing, or harm.
fn check(options: &Options) -> Result<(), ConfigError> {
    if options.lifetime.idle() > options.lifetime.absolute() {
        return Err(ConfigError::IdleTimeout);
    }
    if !(Duration::from_millis(10)..=Duration::from_secs(60)).contains(&options.timeout) {
        return Err(ConfigError::Timeout);
    }
    if !(MIN_RECORD..=MAX_RECORD).contains(&options.max_record) {
        return Err(ConfigError::RecordSize);
    }
    let limit = options.concurrent.filter(|concurrent| *concurrent != ConcurrentSessions::Allow);
    if limit.is_some_and(|limit| !(1..=CAPACITY).contains(&limit.most())) {
        return Err(ConfigError::ConcurrentSessions);
    }
    if limit.is_some() && options.directory == DirectoryMode::Off {
        return Err(ConfigError::LimitWithoutDirectory);
    }
    if !(1..=1000).contains(&options.commit_attempts) {
        return Err(ConfigError::CommitAttempts);
    }
    if options.command_retries > 100 {
        return Err(ConfigError::CommandRetries);
    }
    if !(400..=599).contains(&options.gone_status) {
        return Err(ConfigError::GoneStatus);
    }
    let Pages { sign_in, step_up } = &options.pages;
    if ![sign_in, step_up].into_iter().flatten().all(|page| Pages::is_address(page)) {
        return Err(ConfigError::Page);
    }
    Ok(())
}

fn is_namespace(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Room for the header with the longest principal.
const MIN_RECORD: usize = 2048;
const MAX_RECORD: usize = 1_000_000;

/// A setting that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The cookie is one that browsers refuse.
    #[error("cookie: {0}")]
    Cookie(&'static str),
    /// See [`Builder::namespace`].
    #[error("namespace: one to 64 letters, digits or any of ._-")]
    Namespace,
    /// See [`Builder::lifetime`].
    #[error("lifetime: the idle timeout is longer than the absolute one, so it would do nothing")]
    IdleTimeout,
    /// See [`Builder::timeout`].
    #[error("timeout: from ten milliseconds to one minute")]
    Timeout,
    /// See [`Builder::max_record_bytes`].
    #[error("record size: from 2048 to 1000000 bytes")]
    RecordSize,
    /// See [`Builder::concurrent_sessions`].
    #[error("concurrent sessions: from 1 to 1000")]
    ConcurrentSessions,
    /// See [`Builder::concurrent_sessions`].
    #[error("concurrent sessions: a limit needs the directory, which is turned off")]
    LimitWithoutDirectory,
    /// See [`Builder::commit_attempts`].
    #[error("attempts of a commit: from 1 to 1000")]
    CommitAttempts,
    /// See [`Builder::command_retries`].
    #[error("retries of a command: at most 100")]
    CommandRetries,
    /// See [`Builder::gone_status`].
    #[error("status of a session that is gone: from 400 to 599")]
    GoneStatus,
    /// See [`Builder::sign_in_page`] and [`Builder::step_up_page`].
    #[error(
        "page to sign in or to authenticate again: a path that begins with `/`, or a whole address, of printable ASCII characters without spaces and `#`"
    )]
    Page,
    /// See [`Guard::trust`](crate::Guard::trust).
    #[error(
        "trusted origin: `scheme://host` or `scheme://host:port` as browsers write it, in small letters and without the scheme's own port"
    )]
    Origin,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::directory_key;
    use crate::entropy::OsEntropy;
    use crate::record::lifetime::Lifetime;
    use crate::record::token::SessionId;
    use crate::sessions::detached::Detached;
    use crate::settings::{ConcurrentSessions, DirectoryMode, Sessions};

    fn builder() -> Builder {
        Sessions::builder(Detached::default())
    }

    #[test]
    fn invalid_settings_are_rejected() {
        assert!(builder().build().is_ok());
        for (builder, expected) in [
            (builder().namespace(""), ConfigError::Namespace),
            (builder().namespace("a b"), ConfigError::Namespace),
            (builder().namespace("a:b"), ConfigError::Namespace),
            (builder().namespace("a".repeat(65)), ConfigError::Namespace),
            (builder().timeout(Duration::from_millis(9)), ConfigError::Timeout),
            (builder().timeout(Duration::MAX), ConfigError::Timeout),
            (builder().max_record_bytes(2047), ConfigError::RecordSize),
            (builder().max_record_bytes(1_000_001), ConfigError::RecordSize),
            (
                builder().concurrent_sessions(ConcurrentSessions::Reject(0)),
                ConfigError::ConcurrentSessions,
            ),
            (
                builder().concurrent_sessions(ConcurrentSessions::EvictOldest(1001)),
                ConfigError::ConcurrentSessions,
            ),
            (
                builder()
                    .directory(DirectoryMode::Off)
                    .concurrent_sessions(ConcurrentSessions::Reject(1)),
                ConfigError::LimitWithoutDirectory,
            ),
            (
                builder().lifetime(Lifetime::new(Duration::from_secs(61), Duration::from_secs(60))),
                ConfigError::IdleTimeout,
            ),
            (builder().commit_attempts(0), ConfigError::CommitAttempts),
            (builder().commit_attempts(1001), ConfigError::CommitAttempts),
            (builder().command_retries(101), ConfigError::CommandRetries),
            (builder().gone_status(200), ConfigError::GoneStatus),
            (builder().gone_status(600), ConfigError::GoneStatus),
            (builder().sign_in_page(""), ConfigError::Page),
            (builder().sign_in_page("/sign-in#form"), ConfigError::Page),
            (builder().sign_in_page("sign-in"), ConfigError::Page),
            (builder().sign_in_page("/a\r\nSet-Cookie: a=b"), ConfigError::Page),
            (builder().step_up_page(""), ConfigError::Page),
            (builder().sign_in_page("/a").step_up_page("/b c"), ConfigError::Page),
        ] {
            assert_eq!(builder.build().unwrap_err(), expected);
        }
        assert!(matches!(
            builder().cookie(Cookie::new("a b")).build(),
            Err(ConfigError::Cookie(_))
        ));
    }

    #[test]
    fn store_keys_are_short_and_printable_for_any_settings() {
        let namespace = "n".repeat(64);
        let sessions = builder().namespace(namespace).epoch(u32::MAX).build().unwrap();
        let key = sessions.settings().key(SessionId::random(&OsEntropy).unwrap());
        assert!(key.as_str().len() <= 200);
        assert!(key.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
        let key = directory_key(sessions.settings(), &"p".repeat(1024));
        assert!(key.as_str().len() <= 200);
        assert!(key.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
        let sessions = builder().namespace("shop").epoch(3).build().unwrap();
        let key = sessions.settings().key(SessionId::random(&OsEntropy).unwrap());
        assert!(key.as_str().starts_with("shop:3:s:"), "{key}");
    }

    #[test]
    fn default_namespace_is_derived_from_cookie_name() {
        let prefix = |name: &str| {
            let cookie = Cookie::new(name.to_owned());
            builder().cookie(cookie).build().unwrap().settings().key_prefix.clone()
        };
        assert_eq!(prefix("__Host-id"), "__Host-id:0:");
        assert_eq!(prefix("id"), "id:0:");
        let longest = "n".repeat(64);
        assert_eq!(prefix(&longest), format!("{longest}:0:"));
        // SHA-256 of "a~b", base64url.
        assert_eq!(prefix("a~b"), "=lBUo5ed8mh8-L8vJXyBVb1TyTXDVeC5M-EiyVIhbwOU:0:");
        assert_ne!(prefix("a~b"), prefix("a|b"));
        assert_eq!(prefix(&"n".repeat(65)).len(), 44 + 3);
        // Nobody can choose such a namespace.
        let digest = prefix("a~b").split(':').next().unwrap().to_owned();
        assert_eq!(builder().namespace(digest).build().unwrap_err(), ConfigError::Namespace);
    }
}
