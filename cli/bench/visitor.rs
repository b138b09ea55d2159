//! The requests that are measured. They do what an application does, but without a web framework.

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
    /// Creates a session without a signed-in user, for `read` and `write`. This action is not measured.
    Arrive,
    Measured(Operation),
}

impl Deed {
    /// Returns whether the visitor can repeat the action with the same session.
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
    /// Returns a visitor without a session. Visitors with the same number have the same account.
    pub(crate) fn new(number: u32) -> Self {
        Self { principal: format!("bench-{number}").into(), cookie: Bytes::new() }
    }
}

/// The reason why a request failed.
#[derive(Debug)]
pub(crate) struct Trouble {
    /// The error kind, for programs.
    pub(crate) kind: &'static str,
    /// The message, for people.
    pub(crate) message: String,
}

impl Trouble {
    /// Returns the error for a session that the store has lost or has removed to make room.
    fn lost() -> Self {
        Self { kind: "lost", message: "the session was no longer in the store".to_owned() }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self { kind: error.kind().as_str(), message: error.to_string() }
    }
}

/// The application that receives the requests.
#[derive(Debug)]
pub(crate) struct Application {
    sessions: Sessions,
    value: String,
}

impl Application {
    pub(crate) fn new(sessions: Sessions, payload: u32) -> Self {
        Self { sessions, value: "x".repeat(usize::try_from(payload).unwrap_or(0)) }
    }

    /// Runs one request. If the response sets a cookie, the visitor has this cookie afterwards.
    pub(crate) async fn visit(&self, visitor: &mut Visitor, deed: Deed) -> Result<(), Trouble> {
        let exchange = Exchange::begin(&self.sessions, [visitor.cookie.clone()], None);
        // An early return drops the exchange, which discards all changes.
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
            // Keeps only the part that a browser sends back.
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
                // The write would create a new session.
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
