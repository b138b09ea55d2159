//! The session that a handler works with.

pub(crate) mod commit;
pub(crate) mod csrf;
mod flash;
mod keys;
mod load;
pub(crate) mod signed_in;
mod state;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use tokio::sync::MutexGuard as AsyncMutexGuard;
use tokio::time::{Instant, timeout};

use crate::budget::Budget;
use crate::clock::Millis;
use crate::completion::Driver;
use crate::cookie::parse::Presented;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::VIEW_ATTEMPTS;
use crate::record::changes::Rotation;
use crate::record::delta::{Change, UpdateFn};
use crate::record::json::{decoded, encoded};
use crate::record::key::{AsKey, StoredAs};
use crate::record::lifetime::Lifetime;
use crate::record::loaded::Loaded;
use crate::record::sign_in::{SignIn, checked_principal};
use crate::record::token::SessionId;
use crate::record::transaction::Transaction;
use crate::record::values::Value;
use crate::session::state::{
    Context, Shared, StateGuard, changes_on_this_thread, contended, reentrant,
};
use crate::settings::{Sessions, Settings};

/// Gives a handler access to the session of its request.
///
/// Take it as an argument of a handler, in axum or in actix-web; the type is the same. The extractor
/// reads the record once, so all methods are synchronous except [`transact`](Self::transact),
/// [`save`](Self::save), [`reload`](Self::reload), [`touch`](Self::touch), [`flashes`](Self::flashes) and
/// [`csrf_token`](Self::csrf_token).
///
/// Changes are recorded one by one and committed after the handler returns, before the response is sent.
/// Concurrent requests that write different keys therefore never overwrite each other's values.
///
/// A clone is another handle to the same session. All handles of a request see the same changes.
///
/// ```
/// use unsticky::{Key, Result, Session};
///
/// const CART: Key<Vec<u32>> = Key::new("cart").survives_sign_in();
///
/// // Works as a handler in axum and in actix-web.
/// async fn add(session: Session) -> Result<String> {
///     session.update(CART, |cart| cart.push(7))?;
///     let cart = session.get(CART)?.unwrap_or_default();
///     Ok(format!("{} items", cart.len()))
/// }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() { assert_eq!(add(Session::detached()).await.unwrap(), "1 items"); }
/// ```
///
/// # Pages that work without the store
///
/// A route that takes a `Session` responds with 503 while the store is down. If a page can work without
/// a session, let its handler take a `Result<Session>`, in both frameworks:
///
/// ```
/// use unsticky::{Result, Session};
///
/// async fn front_page(session: Result<Session>) -> &'static str {
///     match session {
///         Ok(session) if session.is_signed_in() => "welcome back",
///         Ok(_) => "welcome",
///         Err(_) => "welcome; signing in is temporarily unavailable",
///     }
/// }
/// # let _ = front_page;
/// ```
///
/// # Guarantees for each kind of write
///
/// - [`insert`](Self::insert) and [`remove`](Self::remove): if two requests write the same key, the
///   last commit wins. A `get` followed by an `insert` is therefore not atomic.
/// - [`update`](Self::update): if another request wrote first, the function runs again on the newer
///   value. After 200 concurrent increments the counter is 200 higher.
/// - [`take`](Self::take): if another request changed or took the value first, the commit fails. At most
///   one request that takes a one-time value succeeds.
/// - [`transact`](Self::transact): the decision is stored before the handler continues.
///
/// If the response has status 5xx or 408, or is replaced by an error, only the end of a session is
/// committed; all other changes are dropped. [`Builder::on_failed_response`](crate::Builder::on_failed_response)
/// changes this for the status codes. To store a change regardless of the response, such as a failed
/// attempt, use [`transact`](Self::transact) or [`save`](Self::save).
///
/// # What a request may do
///
/// A request acts with the secret that its cookie contained, or with the newest secret that the request
/// itself created. As a rule: if another request rotated the secret, values are still merged,
/// but changes that need a new cookie fail or have no effect, and `sign_in` begins a new session. The table
/// shows what each method does:
///
/// | state of the session | values | `transact` | `rotate` | `set_lifetime`, `end_by` | `step_up`, `revoke_others` | `sign_in` | `sign_out` | `reload` |
/// |---|---|---|---|---|---|---|---|---|
/// | the secret is valid | committed | stored | new secret | new secret | new secret | new secret | ends the session | newest values |
/// | rotated by another request | merged | stored | no effect | [`Gone`] | [`Gone`] | a new session | ends the session | [`Gone`] |
/// | another request signed in on it | [`Gone`] if anything would change | [`Gone`] | no effect | [`Gone`] | [`Gone`] | a new session | ends it if the principal is the same | [`Gone`] |
/// | ended or expired | [`Gone`] if anything would change | [`Gone`] | no effect | no effect | [`Gone`] | a new session | no effect | [`Gone`] |
///
/// If the cookie's secret was already replaced when the record was read, the request is anonymous, and
/// changes to values fail with [`Gone`] as well: the cookie of a new session would overwrite the newer
/// cookie in the browser.
///
/// [`Gone`] is [`ErrorKind::Gone`], a 409 unless [configured otherwise](crate::Builder::gone_status). It
/// drops all changes of the request. Setting a lifetime or an end that the session already has changes
/// nothing. A [flash message](Self::flash) alone never causes `Gone`: if nothing else would change, the
/// message is dropped.
///
/// # After the response
///
/// You can keep a handle after the response, in a stream or a WebSocket. Each commit is then based on
/// the record as it is at that time, and the handle's secret must still be valid: after a rotation by
/// another request, `save` and `transact` fail with [`ErrorKind::Gone`].
///
/// An open stream does not count as use of the session. [`touch`](Self::touch) keeps the session alive,
/// [`reload`](Self::reload) checks whether it is still valid, and [`loss`](Self::loss) says why it is not.
///
/// [`Gone`]: ErrorKind::Gone
#[derive(Clone)]
pub struct Session(Arc<Shared>);

impl Session {
    pub(crate) fn new(sessions: Sessions, presented: Presented) -> Self {
        Self(Arc::new(Shared::new(sessions, presented)))
    }

    /// Marks the response as already sent, so that no cookie can be set.
    pub(crate) fn after_response(self) -> Self {
        self.state().head_sent = true;
        self
    }

    /// Returns the value of a key, or `None` if the key has no value.
    ///
    /// ```
    /// use unsticky::{Key, Session};
    ///
    /// const VISITS: Key<u32> = Key::new("visits");
    ///
    /// # fn main() -> unsticky::Result<()> {
    /// let session = Session::detached();
    /// assert_eq!(session.get(VISITS)?, None);
    /// session.insert(VISITS, &1)?;
    /// assert_eq!(session.get(VISITS)?, Some(1));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Decode`] if the stored value cannot be decoded as the key's type. The value is left
    /// unchanged.
    pub fn get<K: AsKey>(&self, key: K) -> Result<Option<K::Value>>
    where
        K::Value: DeserializeOwned,
    {
        let name = key.name();
        let value = self.state().value(name);
        // Decoded outside the lock, because `Deserialize` is the application's code.
        value.map(|value| decoded(name, &value.bytes)).transpose()
    }

    /// Returns `true` if the key has a value, of any type.
    ///
    /// ```
    /// use unsticky::{Key, Session};
    ///
    /// const THEME: Key<String> = Key::new("theme");
    ///
    /// # fn main() -> unsticky::Result<()> {
    /// let session = Session::detached();
    /// session.insert(THEME, "dark")?;
    /// assert!(session.contains(THEME));
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("contains_key", "has_key"))]
    #[must_use]
    pub fn contains(&self, key: impl AsKey) -> bool {
        self.state().value(key.name()).is_some()
    }

    /// Returns `true` if the session has no values.
    ///
    /// ```
    /// let session = unsticky::Session::detached();
    /// assert!(session.is_empty());
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.state().with_values(|view, values| view.is_empty(values))
    }

    /// Sets the value of a key.
    ///
    /// The value has the key's type; for a `String` you can also pass a `&str`. Setting the value that this
    /// request has read causes no write to the store.
    ///
    /// ```
    /// use unsticky::{Key, Session};
    ///
    /// const THEME: Key<String> = Key::new("theme");
    /// const VISITS: Key<u32> = Key::new("visits");
    ///
    /// # fn main() -> unsticky::Result<()> {
    /// let session = Session::detached();
    /// session.insert(THEME, "dark")?;
    /// session.insert(VISITS, &1)?;
    /// assert_eq!(session.get(THEME)?.as_deref(), Some("dark"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Nothing is changed if it returns an error:
    ///
    /// - [`ErrorKind::Encode`] if the value cannot be encoded, or [cannot be decoded
    ///   again](crate::Key#values).
    /// - [`ErrorKind::TooLarge`] if the values that this request has changed would exceed the [maximum size
    ///   of a record](crate::Builder::max_record_bytes).
    #[doc(alias("set", "put"))]
    pub fn insert<K, V>(&self, key: K, value: &V) -> Result<()>
    where
        K: AsKey,
        K::Value: DeserializeOwned,
        V: StoredAs<K::Value> + ?Sized,
    {
        let max_record = self.settings().options.max_record;
        let encoded = encoded::<K::Value>(key.name(), value, max_record)?;
        let value = Value::new(encoded, key.survives());
        let mut state = self.state();
        state.changes.delta.view().check_room(key.name(), &value, max_record)?;
        state.changed().push(key.to_name(), Change::Set(value.clone()), Some(value));
        Ok(())
    }

    /// Removes the value of a key. No effect if the key has no value.
    ///
    /// ```
    /// use unsticky::{Key, Session};
    ///
    /// const THEME: Key<String> = Key::new("theme");
    ///
    /// # fn main() -> unsticky::Result<()> {
    /// let session = Session::detached();
    /// session.insert(THEME, "dark")?;
    /// session.remove(THEME);
    /// assert_eq!(session.get(THEME)?, None);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "delete")]
    pub fn remove(&self, key: impl AsKey) {
        self.state().changed().push(key.to_name(), Change::Remove, None);
    }

    /// Removes the value of a key and returns it, or `None` if the key has no value. Use it for values
    /// that may be used only once.
    ///
    /// If another request changes or takes the value before this request commits, the commit fails with
    /// [`ErrorKind::ValueChanged`] and writes nothing. If the handler must know the outcome before it
    /// continues, use [`transact`](Self::transact).
    ///
    /// ```
    /// use unsticky::{Key, Session};
    ///
    /// const NONCE: Key<String> = Key::new("nonce");
    ///
    /// # fn main() -> unsticky::Result<()> {
    /// let session = Session::detached();
    /// session.insert(NONCE, "n-0S6_WzA2Mj")?;
    /// assert_eq!(session.take(NONCE)?.as_deref(), Some("n-0S6_WzA2Mj"));
    /// assert_eq!(session.take(NONCE)?, None);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Decode`] if the stored value cannot be decoded as the key's type. The value is left
    ///   unchanged.
    /// - [`ErrorKind::Reentrant`] if the value's `Deserialize` implementation changes a session.
    #[doc(alias = "pop")]
    pub fn take<K: AsKey>(&self, key: K) -> Result<Option<K::Value>>
    where
        K::Value: DeserializeOwned,
    {
        let name = key.name();
        let before = changes_on_this_thread();
        for _ in 0..VIEW_ATTEMPTS {
            let value = self.state().value(name);
            let taken = match &value {
                Some(value) => decoded(name, &value.bytes)?,
                None => return Ok(None),
            };
            if changes_on_this_thread() != before {
                return Err(reentrant());
            }
            let mut state = self.state();
            if state.value(name) != value {
                continue;
            }
            let is_being_stored = state.is_being_stored(name);
            let stored = state.with_values(|_, values| values.get(name));
            let change = match (stored, value) {
                (_, Some(value)) if is_being_stored => {
                    state.taken_early.push((key.to_name(), value.bytes));
                    Change::Remove
                }
                (Some(stored), _) => Change::Take { seen: stored.bytes },
                // Only this request has set the value; it is not stored.
                (None, _) => Change::Remove,
            };
            state.changed().push(key.to_name(), change, None);
            return Ok(Some(taken));
        }
        Err(contended())
    }

    /// Changes the value of a key with a function. If the key has no value, the function starts with the
    /// type's default.
    ///
    /// If another request wrote first, `function` is called again on the newer value. It must therefore be
    /// pure, and it returns nothing, because the value that it saw first may not be the one that is stored.
    /// It may read sessions but must not change any. The function and its captures are kept until the change
    /// is committed or dropped.
    ///
    /// ```
    /// use unsticky::{Key, Session};
    ///
    /// const CART: Key<Vec<u32>> = Key::new("cart");
    ///
    /// # fn main() -> unsticky::Result<()> {
    /// let session = Session::detached();
    /// session.update(CART, |cart| cart.push(7))?;
    /// session.update(CART, |cart| cart.push(8))?;
    /// assert_eq!(session.get(CART)?, Some(vec![7, 8]));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The value is not changed if it returns an error:
    ///
    /// - [`ErrorKind::Decode`] if the stored value cannot be decoded as the key's type.
    /// - [`ErrorKind::Encode`] and [`ErrorKind::TooLarge`] for the new value, as in [`insert`](Self::insert).
    /// - [`ErrorKind::Reentrant`] if `function` changes a session.
    ///
    /// If the function fails on a newer value, the commit fails with the same kinds, or with
    /// [`ErrorKind::UpdatePanicked`] if the function panics.
    pub fn update<K, F>(&self, key: K, function: F) -> Result<()>
    where
        K: AsKey,
        K::Value: Serialize + DeserializeOwned + Default,
        F: Fn(&mut K::Value) + Send + Sync + 'static,
    {
        let name = key.to_name();
        let survives = key.survives();
        let max_record = self.settings().options.max_record;
        let function: Arc<UpdateFn> = Arc::new({
            let name = name.clone();
            move |current| {
                let mut value: K::Value = match current {
                    Some(bytes) => decoded(&name, bytes)?,
                    None => K::Value::default(),
                };
                function(&mut value);
                encoded::<K::Value>(&name, &value, max_record)
            }
        });
        let before = changes_on_this_thread();
        for _ in 0..VIEW_ATTEMPTS {
            // The function runs outside the lock, because it may read the session or be slow.
            let current = self.state().value(&name);
            let bytes = function(current.as_ref().map(|value| &value.bytes[..]))?;
            if changes_on_this_thread() != before {
                return Err(reentrant());
            }
            let value = Value::new(bytes, survives);
            let mut state = self.state();
            if state.value(&name) == current {
                state.changes.delta.view().check_room(&name, &value, max_record)?;
                state.changed().push(name, Change::Update { survives, function }, Some(value));
                return Ok(());
            }
        }
        Err(contended())
    }

    /// Removes all values. The session continues, and a signed-in user stays signed in.
    ///
    /// This also removes pending [flash messages](Self::flash) and the value behind the
    /// [`CsrfToken`](crate::CsrfToken), so pages with open forms must be loaded again. To end the session,
    /// call [`destroy`](Self::destroy).
    ///
    /// ```
    /// use unsticky::{Key, Session};
    ///
    /// # fn main() -> unsticky::Result<()> {
    /// let session = Session::detached();
    /// session.sign_in("alice")?;
    /// session.insert(Key::<u32>::new("visits"), &1)?;
    /// session.clear();
    /// assert!(session.is_empty() && session.is_signed_in());
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "remove_all")]
    pub fn clear(&self) {
        self.state().changed().clear();
    }

    /// Returns the session id, or `None` before the session is stored for the first time.
    ///
    /// The id stays the same for the session's whole life. It is not a credential and may be logged.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = unsticky::Session::detached();
    /// session.sign_in("alice")?;
    /// assert_eq!(session.id(), None);
    /// session.save().await?;
    /// assert!(session.id().is_some());
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("session_id", "session_key"))]
    #[must_use]
    pub fn id(&self) -> Option<SessionId> {
        self.state().base().map(|loaded| loaded.id)
    }

    /// Returns the principal that is signed in, or `None` if the session is anonymous.
    ///
    /// ```
    /// # fn main() -> unsticky::Result<()> {
    /// let session = unsticky::Session::detached();
    /// assert_eq!(session.principal(), None);
    /// session.sign_in("alice")?;
    /// assert_eq!(session.principal().as_deref(), Some("alice"));
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("user", "user_id", "username", "identity"))]
    #[must_use]
    pub fn principal(&self) -> Option<Arc<str>> {
        let state = self.state();
        state.changes.signed_in(state.loaded.as_deref()).cloned()
    }

    /// Returns `true` if a user is signed in.
    ///
    /// ```
    /// # fn main() -> unsticky::Result<()> {
    /// let session = unsticky::Session::detached();
    /// session.sign_in("alice")?;
    /// assert!(session.is_signed_in());
    /// session.sign_out();
    /// assert!(!session.is_signed_in());
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "is_authenticated")]
    #[must_use]
    pub fn is_signed_in(&self) -> bool {
        self.principal().is_some()
    }

    /// Returns when the signed-in user last authenticated, by a sign-in or a [`step_up`](Self::step_up).
    ///
    /// `None` if no user is signed in, and from a sign-in in this request until it is committed.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = unsticky::Session::detached();
    /// session.sign_in("alice")?;
    /// session.save().await?;
    /// assert!(session.authenticated_at().unwrap() <= time::OffsetDateTime::now_utc());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn authenticated_at(&self) -> Option<OffsetDateTime> {
        let state = self.state();
        if state.changes.principal().is_some() {
            return None;
        }
        state.base()?.record.header.clocks.authenticated?.to_time()
    }

    /// Returns `true` if a user is signed in and authenticated within the last `duration`.
    ///
    /// Check it before sensitive changes (ASVS 5.0 7.5.1 and 7.5.3), and call [`step_up`](Self::step_up)
    /// when the user has authenticated again. A sign-in in this request counts. The extractor
    /// [`AuthenticatedWithin`](crate::AuthenticatedWithin) makes the same check.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// # fn main() -> unsticky::Result<()> {
    /// let session = unsticky::Session::detached();
    /// let ten_minutes = Duration::from_secs(10 * 60);
    /// assert!(!session.authenticated_within(ten_minutes));
    /// session.sign_in("alice")?;
    /// assert!(session.authenticated_within(ten_minutes));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn authenticated_within(&self, duration: Duration) -> bool {
        let now = self.settings().now();
        let state = self.state();
        let is_fresh = |loaded: &Loaded| {
            let header = &loaded.record.header;
            let authenticated = header.clocks.authenticated.filter(|_| header.principal.is_some());
            authenticated.is_some_and(|then| now.since(then) <= duration)
        };
        state.changes.principal().is_some() || state.base().is_some_and(is_fresh)
    }

    /// Returns when the session expires if it is not used again, or `None` before it is stored for the
    /// first time.
    ///
    /// ```
    /// use time::{Duration, OffsetDateTime};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = unsticky::Session::detached();
    /// session.sign_in("alice")?;
    /// session.save().await?;
    /// // The default idle timeout is 30 minutes.
    /// let left = session.expires_at().unwrap() - OffsetDateTime::now_utc();
    /// assert!(left > Duration::minutes(29) && left <= Duration::minutes(30));
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("expiry_date", "get_expiry_date"))]
    #[must_use]
    pub fn expires_at(&self) -> Option<OffsetDateTime> {
        self.state().base()?.record.header.clocks.deadline().to_time()
    }

    /// Signs a user in: replaces the secret, restarts both timeouts, and stores the principal and the time
    /// (ASVS 5.0 7.2.4).
    ///
    /// `principal` is your stable id of the account, of 1 to 1024 bytes.
    ///
    /// From an anonymous session, only values whose key [`survives_sign_in`](crate::Key::survives_sign_in)
    /// are kept, and those that this request wrote. Signing in as another principal ends the current session
    /// and creates a new one without its values. If another request has replaced the secret, the sign-in
    /// creates a new session. The old session does not end then.
    ///
    /// The session gets the [configured lifetime](crate::Builder::lifetime), unless this request calls
    /// [`set_lifetime`](Self::set_lifetime) or [`end_by`](Self::end_by). Choices of earlier requests are
    /// dropped. To keep a choice across a redirect to an identity provider, store it under a key that
    /// [survives a sign-in](crate::Key::survives_sign_in), and call `set_lifetime` when the user returns.
    ///
    /// If the request carries several valid tokens, the sign-in creates a new session and ends all of
    /// theirs; none of them counts against the limit. If one of them cannot be ended, the sign-in fails and
    /// its session is removed again. Sessions that were ended by then stay ended; sign in again to end the
    /// others.
    ///
    /// The session is listed in the principal's [directory](crate::Directory) before its cookie is sent.
    ///
    /// ```
    /// use unsticky::{Key, Session};
    ///
    /// const CART: Key<Vec<u32>> = Key::new("cart").survives_sign_in();
    /// const SEEN: Key<u32> = Key::new("seen");
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = Session::detached();
    /// session.insert(CART, &vec![7])?;
    /// session.insert(SEEN, &1)?;
    /// session.save().await?;
    /// session.sign_in("alice")?;
    /// assert_eq!(session.principal().as_deref(), Some("alice"));
    /// assert_eq!(session.get(CART)?, Some(vec![7]));
    /// session.save().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidPrincipal`] if `principal` is empty or longer than 1024 bytes, and the errors of
    /// an earlier [`update`](Self::update) of this request whose function is called again. Nothing is
    /// changed then.
    ///
    /// The commit fails with:
    ///
    /// - [`ErrorKind::TooManySessions`] if the principal has the maximum number of
    ///   [concurrent sessions](crate::Builder::concurrent_sessions) and the configuration rejects a new one.
    ///   The session is unchanged.
    /// - [`ErrorKind::Revoked`] if all sessions of the principal were revoked during the sign-in.
    ///
    /// To handle these errors in the handler, call [`save`](Self::save) there. The handler's changes are
    /// then dropped, except for an earlier sign-out.
    #[doc(alias("login", "log_in", "remember"))]
    pub fn sign_in(&self, principal: impl AsRef<str>) -> Result<()> {
        self.sign_in_with(SignIn::new(principal))
    }

    /// Signs a user in like [`sign_in`](Self::sign_in), with a [label](SignIn::label) for the list of
    /// sessions, or with a sign-in that [began](crate::Directory::begin_sign_in) before the password was
    /// verified.
    ///
    /// ```
    /// use unsticky::{Session, SignIn};
    ///
    /// # fn main() -> unsticky::Result<()> {
    /// let session = Session::detached();
    /// session.sign_in_with(SignIn::new("alice").label("Firefox on Linux"))?;
    /// assert_eq!(session.principal().as_deref(), Some("alice"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`sign_in`](Self::sign_in). The commit also fails with [`ErrorKind::Revoked`] if all
    /// sessions were revoked since the sign-in began, or if it began more than one hour ago.
    #[doc(alias = "login")]
    pub fn sign_in_with(&self, sign_in: SignIn) -> Result<()> {
        checked_principal(&sign_in.principal)?;
        self.rebase(|changes, loaded| changes.sign_in(&sign_in, loaded))
    }

    /// Records that the signed-in user has authenticated again: replaces the secret and restarts both
    /// timeouts (ASVS 5.0 7.2.4, NIST SP 800-63B-4 5.2).
    ///
    /// The session keeps its values and its lifetime. If the session ended, or another request replaced its
    /// secret, the commit fails with [`ErrorKind::Gone`].
    ///
    /// ```
    /// use unsticky::{ErrorKind, Session};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = Session::detached();
    /// assert_eq!(session.step_up().unwrap_err().kind(), ErrorKind::NotSignedIn);
    /// session.sign_in("alice")?;
    /// session.save().await?;
    /// let before = session.authenticated_at();
    /// session.step_up()?;
    /// session.save().await?;
    /// assert!(session.authenticated_at() >= before);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotSignedIn`] if no user is signed in, [`ErrorKind::Gone`] if this request has lost
    /// its session, and the errors of [`sign_in`](Self::sign_in). Nothing is changed then.
    #[doc(alias("reauthenticate", "sudo"))]
    pub fn step_up(&self) -> Result<()> {
        let principal = self.signed_in()?;
        if self.state().changes.signing_in().is_some() {
            // The sign-in of this request is as recent, and may come from `begin_sign_in`.
            return Ok(());
        }
        self.sign_in_with(SignIn { is_step_up: true, ..SignIn::new(principal) })
    }

    /// Signs the user out by ending the session. The same as [`destroy`](Self::destroy).
    ///
    /// ```
    /// # fn main() -> unsticky::Result<()> {
    /// let session = unsticky::Session::detached();
    /// session.sign_in("alice")?;
    /// session.sign_out();
    /// assert!(!session.is_signed_in());
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("logout", "log_out"))]
    pub fn sign_out(&self) {
        self.destroy();
    }

    /// Ends the session: the commit deletes the record and tells the browser to remove the cookie.
    ///
    /// This also ends a session whose secret another request has replaced, if the principal is still the
    /// same; it never ends a session on which another principal has signed in. If the session has already
    /// ended, no cookie is sent, because the browser may hold a newer one. If the request carries several
    /// valid tokens, all their sessions end.
    ///
    /// Values that the request writes afterwards belong to a new session.
    ///
    /// ```
    /// use unsticky::{Key, Session};
    ///
    /// const CART: Key<Vec<u32>> = Key::new("cart");
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = Session::detached();
    /// session.insert(CART, &vec![7])?;
    /// session.save().await?;
    /// session.destroy();
    /// session.save().await?;
    /// assert_eq!((session.get(CART)?, session.id()), (None, None));
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("flush", "purge", "invalidate", "delete"))]
    pub fn destroy(&self) {
        self.state().intend().end();
    }

    /// Replaces the session's secret. From the commit on, the old token is invalid.
    ///
    /// Call it when the privileges of the signed-in user change; [`sign_in`](Self::sign_in) already replaces
    /// the secret. The session id stays the same. No effect on an unsaved session, or if another request has
    /// already replaced the secret.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = unsticky::Session::detached();
    /// session.sign_in("alice")?;
    /// session.save().await?;
    /// let id = session.id();
    /// session.rotate();
    /// session.save().await?;
    /// assert!(session.is_signed_in() && session.id() == id);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("cycle_id", "cycle_key", "renew", "regenerate", "change_session_id"))]
    pub fn rotate(&self) {
        self.state().intend().rotate(Rotation::Plain);
    }

    /// Sets the lifetime of this session, for example for "remember me".
    ///
    /// The lifetime is stored with the session and applies until the next sign-in. The cookie is sent
    /// again, with a new secret. No effect if the session already has this lifetime, or on an unsaved
    /// session, unless this request also stores a value or signs in.
    ///
    /// If the new lifetime ends later, the principal's [directory](crate::Directory) is updated first, so the
    /// commit can also fail with the directory's errors. If another request has replaced the session's
    /// secret, the commit fails with [`ErrorKind::Gone`].
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use unsticky::{Lifetime, Session};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    ///
    /// let session = Session::detached();
    /// session.sign_in("alice")?;
    /// session.set_lifetime(Lifetime::new(14 * DAY, 30 * DAY));
    /// session.save().await?;
    /// assert!(session.expires_at().unwrap() > time::OffsetDateTime::now_utc() + 13 * DAY);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "remember_me")]
    #[doc(alias("set_expiry", "set_max_age", "set_max_inactive_interval"))]
    pub fn set_lifetime(&self, lifetime: Lifetime) {
        self.state().intend().set_lifetime(lifetime);
    }

    /// Sets the time at which the session expires at the latest.
    ///
    /// Use it after a federated sign-in, to end the session with that of the identity provider (ASVS 5.0
    /// 7.1.3 and 7.6.1). The limit applies until you set another one or the next sign-in; a
    /// [`step_up`](Self::step_up) or [`set_lifetime`](Self::set_lifetime) does not remove it. The cookie is
    /// sent again, with a new secret. A time in the past ends the session with this request.
    ///
    /// No effect if the session already has this limit, or on an unsaved session, unless this request also
    /// stores a value or signs in.
    ///
    /// ```
    /// use time::{Duration, OffsetDateTime};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = unsticky::Session::detached();
    /// let end = OffsetDateTime::now_utc() + Duration::minutes(5);
    /// session.sign_in("alice")?;
    /// session.end_by(end);
    /// session.save().await?;
    /// assert!(session.expires_at().unwrap() <= end);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias("set_expiry", "expire_at"))]
    pub fn end_by(&self, end: OffsetDateTime) {
        self.state().intend().set_end(Millis::of(end));
    }

    /// Marks this request as passive: it does not count as use of the session, even if it writes.
    ///
    /// Call it on routes that the browser polls without the user's action.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = unsticky::Session::detached();
    /// session.sign_in("alice")?;
    /// session.save().await?;
    /// let expires = session.expires_at();
    /// session.mark_passive();
    /// session.save().await?;
    /// assert_eq!(session.expires_at(), expires);
    /// # Ok(())
    /// # }
    /// ```
    pub fn mark_passive(&self) {
        self.state().is_passive = true;
    }

    /// Runs `function` on the stored values and stores its changes before returning.
    ///
    /// Use it for one-time tokens, for limits on attempts, and whenever the response depends on the write.
    ///
    /// If another request wrote first, `function` is called again on the newer record. The result is that
    /// of the call whose changes were stored. Earlier changes of this request are committed in the same
    /// write. If nothing has changed, nothing is written. If `function` fails, nothing is written and its
    /// error is returned. `function` may run in another task, without the caller's task-local values.
    ///
    /// A write counts as use of the session, unless the request is [passive](Self::mark_passive).
    ///
    /// ```
    /// use unsticky::{Key, Session};
    ///
    /// const ATTEMPTS: Key<u32> = Key::new("attempts");
    ///
    /// async fn may_try(session: &Session) -> unsticky::Result<bool> {
    ///     session
    ///         .transact(|values| {
    ///             let attempts = values.get(ATTEMPTS)?.unwrap_or(0);
    ///             if attempts == 5 {
    ///                 return Ok(false);
    ///             }
    ///             values.insert(ATTEMPTS, &(attempts + 1))?;
    ///             Ok(true)
    ///         })
    ///         .await
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = Session::detached();
    /// for _ in 0..5 {
    ///     assert!(may_try(&session).await?);
    /// }
    /// assert!(!may_try(&session).await?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The errors of [`save`](Self::save) and of `function`. [`Transaction::insert`] fails with
    /// [`ErrorKind::Encode`] for a value that [cannot be decoded again](crate::Key#values).
    #[doc(alias("transaction", "atomic"))]
    pub async fn transact<T, F>(&self, function: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&mut Transaction<'_>) -> Result<T> + Send + 'static,
    {
        self.run_to_completion(|session, driver| async move {
            let mut decided = None;
            let result = &mut decided;
            let mut decide = move |values: &mut Transaction<'_>| {
                *result = Some(function(values)?);
                Ok(())
            };
            session.commit(&driver, false, Some(&mut decide)).await?;
            decided.ok_or_else(|| session.settings().gone("this request ended the session"))
        })
        .await
    }

    /// Commits the changes so far, instead of after the handler.
    ///
    /// Use it in streams, server-sent events and WebSockets, which continue after the response has begun, and
    /// whenever a handler must handle the errors of the commit.
    ///
    /// A write counts as use of the session, unless the request is [passive](Self::mark_passive). If there is
    /// nothing to save, the idle timeout is extended if that is due, as at the end of a request, and a failure
    /// to extend it is not reported. For a stream that is in use, call [`touch`](Self::touch).
    ///
    /// ```
    /// use unsticky::{Key, Session};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = Session::detached();
    /// session.insert(Key::<u32>::new("progress"), &50)?;
    /// assert_eq!(session.id(), None);
    /// session.save().await?;
    /// assert!(session.id().is_some());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Unavailable`], [`ErrorKind::Refused`], [`ErrorKind::Contended`],
    ///   [`ErrorKind::TooLarge`], [`ErrorKind::Randomness`]: nothing was written, and the changes
    ///   are still pending.
    /// - [`ErrorKind::ValueChanged`], [`ErrorKind::Decode`], [`ErrorKind::UpdatePanicked`]: the same,
    ///   because a change could not be applied to a newer record.
    /// - [`ErrorKind::Gone`]: the session ended, or its secret was replaced and these changes are no longer
    ///   allowed; see [what a request may do](Self#what-a-request-may-do). The changes are dropped, and this
    ///   request's response becomes this error, unless the response is a failure itself.
    /// - [`ErrorKind::TooManySessions`], [`ErrorKind::Revoked`]: the [directory](crate::Directory) rejected a
    ///   sign-in. The changes are dropped, except for an end of the session. No session was created or
    ///   changed.
    /// - [`ErrorKind::Corrupt`], [`ErrorKind::NewerFormat`]: a newer record, or the directory record, cannot
    ///   be decoded. Nothing was written.
    /// - [`ErrorKind::OutcomeUnknown`]: the changes may or may not be stored. They are no longer pending, and
    ///   this request's response becomes this error, unless the response is a failure itself. A handle that
    ///   is used after the response returns this error until [`reload`](Self::reload) succeeds.
    /// - [`ErrorKind::HeadSent`]: a new session, a sign-in, a rotation or a lifetime needs a cookie, but the
    ///   response has begun.
    #[doc(alias = "commit")]
    pub async fn save(&self) -> Result<()> {
        self.run_to_completion(|session, driver| async move {
            session.commit(&driver, false, None).await
        })
        .await
    }

    /// Reads the record again, to see the writes of other requests or to check that the session is still
    /// valid.
    ///
    /// Uncommitted changes stay pending. It never counts as use of the session; [`touch`](Self::touch) does.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = unsticky::Session::detached();
    /// session.sign_in("alice")?;
    /// session.save().await?;
    /// session.reload().await?;
    /// assert_eq!(session.loss(), None);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Gone`] if the session ended or its secret is no longer this request's, and on each call
    ///   after that. Pending changes are dropped; if there were any, this request's response becomes this
    ///   error, unless the response is a failure itself. The handle then shows an empty session.
    /// - [`ErrorKind::Unavailable`] if the store cannot be reached.
    /// - [`ErrorKind::Corrupt`] and [`ErrorKind::NewerFormat`] if the record, or in
    ///   [strict mode](crate::DirectoryMode::Strict) the directory, cannot be decoded.
    /// - [`ErrorKind::Decode`] and [`ErrorKind::UpdatePanicked`] if a pending update cannot be applied to the
    ///   newer values. It stays pending.
    #[doc(alias = "load")]
    pub async fn reload(&self) -> Result<()> {
        self.run_to_completion(|session, driver| async move { session.reread(&driver).await }).await
    }

    /// Returns the [`Sessions`] to which this session belongs.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> unsticky::Result<()> {
    /// let session = unsticky::Session::detached();
    /// session.sign_in("alice")?;
    /// session.save().await?;
    /// assert_eq!(session.sessions().of("alice").count().await?, 1);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn sessions(&self) -> &Sessions {
        &self.0.sessions
    }

    fn settings(&self) -> &Settings {
        self.0.sessions.settings()
    }

    fn state(&self) -> StateGuard<'_> {
        self.0.lock()
    }

    fn context(&self) -> Context<'_> {
        self.0.context()
    }

    /// Returns the time that the request may still wait for the store.
    fn budget(&self) -> Budget {
        Budget::new(self.state().time_left(self.settings()))
    }

    /// Subtracts the time spent on the store. Time that several handles spent concurrently counts once. Not
    /// called for an abandoned read, because its future may have been left unpolled for any time.
    fn record_store_time(&self, budget: &Budget) {
        let mut state = self.state();
        let used = budget.used(state.charged);
        state.time_left = state.time_left.saturating_sub(used);
        state.charged = Some(Instant::now());
    }

    /// Waits for a commit of this session in progress. The store's timeout applies, because the other commit
    /// may be on a runtime that is not polled.
    async fn lock_commits(&self, driver: &Driver) -> Result<AsyncMutexGuard<'_, ()>> {
        let settings = self.settings();
        let (under_way, patience) = {
            let mut state = self.state();
            match self.0.committing.try_lock() {
                Ok(guard) => {
                    state.committing = Some(driver.clone());
                    return Ok(guard);
                }
                Err(_) => (state.committing.clone(), state.time_left(settings)),
            }
        };
        // The future that holds the lock may never be polled again, and neither may this one.
        under_way.iter().chain([driver]).for_each(Driver::drive);
        let guard = timeout(patience, self.0.committing.lock()).await;
        guard.map_err(|_| {
            Error::new(
                ErrorKind::Contended,
                "another commit of this session did not finish in time",
            )
        })
    }

    /// Returns the signed-in principal, or an error if there is none.
    pub(crate) fn signed_in(&self) -> Result<Arc<str>> {
        match self.principal() {
            Some(principal) => Ok(principal),
            None if self.state().lost.is_some() => Err(self.settings().gone("")),
            None => Err(Error::new(ErrorKind::NotSignedIn, "")),
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.id())
            .field("is_signed_in", &self.is_signed_in())
            .finish_non_exhaustive()
    }
}
