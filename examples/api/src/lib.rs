//! A JSON API with a WebSocket: everything in it that does not depend on the framework.
//!
//! A page on the same site uses it as follows. The server closes the WebSocket after a sign-out, even if the
//! user signed out in another tab or revoked the session on another device:
//!
//! ```js
//! function live() {
//!     const socket = new WebSocket("/live");
//!     socket.onmessage = ({ data }) => show(JSON.parse(data));
//!     socket.onclose = ({ code }) => {
//!         if (code === 4001) live();                       // the browser has a new cookie
//!         else if (code === 4002) askToSignIn("You were away for too long.");
//!         else if (code === 4003) askToSignIn("You were signed out.");
//!         // The network failed, the server restarted, or the user is signed out: `GET /me` shows which.
//!         else setTimeout(live, 1000 + 4000 * Math.random());
//!     };
//!     // An open socket does not extend the idle timeout. A message from an active user does.
//!     document.onkeydown = () => socket.readyState === WebSocket.OPEN && socket.send("in use");
//! }
//! ```

use std::borrow::Cow;
use std::env;
use std::error::Error;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Interval, MissedTickBehavior, interval};
use unsticky::{Builder, Cookie, Key, Loss, Result, Session, SessionId, Sessions, SignedIn, Store};

/// The user's notes.
pub const NOTES: Key<String> = Key::new("notes");

/// The export that the user requested last.
pub const EXPORT: Key<Export> = Key::new("export");

/// Returns the settings of the API's sessions, for any store.
pub fn builder(store: impl Store) -> Builder {
    Sessions::builder(store)
        // For http://localhost only; the default cookie needs https. The cookie has its own name, so that it
        // does not conflict with those of other applications on this machine.
        .cookie(Cookie::new("api").insecure())
        .on_error(|response, error, _| response.json(json(&Problem::from(error))))
}

/// Returns the sessions of this process. `SESSION_URL` is the URL of the store; the default is `memory:`.
///
/// # Errors
///
/// Returns an error if the URL is not valid.
pub fn sessions() -> Result<Sessions, Box<dyn Error>> {
    let url = env::var("SESSION_URL").unwrap_or_else(|_| "memory:".to_owned());
    Ok(builder(unsticky::connect(&url)?).build()?)
}

/// Returns the address to listen on: the loopback address and the port `PORT`, or 3000.
///
/// # Errors
///
/// Returns an error if `PORT` is not a port number.
pub fn address() -> Result<(&'static str, u16), Box<dyn Error>> {
    let port = env::var("PORT").map_or(Ok(3000), |port| port.parse());
    Ok(("127.0.0.1", port.map_err(|_| "PORT is not a port number")?))
}

/// Returns the interval at which an open WebSocket checks its session: `CHECK_SECONDS` seconds, or 20 by
/// default. The WebSocket closes at the first check after a sign-out.
///
/// # Errors
///
/// Returns an error if `CHECK_SECONDS` is not a positive whole number.
pub fn check_every() -> Result<Duration, Box<dyn Error>> {
    let seconds = match env::var("CHECK_SECONDS") {
        Ok(seconds) => seconds
            .parse::<NonZeroU32>()
            .map_err(|_| "CHECK_SECONDS is not a positive whole number")?
            .get(),
        Err(_) => 20,
    };
    Ok(Duration::from_secs(seconds.into()))
}

/// The body of every error.
#[derive(Debug, Serialize)]
pub struct Problem {
    /// For programs: the name of the error, which is the same in every release.
    pub error: &'static str,
    /// For users: a description of the error.
    pub message: Cow<'static, str>,
}

impl Problem {
    /// Returns the body for a request that is not valid.
    pub fn bad_request(why: impl fmt::Display) -> Self {
        Self { error: "bad_request", message: why.to_string().into() }
    }

    /// Returns the body for a session that does not exist or belongs to another user.
    #[must_use]
    pub fn not_found() -> Self {
        Self { error: "not_found", message: "you have no session with this id".into() }
    }
}

impl From<&unsticky::Error> for Problem {
    fn from(error: &unsticky::Error) -> Self {
        Self { error: error.kind().as_str(), message: error.kind().message().into() }
    }
}

/// The body of `POST /sign-in`.
#[derive(Deserialize)]
pub struct SignIn {
    name: Text,
    /// The label of the new session in the list of sessions.
    device: Option<Text>,
}

/// The body of `PUT /notes`.
#[derive(Deserialize)]
pub struct Notes {
    text: Text,
}

/// A text that is 1 to 1000 bytes long. Any other length is a bad request.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Text(String);

impl TryFrom<String> for Text {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.len() {
            1..=1000 => Ok(Self(text)),
            _ => Err("the text must have 1 to 1000 bytes"),
        }
    }
}

/// The response to `GET /me`, and each message from the WebSocket.
#[derive(Debug, Serialize)]
pub struct Me {
    principal: Arc<str>,
    notes: String,
    export: Export,
}

impl Me {
    /// Reads the user's data from the session.
    ///
    /// # Errors
    ///
    /// Returns an error if a stored value cannot be decoded.
    pub fn of(user: &SignedIn) -> Result<Self> {
        Ok(Self {
            principal: user.principal.clone(),
            notes: user.session.get(NOTES)?.unwrap_or_default(),
            export: user.session.get(EXPORT)?.unwrap_or_default(),
        })
    }
}

/// The state of an export.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Export {
    /// The user has not requested an export.
    #[default]
    None,
    /// A job is exporting the data.
    Running,
    /// The export is complete.
    Done {
        /// The exported text.
        text: String,
    },
}

/// Handles `POST /sign-in`. This example accepts any name without a password.
///
/// # Errors
///
/// Returns an error if the session cannot be signed in.
pub async fn sign_in(session: &Session, form: SignIn) -> Result<()> {
    let SignIn { name: Text(name), device } = form;
    // This call comes before the password check. If all sessions are revoked in between, for example because
    // the password was changed, the sign-in fails.
    let mut sign_in = session.sessions().of(name).begin_sign_in().await?;
    // A real application verifies the password here.
    if let Some(Text(device)) = device {
        sign_in = sign_in.label(device);
    }
    session.sign_in_with(sign_in)
}

/// Handles `DELETE /sessions/{id}`. Returns `false` if this user has no session with the id.
///
/// # Errors
///
/// Returns an error if the store is unavailable.
pub async fn end_session(user: &SignedIn, id: SessionId) -> Result<bool> {
    if user.session.id() == Some(id) {
        // `sign_out` also removes the cookie from the browser.
        user.session.sign_out();
        return Ok(true);
    }
    user.session.directory()?.revoke(id).await
}

/// Handles `PUT /notes`.
///
/// # Errors
///
/// Returns an error if the session has no room for the notes.
pub fn put_notes(user: &SignedIn, Notes { text: Text(text) }: Notes) -> Result<()> {
    user.session.insert(NOTES, &text)
}

/// Handles `POST /export`: starts a job that continues after the response. If the process ends before the job
/// does, the export remains [`Running`](Export::Running). Use a job queue for jobs that must not be lost.
///
/// # Errors
///
/// Returns an error if the session cannot be written.
pub async fn start_export(SignedIn { session, principal, .. }: SignedIn) -> Result<()> {
    session.insert(EXPORT, &Export::Running)?;
    // Stores the state before the job starts, because the job may finish before the response is sent.
    session.save().await?;
    if let Some(id) = session.id() {
        let sessions = session.sessions().clone();
        tokio::spawn(async move {
            #[allow(clippy::print_stderr, reason = "the response has been sent already")]
            if let Err(error) = export(&sessions, &principal, id).await {
                eprintln!("the export for session {id} failed: {error}");
            }
        });
    }
    Ok(())
}

/// Runs the export job. The job opens the session by principal and id, because the request's handle would
/// stop working after the next sign-in. Returns `false` if the session has ended in the meantime.
///
/// # Errors
///
/// Returns an error if the store is unavailable, or if the session ends between opening and writing it.
pub async fn export(sessions: &Sessions, principal: &str, id: SessionId) -> Result<bool> {
    let Some(mut session) = sessions.of(principal).open(id).await? else { return Ok(false) };
    // A real application does the slow work here.
    let text = format!("{principal} noted: {}", session.get(NOTES)?.unwrap_or_default());
    let done = Export::Done { text };
    session.transact(move |values| values.insert(EXPORT, &done)).await?;
    Ok(true)
}

/// The session of an open WebSocket.
pub struct Live {
    user: SignedIn,
    checks: Interval,
}

/// The close frame of a WebSocket: a code for the client's program, and a reason for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Close {
    /// A code from 4000 to 4999, the range for private use (RFC 6455 7.4.2).
    pub code: u16,
    /// A text of at most 123 bytes (RFC 6455 5.5).
    pub reason: &'static str,
}

impl From<Loss> for Close {
    fn from(loss: Loss) -> Self {
        let (code, reason) = match loss {
            Loss::Superseded => (4001, "connect again with the new cookie"),
            Loss::Expired => (4002, "the session has expired"),
            _ => (4003, "the session has ended"),
        };
        Self { code, reason }
    }
}

impl Live {
    /// Starts the checks for the user who sent the handshake. Call this function before the response is sent.
    #[must_use]
    pub fn new(user: SignedIn, check_every: Duration) -> Self {
        // A page reconnects without any action by its user, so the handshake must not extend the idle
        // timeout.
        user.session.mark_passive();
        let mut checks = interval(check_every);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { user, checks }
    }

    /// Waits until the next check is due. The first check is due at once.
    pub async fn tick(&mut self) {
        self.checks.tick().await;
    }

    /// Checks the session and returns the text to send. Call this method at every tick and for every message.
    ///
    /// Only a message from the client extends the idle timeout. If an open socket extended it, a tab that was
    /// left open would stay signed in.
    ///
    /// # Errors
    ///
    /// Returns the close frame to send if the session has ended or its secret was replaced.
    pub async fn check(&self, is_use: bool) -> Result<String, Close> {
        let checked = self.look(is_use).await;
        match (checked, self.user.session.loss()) {
            (Ok(me), _) => Ok(json(&me)),
            (Err(_), Some(loss)) => Err(loss.into()),
            // For example, the store is down. The next check may succeed.
            (Err(error), None) => Ok(json(&Problem::from(&error))),
        }
    }

    async fn look(&self, is_use: bool) -> Result<Me> {
        // Reads the values that other requests wrote, and fails if the session is no longer valid.
        self.user.session.reload().await?;
        if is_use {
            self.user.session.touch().await?;
        }
        Me::of(&self.user)
    }
}

fn json(value: &impl Serialize) -> String {
    // Serialisation fails only for maps whose keys are not text, and no value here contains a map.
    serde_json::to_string(value).unwrap_or_default()
}
