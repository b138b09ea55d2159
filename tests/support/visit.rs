//! Requests without a framework.

use unsticky::exchange::{Exchange, Finish, Reply};
use unsticky::{ErrorKind, Result, Session, Sessions};

/// The result of a request.
#[derive(Debug)]
pub struct Visit<T> {
    /// The handler's return value.
    pub output: Result<T>,
    /// The `Set-Cookie` header.
    pub set_cookie: Option<String>,
    /// The error that replaced the response, if any.
    pub error: Option<ErrorKind>,
}

impl<T> Visit<T> {
    /// Returns the cookie in the form in which the browser sends it back, or an empty string if none was set.
    pub fn cookie(&self) -> String {
        self.set_cookie.as_deref().map(sent_back).unwrap_or_default()
    }

    pub fn removes_cookie(&self) -> bool {
        self.set_cookie.as_deref().is_some_and(|cookie| cookie.contains("Max-Age=0"))
    }

    /// Returns the handler's return value. Panics if the request failed.
    pub fn ok(self) -> T {
        assert_eq!(self.error, None);
        self.output.unwrap()
    }

    /// Returns the kind of error in the response, whether the handler or the commit failed.
    pub fn failure(&self) -> Option<ErrorKind> {
        self.output.as_ref().err().map(unsticky::Error::kind).or(self.error)
    }
}

/// Makes one request with this `Cookie` header. If the handler fails, the response has the error's status.
pub async fn visit<T>(
    sessions: &Sessions,
    cookie: &str,
    handler: impl AsyncFnOnce(Session) -> Result<T>,
) -> Visit<T> {
    visit_with(sessions, cookie.as_bytes(), handler).await
}

pub async fn visit_with<T>(
    sessions: &Sessions,
    cookie: &[u8],
    handler: impl AsyncFnOnce(Session) -> Result<T>,
) -> Visit<T> {
    let exchange = Exchange::begin(sessions, [cookie.to_vec()], None);
    let output = match exchange.handle().session().await {
        Ok(session) => handler(session).await,
        Err(error) => Err(error),
    };
    let status = output.as_ref().map_or_else(unsticky::Error::status, |_| 200);
    let reply = finish(exchange, status).await;
    Visit { output, set_cookie: reply.set_cookie, error: reply.error.map(|error| error.kind()) }
}

/// Finishes a request with a response of this status.
pub async fn finish(exchange: Exchange, status: u16) -> Reply {
    match exchange.finish(status) {
        Finish::Ready(reply) => reply,
        Finish::Pending(reply) => reply.await,
    }
}

/// Returns the cookie in a reply, in the form in which the browser sends it back.
pub fn cookie_of(reply: &Reply) -> Option<String> {
    reply.set_cookie.as_deref().map(sent_back)
}

/// Returns the cookie in a `Set-Cookie` header, in the form in which the browser sends it back.
pub fn sent_back(set_cookie: &str) -> String {
    set_cookie.split(';').next().unwrap().to_owned()
}

/// A handler that signs Alice in.
pub async fn sign_in(session: Session) -> Result<()> {
    session.sign_in("alice")
}

pub async fn sign_out(session: Session) -> Result<()> {
    session.sign_out();
    Ok(())
}

pub async fn rotate(session: Session) -> Result<()> {
    session.rotate();
    Ok(())
}
