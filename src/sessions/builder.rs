//! Builds and checks the configuration of an application.

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
    /// Returns a builder for sessions that are kept in `store`.
    ///
    /// Create the store with [`connect`](crate::connect) or with the store's own constructor.
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use unsticky::Sessions;
    ///
    /// let sessions = Sessions::builder(unsticky::connect("memory:")?).build()?;
    /// assert!(sessions.describe().to_string().contains("__Host-id"));
    /// # }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
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

/// The settings of a [`Sessions`]; see [`Sessions::builder`].
///
/// # Limits
///
/// | limit | default | set with |
/// |---|---|---|
/// | total time that a request waits for its session; also for each call of a `Directory` method | 1 s | [`timeout`](Self::timeout) |
/// | time for one command | half of the remaining time | – |
/// | commit attempts when other requests write first | 64 | [`commit_attempts`](Self::commit_attempts) |
/// | retries per command | 2 | [`command_retries`](Self::command_retries) |
/// | size of a record | 65 536 bytes | [`max_record_bytes`](Self::max_record_bytes) |
/// | concurrent sessions per principal | 100 | [`concurrent_sessions`](Self::concurrent_sessions) |
/// | time to connect to a server | 400 ms | `connect_timeout` of the store's builder |
/// | time until a command is answered | 400 ms | `response_timeout` of the store's builder |
/// | commands waiting for one server, per runtime (Memcached: reads and writes each) | 8192 | `max_waiting` of the store's builder |
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
    /// Sets the name and the attributes of the cookie.
    ///
    /// Default: `__Host-id; Path=/; Secure; HttpOnly; SameSite=Lax`.
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use unsticky::{Cookie, Sessions};
    ///
    /// let sessions = Sessions::builder(unsticky::connect("memory:")?).cookie(Cookie::new("__Host-shop")).build()?;
    /// assert!(sessions.describe().to_string().contains("__Host-shop;"));
    /// # }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias("cookie_name", "with_name"))]
    pub fn cookie(self, cookie: Cookie) -> Self {
        Self { cookie, ..self }
    }

    /// Sets the idle timeout and the absolute timeout of sessions.
    ///
    /// Default: 30 minutes idle, 24 hours absolute. The idle timeout must not be longer than the absolute
    /// timeout. A session can have a [lifetime of its own](crate::Session::set_lifetime).
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use std::time::Duration;
    ///
    /// use unsticky::{Lifetime, Sessions};
    ///
    /// let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    /// let builder = Sessions::builder(unsticky::connect("memory:")?);
    /// let sessions = builder.lifetime(Lifetime::new(minutes(15), minutes(480))).build()?;
    /// assert!(sessions.describe().to_string().contains("15 min"));
    /// # }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias("with_expiry", "session_lifecycle", "ttl"))]
    pub fn lifetime(mut self, lifetime: Lifetime) -> Self {
        self.options.lifetime = lifetime;
        self
    }

    /// Sets the namespace: the first part of every key in the store. Applications with different namespaces
    /// can share a store.
    ///
    /// A namespace has 1 to 64 characters: ASCII letters, digits and any of `._-`. Default: the cookie's
    /// name. If the cookie's name is not a valid namespace, the default is `=` followed by the base64url of
    /// the name's SHA-256 (43 characters), which cannot collide with a namespace that you set.
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use unsticky::Sessions;
    ///
    /// let sessions = Sessions::builder(unsticky::connect("memory:")?).namespace("shop").build()?;
    /// assert!(sessions.describe().to_string().contains("shop:0:"));
    /// # }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias("prefix", "key_prefix"))]
    pub fn namespace(self, namespace: impl Into<Cow<'static, str>>) -> Self {
        Self { namespace: Some(namespace.into()), ..self }
    }

    /// Sets the epoch: the second part of every key in the store. Default: 0.
    ///
    /// Changing the epoch ends every session in the deployment without sending a command. The old records are
    /// no longer read, and they expire.
    ///
    /// If you change the list of Memcached servers, change the epoch in the same release; see the
    /// documentation of `MemcachedStore`.
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use unsticky::Sessions;
    ///
    /// let sessions = Sessions::builder(unsticky::connect("memory:")?).namespace("shop").epoch(1).build()?;
    /// assert!(sessions.describe().to_string().contains("shop:1:"));
    /// # }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn epoch(self, epoch: u32) -> Self {
        Self { epoch, ..self }
    }

    /// Sets the total time that a request waits for its session, including the load, the commit, retries
    /// after conflicts and the settling of in-doubt writes. Each call of a [`Directory`](crate::Directory)
    /// method may take as long again.
    ///
    /// Default: 1 second. Allowed: 10 milliseconds to 1 minute.
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use std::time::Duration;
    ///
    /// use unsticky::{ConfigError, Sessions};
    ///
    /// let builder = Sessions::builder(unsticky::connect("memory:")?);
    /// let too_short = builder.timeout(Duration::from_millis(1)).build();
    /// assert_eq!(too_short.unwrap_err(), ConfigError::Timeout);
    /// # }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = timeout;
        self
    }

    /// Sets the maximum size of a session's record, in bytes.
    ///
    /// Default: 65 536. Allowed: 2048 to 1 000 000. A Memcached server with default settings can store a
    /// record of the maximum size.
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use unsticky::Sessions;
    ///
    /// let sessions = Sessions::builder(unsticky::connect("memory:")?).max_record_bytes(16_384).build()?;
    /// assert!(sessions.describe().to_string().contains("16384 bytes"));
    /// # }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn max_record_bytes(mut self, max_record: usize) -> Self {
        self.options.max_record = max_record;
        self
    }

    /// Sets whether the sessions of each principal are listed in a directory, and whether unlisted sessions
    /// are valid.
    ///
    /// Default: [`DirectoryMode::Listed`].
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use unsticky::{DirectoryMode, Sessions};
    ///
    /// let sessions = Sessions::builder(unsticky::connect("memory:")?).directory(DirectoryMode::Strict).build()?;
    /// assert!(sessions.describe().to_string().contains("only while they are listed"));
    /// # }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn directory(mut self, directory: DirectoryMode) -> Self {
        self.options.directory = directory;
        self
    }

    /// Sets the maximum number of concurrent sessions per principal, and what happens to a sign-in beyond it.
    ///
    /// Default: `EvictOldest(100)`. Allowed: 1 to 1000. A limit requires the [directory](Self::directory).
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use unsticky::{ConcurrentSessions, Sessions};
    ///
    /// let sessions = Sessions::builder(unsticky::connect("memory:")?)
    ///     .concurrent_sessions(ConcurrentSessions::Reject(3))
    ///     .build()?;
    /// assert!(sessions.describe().to_string().contains("3; above that"));
    /// # }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "maximum_sessions")]
    pub fn concurrent_sessions(mut self, concurrent: ConcurrentSessions) -> Self {
        self.options.concurrent = Some(concurrent);
        self
    }

    /// Sets how many times a commit is attempted when other requests write first. After the last attempt, the
    /// request fails with [`ErrorKind::Contended`](crate::ErrorKind::Contended).
    ///
    /// Default: 64. Allowed: 1 to 1000. The first eight attempts follow each other without a pause. Each
    /// later attempt is preceded by a random pause, whose maximum grows from 1 ms to 16 ms. The
    /// [`timeout`](Self::timeout) applies as well.
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use unsticky::{ConfigError, Sessions};
    ///
    /// let builder = Sessions::builder(unsticky::connect("memory:")?);
    /// assert_eq!(builder.commit_attempts(0).build().unwrap_err(), ConfigError::CommitAttempts);
    /// # }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn commit_attempts(mut self, commit_attempts: u32) -> Self {
        self.options.commit_attempts = commit_attempts;
        self
    }

    /// Sets how many times one command is retried. A command is retried if it certainly had no effect, or if
    /// it was an in-doubt write that turned out not to have been applied.
    ///
    /// Default: 2. Allowed: 0 to 100. The [`timeout`](Self::timeout) applies as well. Without retries, a
    /// request fails if its command is sent on an idle connection that the server has already closed.
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use unsticky::{ConfigError, Sessions};
    ///
    /// let builder = Sessions::builder(unsticky::connect("memory:")?);
    /// assert_eq!(builder.command_retries(101).build().unwrap_err(), ConfigError::CommandRetries);
    /// # }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn command_retries(mut self, command_retries: u32) -> Self {
        self.options.command_retries = command_retries;
        self
    }

    /// Sets whether the handler's changes are committed if the response has status 5xx or 408.
    ///
    /// Default: [`OnFailedResponse::Discard`].
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use unsticky::{OnFailedResponse, Sessions};
    ///
    /// let sessions = Sessions::builder(unsticky::connect("memory:")?)
    ///     .on_failed_response(OnFailedResponse::Commit)
    ///     .build()?;
    /// assert!(sessions.describe().to_string().contains("changes are kept"));
    /// # }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn on_failed_response(mut self, on_failed_response: OnFailedResponse) -> Self {
        self.options.on_failed_response = on_failed_response;
        self
    }

    /// Sets the status code of the response for [`ErrorKind::Gone`](crate::ErrorKind::Gone), for example if
    /// another request has ended the session or signed a user in.
    ///
    /// Default: 409. Allowed: 400 to 599.
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use unsticky::Sessions;
    ///
    /// let sessions = Sessions::builder(unsticky::connect("memory:")?).gone_status(440).build()?;
    /// assert!(sessions.describe().to_string().contains("status 440"));
    /// # }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn gone_status(mut self, status: u16) -> Self {
        self.options.gone_status = status;
        self
    }

    /// Sets the sign-in page. If no user is signed in, [`SignedIn`](crate::SignedIn),
    /// [`AuthenticatedWithin`](crate::AuthenticatedWithin) and [`Guard`](crate::Guard) redirect the request
    /// to this page with a 303.
    ///
    /// Default: none; the response is a 401. `location` is a path that begins with `/`, or a complete URL.
    ///
    /// Only browser navigations are redirected. They are recognised by the `Sec-Fetch-Mode` header or, if the
    /// browser does not send it, by an `Accept` header that contains `text/html`. Other requests get a 401.
    /// If the page is a path on this site without a `next` parameter, the redirect of a GET or HEAD request
    /// passes the requested path and query in `next`, provided that they form a
    /// [`LocalPath`](crate::LocalPath). The page reads it with [`Next`](crate::Next).
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use unsticky::Sessions;
    ///
    /// let sessions = Sessions::builder(unsticky::connect("memory:")?).sign_in_page("/sign-in").build()?;
    /// assert!(sessions.describe().to_string().contains("303 to /sign-in"));
    /// # }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias("login_url", "login_page"))]
    pub fn sign_in_page(mut self, location: impl Into<Cow<'static, str>>) -> Self {
        self.options.pages.sign_in = Some(location.into());
        self
    }

    /// Sets the step-up page. If the user is signed in but authenticated too long ago,
    /// [`AuthenticatedWithin`](crate::AuthenticatedWithin) and [`Guard`](crate::Guard) redirect the request
    /// to this page.
    ///
    /// Redirects work as described for [`sign_in_page`](Self::sign_in_page). The page asks the user to
    /// authenticate again, and its handler then calls [`step_up`](crate::Session::step_up). Default: the
    /// sign-in page. In that case, the sign-in page must also ask signed-in users to authenticate: if it
    /// redirects them back immediately, the browser is caught in a loop.
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use unsticky::Sessions;
    ///
    /// let sessions = Sessions::builder(unsticky::connect("memory:")?)
    ///     .sign_in_page("/sign-in")
    ///     .step_up_page("/confirm")
    ///     .build()?;
    /// assert!(sessions.describe().to_string().contains("303 to /confirm"));
    /// # }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn step_up_page(mut self, location: impl Into<Cow<'static, str>>) -> Self {
        self.options.pages.step_up = Some(location.into());
        self
    }

    /// Sets the function that renders this crate's errors when they become responses: errors from extractors
    /// and guards, errors returned by handlers, and errors from the commit.
    ///
    /// Default: [`ErrorKind::message`](crate::ErrorKind::message) as plain text.
    ///
    /// `render` receives the response as it would otherwise be sent, the error, and whether the client wants
    /// a page or data. Replace the body with [`html`](ErrorResponse::html) or [`json`](ErrorResponse::json).
    /// `render` is called when the response passes through the session layer, including for a redirect to the
    /// sign-in page. It is not called for a response that a handler builds itself after an error. The status
    /// that `render` returns does not affect whether the request's changes are committed. If layers are
    /// nested, the innermost layer that has such a function calls it.
    ///
    /// The framework's own errors, for example for a malformed form or an unknown path, are not passed to
    /// `render`. For an unknown path, a fallback handler can take [`Wants`] as an argument.
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
    /// assert!(sessions.describe().to_string().contains("__Host-id"));
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

    /// Sets how events identify accounts. Default: [`Audit::Digest`].
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use unsticky::{Audit, Sessions};
    ///
    /// let sessions = Sessions::builder(unsticky::connect("memory:")?).audit(Audit::Principal).build()?;
    /// assert!(sessions.describe().to_string().contains("by the principal"));
    /// # }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn audit(mut self, audit: Audit) -> Self {
        self.options.audit = audit;
        self
    }

    /// Sets the clock. Default: [`SystemClock`].
    ///
    /// In tests, use `testing::ManualClock`, and give the same clock to the store.
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use unsticky::{Sessions, SystemClock};
    ///
    /// let builder = Sessions::builder(unsticky::connect("memory:")?);
    /// let sessions = builder.clock(SystemClock::default()).build()?;
    /// assert!(sessions.describe().to_string().contains("30 min"));
    /// # }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn clock(self, clock: impl Clock) -> Self {
        Self { clock: Arc::new(clock), ..self }
    }

    /// Sets the source of randomness for session ids, secrets and other random values. Default: the operating
    /// system.
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use unsticky::{Entropy, Error, Result, Sessions};
    ///
    /// #[derive(Debug)]
    /// struct Hardware;
    ///
    /// impl Entropy for Hardware {
    ///     fn fill(&self, _: &mut [u8]) -> Result<()> {
    ///         Err(Error::randomness("the device is not connected"))
    ///     }
    /// }
    ///
    /// let builder = Sessions::builder(unsticky::connect("memory:")?);
    /// assert!(builder.entropy(Hardware).build().is_ok());
    /// # }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn entropy(self, entropy: impl Entropy) -> Self {
        Self { entropy: Arc::new(entropy), ..self }
    }

    /// Checks the configuration and returns it as [`Sessions`]. The store is not contacted.
    ///
    /// ```
    /// # #[cfg(feature = "memory")] {
    /// use unsticky::{ConfigError, Sessions};
    ///
    /// let builder = Sessions::builder(unsticky::connect("memory:")?).namespace("my shop");
    /// assert_eq!(builder.build().unwrap_err(), ConfigError::Namespace);
    /// # }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Returns a [`ConfigError`] that names the invalid setting and the method that sets it.
    pub fn build(self) -> Result<Sessions, ConfigError> {
        if self.namespace.as_ref().is_some_and(|namespace| !is_namespace(namespace)) {
            return Err(ConfigError::Namespace);
        }
        check(&self.options)?;
        self.cookie.validate().map_err(ConfigError::Cookie)?;
        Ok(self.unchecked())
    }

    /// Builds without checking, for settings that are known to be valid.
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

/// Rejects settings that have no effect or are unsafe.
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

/// Leaves room for a record header with the longest allowed principal.
const MIN_RECORD: usize = 2048;
const MAX_RECORD: usize = 1_000_000;

/// The error for an invalid setting; see [`Builder::build`]. The variant says which setting it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The cookie's name or attributes are invalid, or browsers would ignore them; the message gives the
    /// reason. See [`Builder::cookie`].
    #[error("`Builder::cookie`: {0}")]
    Cookie(&'static str),
    /// See [`Builder::namespace`].
    #[error("`Builder::namespace` must be 1 to 64 characters: ASCII letters, digits or any of ._-")]
    Namespace,
    /// See [`Builder::lifetime`].
    #[error("`Builder::lifetime`: the idle timeout must not be longer than the absolute timeout")]
    IdleTimeout,
    /// See [`Builder::timeout`].
    #[error("`Builder::timeout` must be from 10 milliseconds to 1 minute")]
    Timeout,
    /// See [`Builder::max_record_bytes`].
    #[error("`Builder::max_record_bytes` must be from 2048 to 1000000")]
    RecordSize,
    /// See [`Builder::concurrent_sessions`].
    #[error("`Builder::concurrent_sessions`: the limit must be from 1 to 1000")]
    ConcurrentSessions,
    /// See [`Builder::concurrent_sessions`].
    #[error(
        "`Builder::concurrent_sessions`: a limit requires the directory; set `Builder::directory` to `Listed` or `Strict`, or the limit to `Allow`"
    )]
    LimitWithoutDirectory,
    /// See [`Builder::commit_attempts`].
    #[error("`Builder::commit_attempts` must be from 1 to 1000")]
    CommitAttempts,
    /// See [`Builder::command_retries`].
    #[error("`Builder::command_retries` must be at most 100")]
    CommandRetries,
    /// See [`Builder::gone_status`].
    #[error("`Builder::gone_status` must be from 400 to 599")]
    GoneStatus,
    /// See [`Builder::sign_in_page`] and [`Builder::step_up_page`].
    #[error(
        "`Builder::sign_in_page` and `Builder::step_up_page` must be a path that begins with `/` or a complete URL, in printable ASCII without spaces and `#`"
    )]
    Page,
    /// See [`Guard::trust`](crate::Guard::trust).
    #[error(
        "`Guard::trust`: write the origin as `scheme://host` or `scheme://host:port`, in lower case and without the scheme's default port"
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
        // An application cannot set such a namespace.
        let digest = prefix("a~b").split(':').next().unwrap().to_owned();
        assert_eq!(builder().namespace(digest).build().unwrap_err(), ConfigError::Namespace);
    }
}
