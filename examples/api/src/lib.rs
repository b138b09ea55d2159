//! A JSON API with a WebSocket: everything that does not depend on the framework.
//!
//! A page of the same site uses it like this. The WebSocket notices a sign-out, also one in another tab or on
//! another device:
//!
//! ```js
//! function live() {
//!     const socket = new WebSocket("/live");
//!     socket.onmessage = ({ data }) => show(JSON.parse(data));
//!     socket.onclose = ({ code }) => {
//!         if (code === 4001) live();                       // the browser has a new cookie
//!         else if (code === 4002) askToSignIn("You were away for too long.");
//!         else if (code === 4003) askToSignIn("You were signed out.");
//!         // The network, a restart, or nobody is signed in any more: `GET /me` tells.
//!         else setTimeout(live, 1000 + 4000 * Math.random());
//!     };
//!     // An open socket alone keeps nobody signed in; a user who does something does.
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

/// What the user has noted down.
pub const NOTES: Key<String> = Key::new("notes");

/// The export that the user has asked for last.
pub const EXPORT: Key<Export> = Key::new("export");

/// How the sessions of the API behave, wherever they are stored.
pub fn builder(store: impl Store) -> Builder {
    Sessions::builder(store)
        // For http://localhost only; the default is a cookie that needs https. The name keeps it apart from
        // those of other applications on this machine.
        .cookie(Cookie::new("api").insecure())
        .on_error(|response, error, _| response.json(json(&Problem::from(error))))
}

/// The sessions of this process: `SESSION_URL` says where they are stored.
///
/// # Errors
///
/// The address is none.
pub fn sessions() -> Result<Sessions, Box<dyn Error>> {
    let url = env::var("SESSION_URL").unwrap_or_else(|_| "memory:".to_owned());
    Ok(builder(unsticky::connect(&url)?).build()?)
}

/// Where to listen: `PORT`, on this machine only.
///
/// # Errors
///
/// It is not the number of a port.
pub fn address() -> Result<(&'static str, u16), Box<dyn Error>> {
    let port = env::var("PORT").map_or(Ok(3000), |port| port.parse());
    Ok(("127.0.0.1", port.map_err(|_| "PORT is not the number of a port")?))
}

/// How often an open WebSocket looks after its session: `CHECK_SECONDS`. A sign-out is noticed that much
/// later.
///
/// # Errors
///
/// It is not a number of seconds, or zero.
pub fn check_every() -> Result<Duration, Box<dyn Error>> {
    let seconds = match env::var("CHECK_SECONDS") {
        Ok(seconds) => {
            seconds.parse::<NonZeroU32>().map_err(|_| "CHECK_SECONDS is no number")?.get()
        }
        Err(_) => 20,
    };
    Ok(Duration::from_secs(seconds.into()))
}

/// The body of every error.
#[derive(Debug, Serialize)]
pub struct Problem {
    /// For scripts: it stays the same from release to release.
    pub error: &'static str,
    /// For people.
    pub message: Cow<'static, str>,
}

impl Problem {
    /// The request cannot be understood.
    pub fn bad_request(why: impl fmt::Display) -> Self {
        Self { error: "bad_request", message: why.to_string().into() }
    }

    /// There is no such session.
    #[must_use]
    pub fn not_found() -> Self {
        Self { error: "not_found", message: "no session of yours has this id".into() }
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
    /// For the list of sessions.
    device: Option<Text>,
}

/// The body of `PUT /notes`.
#[derive(Deserialize)]
pub struct Notes {
    text: Text,
}

/// What somebody wrote: something, and not too much of it. Anything else is a bad request.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Text(String);

impl TryFrom<String> for Text {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.len() {
            1..=1000 => Ok(Self(text)),
            _ => Err("one to 1000 bytes"),
        }
    }
}

/// The answer to `GET /me`, and what the WebSocket tells.
#[derive(Debug, Serialize)]
pub struct Me {
    principal: Arc<str>,
    notes: String,
    export: Export,
}

impl Me {
    /// What the session knows of its user.
    ///
    /// # Errors
    ///
    /// A value is none of this release.
    pub fn of(user: &SignedIn) -> Result<Self> {
        Ok(Self {
            principal: user.principal.clone(),
            notes: user.session.get(NOTES)?.unwrap_or_default(),
            export: user.session.get(EXPORT)?.unwrap_or_default(),
        })
    }
}

/// How far an export is.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Export {
    /// Nobody has asked for one.
    #[default]
    None,
    /// A job is at work.
    Running,
    /// It is there.
    Done {
        /// What was exported.
        text: String,
    },
}

/// `POST /sign-in`. It believes everybody.
///
/// # Errors
///
/// The session cannot be signed in.
pub async fn sign_in(session: &Session, form: SignIn) -> Result<()> {
    let SignIn { name: Text(name), device } = form;
    // Begun before the password is looked at: if it is changed meanwhile, this sign-in fails.
    let mut sign_in = session.sessions().of(name).begin_sign_in().await?;
    // Here an application verifies the password.
    if let Some(Text(device)) = device {
        sign_in = sign_in.label(device);
    }
    session.sign_in_with(sign_in)
}

/// `DELETE /sessions/{id}`: `false` if no session of this user has the id.
///
/// # Errors
///
/// The session cannot be ended now.
pub async fn end_session(user: &SignedIn, id: SessionId) -> Result<bool> {
    if user.session.id() == Some(id) {
        // This also makes the browser forget the cookie.
        user.session.sign_out();
        return Ok(true);
    }
    user.session.directory()?.revoke(id).await
}

/// `PUT /notes`.
///
/// # Errors
///
/// The session is full.
pub fn put_notes(user: &SignedIn, Notes { text: Text(text) }: Notes) -> Result<()> {
    user.session.insert(NOTES, &text)
}

/// `POST /export`: begins a job that goes on after the response. If the process ends before the job does, the
/// export stays [`Running`](Export::Running); a job that must be done belongs in a queue.
///
/// # Errors
///
/// The session cannot be written now.
pub async fn start_export(SignedIn { session, principal, .. }: SignedIn) -> Result<()> {
    session.insert(EXPORT, &Export::Running)?;
    // Stored before the job begins, which may be faster than the response.
    session.save().await?;
    if let Some(id) = session.id() {
        let sessions = session.sessions().clone();
        tokio::spawn(async move {
            #[allow(clippy::print_stderr, reason = "there is nobody left to answer")]
            if let Err(error) = export(&sessions, &principal, id).await {
                eprintln!("the export for session {id}: {error}");
            }
        });
    }
    Ok(())
}

/// The job. It has no request, and a request's handle would fail after the next sign-in; so it opens the
/// session by the user's name. `false` if the session has ended meanwhile.
///
/// # Errors
///
/// The store is down, or the session ended at this very moment.
pub async fn export(sessions: &Sessions, principal: &str, id: SessionId) -> Result<bool> {
    let Some(mut session) = sessions.of(principal).open(id).await? else { return Ok(false) };
    // Here an application does what takes its time.
    let text = format!("{principal} noted: {}", session.get(NOTES)?.unwrap_or_default());
    let done = Export::Done { text };
    session.transact(move |values| values.insert(EXPORT, &done)).await?;
    Ok(true)
}

/// An open WebSocket's side of the session.
pub struct Live {
    user: SignedIn,
    checks: Interval,
}

/// Why the WebSocket must be closed: a code that the client understands, and a word for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Close {
    /// From 4000 to 4999, which are the application's own (RFC 6455 7.4.2).
    pub code: u16,
    /// At most 123 bytes.
    pub reason: &'static str,
}

impl From<Loss> for Close {
    fn from(loss: Loss) -> Self {
        let (code, reason) = match loss {
            Loss::Superseded => (4001, "connect again with the new cookie"),
            Loss::Expired => (4002, "the session has expired"),
            _ => (4003, "the session was ended"),
        };
        Self { code, reason }
    }
}

impl Live {
    /// For the user of the handshake; call it before the response.
    #[must_use]
    pub fn new(user: SignedIn, check_every: Duration) -> Self {
        // A page that nobody looks at connects again by itself.
        user.session.mark_passive();
        let mut checks = interval(check_every);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { user, checks }
    }

    /// Waits until it is time to look after the session; the first time is at once.
    pub async fn tick(&mut self) {
        self.checks.tick().await;
    }

    /// Looks after the session, at a tick and for each message: the text to send, or why to close.
    ///
    /// Only a message of the client counts as use. If an open socket did, a tab that somebody has left open
    /// would never be signed out.
    ///
    /// # Errors
    ///
    /// The session is lost.
    pub async fn check(&self, is_use: bool) -> Result<String, Close> {
        let checked = self.look(is_use).await;
        match (checked, self.user.session.loss()) {
            (Ok(me), _) => Ok(json(&me)),
            (Err(_), Some(loss)) => Err(loss.into()),
            // Such as a store that is down: the next check may find it again.
            (Err(error), None) => Ok(json(&Problem::from(&error))),
        }
    }

    async fn look(&self, is_use: bool) -> Result<Me> {
        // Values that other requests have written, and whether this session is still valid.
        self.user.session.reload().await?;
        if is_use {
            self.user.session.touch().await?;
        }
        Me::of(&self.user)
    }
}

fn json(value: &impl Serialize) -> String {
    // It fails for maps whose keys are no text, and there are none.
    serde_json::to_string(value).unwrap_or_default()
}
