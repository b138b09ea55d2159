//! The requests that are measured: those of an application, without its framework.

use std::sync::Arc;

use bytes::Bytes;
use unsticky::exchange::{Exchange, Finish};
use unsticky::{Error, Key, Session, Sessions};

use crate::bench::arguments::Operation;

const VALUE: Key<String> = Key::new("value");
const COUNT: Key<u64> = Key::new("count");

/// What a visitor's request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    /// A session begins, with nobody signed in. It is what `read` and `write` need; it is not measured.
    Arrive,
    Measured(Operation),
}

impl Deed {
    /// Whether the visitor can do it again.
    pub(crate) fn keeps_session(self) -> bool {
        matches!(self, Self::Measured(Operation::Read | Operation::Write))
    }
}

/// A browser.
#[derive(Debug, Clone)]
pub(crate) struct Visitor {
    principal: Arc<str>,
    cookie: Bytes,
}

impl Visitor {
    /// Somebody without a session. The same number is the same account.
    pub(crate) fn new(number: u32) -> Self {
        Self { principal: format!("bench-{number}").into(), cookie: Bytes::new() }
    }
}

/// Why a request has failed.
#[derive(Debug)]
pub(crate) struct Trouble {
    /// For programs.
    pub(crate) kind: &'static str,
    /// For people.
    pub(crate) sentence: String,
}

impl Trouble {
    /// The store has lost a session, or has removed it to make room.
    fn lost() -> Self {
        Self { kind: "lost", sentence: "the session was no longer in the store".to_owned() }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self { kind: error.kind().as_str(), sentence: error.to_string() }
    }
}

/// The application that is visited.
#[derive(Debug)]
pub(crate) struct Application {
    sessions: Sessions,
    value: String,
}

impl Application {
    pub(crate) fn new(sessions: Sessions, payload: u32) -> Self {
        Self { sessions, value: "x".repeat(usize::try_from(payload).unwrap_or(0)) }
    }

    /// One request; the visitor then has the cookie that it set.
    pub(crate) async fn visit(&self, visitor: &mut Visitor, deed: Deed) -> Result<(), Trouble> {
        let exchange = Exchange::begin(&self.sessions, [visitor.cookie.clone()], None);
        // Where this returns early, the exchange is dropped, which keeps nothing.
        let session = exchange.handle().session().await?;
        self.act(&session, &visitor.principal, deed)?;
        let reply = match exchange.finish(200) {
            Finish::Ready(reply) => reply,
            Finish::Pending(reply) => reply.await,
        };
        if let Some(error) = reply.error {
            return Err(error.into());
        }
        if let Some(mut cookie) = reply.set_cookie {
            // What a browser sends back.
            cookie.truncate(cookie.find(';').unwrap_or(cookie.len()));
            visitor.cookie = cookie.into();
        }
        Ok(())
    }

    fn act(&self, session: &Session, principal: &str, deed: Deed) -> Result<(), Trouble> {
        match deed {
            Deed::Arrive => {
                session.insert(COUNT, &0)?;
                session.insert(VALUE, &self.value)?;
            }
            Deed::Measured(Operation::Read) => {
                session.get(VALUE)?.ok_or_else(Trouble::lost)?;
            }
            Deed::Measured(Operation::Write) => {
                // It would begin a session.
                if !session.contains(COUNT) {
                    return Err(Trouble::lost());
                }
                session.update(COUNT, |count| *count += 1)?;
            }
            Deed::Measured(Operation::SignIn) => {
                session.insert(VALUE, &self.value)?;
                session.sign_in(principal)?;
            }
            Deed::Measured(Operation::SignOut) => {
                if !session.is_signed_in() {
                    return Err(Trouble::lost());
                }
                session.sign_out();
            }
        }
        Ok(())
    }
}
