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

/// Gives a handler access to the session of the current request.
///
/// Take a `Session` as a handler argument; the same type works in axum and in actix-web. The extractor reads
/// the record once, before the handler runs, so all methods are synchronous except
/// [`transact`](Self::transact), [`save`](Self::save), [`reload`](Self::reload), [`touch`](Self::touch),
/// [`flashes`](Self::flashes) and [`csrf_token`](Self::csrf_token).
///
/// Changes are recorded individually and committed after the handler returns, before the response is sent.
/// Concurrent requests that write different keys therefore never overwrite each other's values.
///
/// A clone is another handle to the same session. All handles in a request see the same changes.
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
/// A route that takes a `Session` responds with 503 while the store is down. If a page can work without a
/// session, let its handler take a `Result<Session>` instead. This works in both frameworks:
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
/// - [`update`](Self::update): if another request wrote first, the function that you passed runs again on the
///   newer value. After 200 concurrent increments have been committed, the counter is 200 higher.
/// - [`take`](Self::take): if another request changed or took the value first, the commit fails. At most one
///   request succeeds in taking a one-time value.
/// - [`transact`](Self::transact): the changes are stored before the handler continues, so the response can
///   depend on them.
///
/// If the response has status 5xx or 408, or an earlier [`save`](Self::save) failed with an error that
/// replaces the response, only a sign-out or `destroy` is committed; all other changes are dropped. The same
/// applies if the commit at the end refuses a sign-in ([`ErrorKind::TooManySessions`],
/// [`ErrorKind::Revoked`]). If that commit fails for another reason, all changes are dropped, except that
/// after [`ErrorKind::OutcomeUnknown`] they may have been stored; a sign-out may not have taken effect. To
/// commit all changes whatever the status, use
/// [`Builder::on_failed_response`](crate::Builder::on_failed_response). To store a change whatever the
/// response, for example to count a failed attempt, use [`transact`](Self::transact) or [`save`](Self::save).
///
/// # What a request may do
///
/// A request acts with the secret from its cookie, or with the newest secret that it has created itself. As a
/// rule, if another request has rotated the secret, changes to values are still merged, but changes that need
/// a new cookie fail or have no effect, and `sign_in` creates a new session. The table shows what each method
/// does:
///
/// | state of the session | values | `transact` | `rotate` | `set_lifetime`, `end_by` | `step_up`, `revoke_others` | `sign_in` | `sign_out` | `reload` |
/// |---|---|---|---|---|---|---|---|---|
/// | the secret is valid | committed | stored | new secret | new secret | new secret | new secret | ends the session | reads the newest values |
/// | another request rotated the secret | merged | stored | no effect | [`Gone`] | [`Gone`] | creates a new session | ends the session | [`Gone`] |
/// | another request signed in | [`Gone`] if anything would change | [`Gone`] | no effect | [`Gone`] | [`Gone`] | creates a new session | ends the session if the principal is the same | [`Gone`] |
/// | the session ended or expired | [`Gone`] if anything would change | [`Gone`] | no effect | no effect | [`Gone`] | creates a new session | no effect | [`Gone`] |
///
/// If the cookie's secret had already been replaced when the record was read, the request is anonymous. Its
/// changes to values fail with [`Gone`] as well, because the cookie of a new session would overwrite the
/// newer cookie in the browser.
///
/// [`Gone`] is [`ErrorKind::Gone`], a 409 unless [configured otherwise](crate::Builder::gone_status). With
/// this error, all of the request's changes are dropped. `set_lifetime` and `end_by` change nothing if the
/// session already has that lifetime or time limit. A [flash message](Self::flash) alone never causes `Gone`:
/// if the request has lost its session and nothing else would change, the message is dropped.
///
/// # After the response
///
/// You can keep using a handle after the response, in a stream or a WebSocket. Each commit then applies to
/// the record as it is at that time, and the handle's secret must still be valid: after a rotation by another
/// request, `save` and `transact` fail with [`ErrorKind::Gone`].
///
/// An open stream alone does not count as use of the session. [`touch`](Self::touch) keeps the session alive,
/// [`reload`](Self::reload) checks whether it is still valid, and [`loss`](Self::loss) returns the reason if
/// it is not.
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
        // Decoded outside the lock, because `Deserialize` is application code.
        value.map(|value| decoded(name, &value.bytes)).transpose()
    }

    /// Returns `true` if the key has a value of any type.
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

    /// Returns `true` if the session has no values. This crate's own values, for flash messages and CSRF
    /// tokens, count as well.
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
    /// The value has the key's type; for a `String` key, you can also pass a `&str`. If the record that this
    /// request last read or stored already has the same value for the key, the call causes no write to the
    /// store.
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
    /// If this method returns an error, nothing is changed:
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

    /// Removes the value of a key and returns it, or `None` if the key has no value. Use `take` for values
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
                // The value was set by this request and has not been stored.
                (None, _) => Change::Remove,
            };
            state.changed().push(key.to_name(), change, None);
            return Ok(Some(taken));
        }
        Err(contended())
    }

    /// Changes the value of a key with a function. If the key has no value, the function receives the type's
    /// default.
    ///
    /// If another request wrote first, `function` is called again on the newer value, so it must be pure. It
    /// returns nothing, because a result of the first call might not match the value that is finally stored.
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
    /// If this method returns an error, the value is not changed:
    ///
    /// - [`ErrorKind::Decode`] if the stored value cannot be decoded as the key's type.
    /// - [`ErrorKind::Encode`] and [`ErrorKind::TooLarge`] for the new value, as for
    ///   [`insert`](Self::insert).
    /// - [`ErrorKind::Reentrant`] if `function` changes a session.
    ///
    /// If the change cannot be applied to a newer value, the commit fails with one of these errors, or with
    /// [`ErrorKind::UpdatePanicked`] if `function` panics.
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
    /// This also removes pending [flash messages](Self::flash) and the stored value that every
    /// [`CsrfToken`](crate::CsrfToken) is made from, so open pages with forms must be reloaded. To end the
    /// session, call [`destroy`](Self::destroy).
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

    /// Returns the time at which the signed-in user last authenticated, by signing in or through
    /// [`step_up`](Self::step_up).
    ///
    /// `None` if no user is signed in, or if this request has a sign-in or a step-up that is not yet
    /// committed.
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

    /// Returns `true` if a user is signed in and has authenticated within the last `duration`.
    ///
    /// Check this before sensitive changes (ASVS 5.0 7.5.1 and 7.5.3), and call [`step_up`](Self::step_up)
    /// once the user has authenticated again. A sign-in in this request counts as well. The
    /// [`AuthenticatedWithin`](crate::AuthenticatedWithin) extractor makes the same check.
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

    /// Returns the time at which the session expires if it is not used again, or `None` before it is stored
    /// for the first time.
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

    /// Signs a user in: replaces the secret, restarts both timeouts, and stores the principal and the time of
    /// the sign-in (ASVS 5.0 7.2.4).
    ///
    /// `principal` is your application's stable id for the account, 1 to 1024 bytes long.
    ///
    /// When a user signs in, an anonymous session keeps only the values whose keys [survive a
    /// sign-in](crate::Key::survives_sign_in) and the values that this request has written but not yet
    /// committed. Signing in as a different principal ends the current session and creates a new one without
    /// the old values. If another request has replaced the secret, the sign-in creates a new session and does
    /// not end the old one.
    ///
    /// The session gets the [configured lifetime](crate::Builder::lifetime), unless this request calls
    /// [`set_lifetime`](Self::set_lifetime) or [`end_by`](Self::end_by). Choices made in earlier requests are
    /// dropped. To keep a choice across a redirect to an identity provider, store it under a key that
    /// [survives a sign-in](crate::Key::survives_sign_in), and call `set_lifetime` when the user returns.
    ///
    /// If the request carries several valid tokens, the sign-in creates a new session and ends the sessions
    /// of all these tokens. Those sessions do not count against the limit on concurrent sessions. If one of
    /// them cannot be ended, the sign-in fails and the new session is removed again. Sessions that have
    /// already been ended stay ended; signing in again ends the others.
    ///
    /// Before its cookie is sent, the session is listed in the principal's [directory](crate::Directory),
    /// unless the directory is turned off.
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
    /// an earlier [`update`](Self::update) in this request, because its function is called again. In either
    /// case, nothing is changed.
    ///
    /// The commit fails with:
    ///
    /// - [`ErrorKind::TooManySessions`] if the principal already has the maximum number of [concurrent
    ///   sessions](crate::Builder::concurrent_sessions) and none of them is revoked to make room. The session
    ///   is unchanged.
    /// - [`ErrorKind::Revoked`] if all of the principal's sessions, or all but one, were revoked while the
    ///   sign-in was being committed.
    ///
    /// To handle these errors yourself, call [`save`](Self::save) in the handler. If it fails with one of
    /// them, the handler's changes are dropped, except for an earlier sign-out.
    #[doc(alias("login", "log_in", "remember"))]
    pub fn sign_in(&self, principal: impl AsRef<str>) -> Result<()> {
        self.sign_in_with(SignIn::new(principal))
    }

    /// Signs a user in like [`sign_in`](Self::sign_in), but with options: a [label](SignIn::label) for the
    /// list of sessions, or the start of the sign-in, recorded with
    /// [`begin_sign_in`](crate::Directory::begin_sign_in) before the password was verified.
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
    /// The errors of [`sign_in`](Self::sign_in). If the sign-in comes from
    /// [`begin_sign_in`](crate::Directory::begin_sign_in), the commit also fails with [`ErrorKind::Revoked`]
    /// if all of the principal's sessions, or all but one, were revoked after `begin_sign_in` was called, or
    /// if it was called more than one hour ago.
    #[doc(alias = "login")]
    pub fn sign_in_with(&self, sign_in: SignIn) -> Result<()> {
        checked_principal(&sign_in.principal)?;
        self.rebase(|changes, loaded| changes.sign_in(&sign_in, loaded))
    }

    /// Records that the signed-in user has authenticated again: replaces the secret and restarts both
    /// timeouts (ASVS 5.0 7.2.4, NIST SP 800-63B-4 5.2).
    ///
    /// The session keeps its values and its lifetime. If the session has ended, or another request has
    /// replaced its secret, the commit fails with [`ErrorKind::Gone`].
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
    /// [`ErrorKind::NotSignedIn`] if no user is signed in, [`ErrorKind::Gone`] if this request has
    /// [lost](Self::loss) its session, and the errors of [`sign_in`](Self::sign_in). If this method returns
    /// an error, nothing is changed.
    #[doc(alias("reauthenticate", "sudo"))]
    pub fn step_up(&self) -> Result<()> {
        let principal = self.signed_in()?;
        if self.state().changes.signing_in().is_some() {
            // Keep the pending sign-in: it is just as recent, and it may come from `begin_sign_in`.
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
    /// This works even if another request has replaced the secret, but not if a different principal has
    /// signed in since. If the session has already ended, the browser's cookie is left alone, because it may
    /// belong to a newer session. If the request carries several valid tokens, the sessions of all of them
    /// end.
    ///
    /// Values that the request writes after this call belong to a new session.
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

    /// Replaces the session's secret. The old token becomes invalid when the change is committed.
    ///
    /// Call this when the signed-in user's privileges change. It is not needed after a
    /// [`sign_in`](Self::sign_in), which also replaces the secret. The session id stays the same. No effect
    /// on an unsaved session, or if another request has already replaced the secret.
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
    /// The lifetime is stored with the session and applies until the next sign-in. The cookie is sent again,
    /// with a new secret. No effect if the session already has this lifetime. On an unsaved session, the call
    /// has an effect only if this request also stores a value or signs in.
    ///
    /// If a user is signed in and the new lifetime ends later than the old one, the principal's
    /// [directory](crate::Directory) is updated first, so the commit can also fail with the directory's
    /// errors. If another request has replaced the session's secret, the commit fails with
    /// [`ErrorKind::Gone`].
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

    /// Sets a time limit: the session expires at `end` at the latest.
    ///
    /// Use this after a federated sign-in, so that this session ends no later than the identity provider's
    /// (ASVS 5.0 7.1.3 and 7.6.1). The limit applies until you set a different one or the user signs in
    /// again; [`step_up`](Self::step_up) and [`set_lifetime`](Self::set_lifetime) do not remove it. The
    /// cookie is sent again, with a new secret. If `end` is in the past, the session ends with this request.
    ///
    /// No effect if the session already has this limit. On an unsaved session, the call has an effect only if
    /// this request also stores a value or signs in.
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
    /// Call this in handlers for routes that the browser polls without any action by the user.
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

    /// Runs `function` on the stored values, with this request's earlier changes applied to them, and stores
    /// the result before returning.
    ///
    /// Use `transact` for one-time tokens, for limits on attempts, and whenever the response depends on the
    /// write.
    ///
    /// If another request wrote first, `function` is called again on the newer record. The result comes from
    /// the call whose changes were stored. Changes that this request made earlier are committed in the same
    /// write. If nothing has changed, nothing is written. If `function` fails, nothing is written and its
    /// error is returned. `function` may run in a different task, without the caller's task-local values.
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

    /// Commits the changes made so far, without waiting for the handler to return.
    ///
    /// Use `save` in streams, server-sent events and WebSockets, which continue after the response has begun,
    /// and whenever a handler must deal with commit errors itself.
    ///
    /// A write counts as use of the session, unless the request is [passive](Self::mark_passive). If there
    /// are no changes, this method only extends the idle timeout, if an extension is due, and ignores a
    /// failure to extend it. The commit at the end of a request does the same. To keep the session alive
    /// while a stream is in use, call [`touch`](Self::touch).
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
    /// - [`ErrorKind::ValueChanged`], [`ErrorKind::Decode`], [`ErrorKind::UpdatePanicked`]: a change could
    ///   not be applied to a newer record. Nothing was written, and the changes are still pending.
    /// - [`ErrorKind::Gone`]: the session has ended, or its secret was replaced and these changes are no
    ///   longer allowed; see [what a request may do](Self#what-a-request-may-do). The changes are dropped.
    ///   This error also replaces the request's response, unless the response is itself a failure.
    /// - [`ErrorKind::TooManySessions`], [`ErrorKind::Revoked`]: the [directory](crate::Directory) rejected a
    ///   sign-in. The changes are dropped, except for a sign-out or `destroy`. No session was created or
    ///   changed.
    /// - [`ErrorKind::Corrupt`], [`ErrorKind::NewerFormat`]: the record that another request has
    ///   written in the meantime, or the directory record, cannot be decoded. Nothing was written.
    /// - [`ErrorKind::OutcomeUnknown`]: the changes may or may not have been stored. They are no longer
    ///   pending. This error also replaces the request's response, unless the response is itself a failure.
    ///   After the response, every further commit returns this error until a [`reload`](Self::reload)
    ///   succeeds.
    /// - [`ErrorKind::HeadSent`]: a new session, a sign-in, a rotation, or a new lifetime or time limit needs
    ///   a cookie, which cannot be sent because the response has already begun.
    #[doc(alias = "commit")]
    pub async fn save(&self) -> Result<()> {
        self.run_to_completion(|session, driver| async move {
            session.commit(&driver, false, None).await
        })
        .await
    }

    /// Reads the record again, to see writes by other requests or to check that the session is still valid.
    ///
    /// Uncommitted changes stay pending. A reload never counts as use of the session; a
    /// [`touch`](Self::touch) does.
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
    /// - [`ErrorKind::Gone`] if the session has ended or another request has replaced its secret. Every later
    ///   call returns this error as well, unless this request signs in and saves before its response. Pending
    ///   changes are dropped. If there were any apart from flash messages, this error also replaces the
    ///   request's response, unless the response is itself a failure whose changes are
    ///   [discarded](crate::Builder::on_failed_response). The handle then shows an empty session.
    /// - [`ErrorKind::Unavailable`] and [`ErrorKind::Refused`] if the store cannot be reached or refuses the
    ///   read.
    /// - [`ErrorKind::Corrupt`] and [`ErrorKind::NewerFormat`] if the record, or in
    ///   [strict mode](crate::DirectoryMode::Strict) the directory, cannot be decoded.
    /// - [`ErrorKind::Decode`] and [`ErrorKind::UpdatePanicked`] if a pending update cannot be applied to the
    ///   newer values. The update stays pending.
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

    /// Returns how long the request may still wait for the store.
    fn budget(&self) -> Budget {
        Budget::new(self.state().time_left(self.settings()))
    }

    /// Subtracts the time spent on store commands. Time that several handles spend concurrently counts once.
    /// Not called for an abandoned read, because its future may have gone unpolled for any length of time.
    fn record_store_time(&self, budget: &Budget) {
        let mut state = self.state();
        let used = budget.used(state.charged);
        state.time_left = state.time_left.saturating_sub(used);
        state.charged = Some(Instant::now());
    }

    /// Waits until no other commit in this session is in progress. The store's timeout applies, because the
    /// other commit may be on a runtime that is not being polled.
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
        // Both the future that holds the lock and this one might never be polled again.
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
