//! Requests without a framework.

use unsticky::exchange::{Exchange, Finish};
use unsticky::{ErrorKind, Result, Session, Sessions};

/// What a request led to.
#[derive(Debug)]
pub struct Visit<T> {
    /// What the handler returned.
    pub output: Result<T>,
    /// The Set-Cookie header.
    pub set_cookie: Option<String>,
    /// What the response was replaced by.
    pub error: Option<ErrorKind>,
}

impl<T> Visit<T> {
    /// The cookie as the browser sends it back; empty where none was set.
    pub fn cookie(&self) -> String {
        let cookie = self.set_cookie.as_deref().unwrap_or_default();
        cookie.split(';').next().unwrap_or_default().to_owned()
    }

    pub fn removes_cookie(&self) -> bool {
        self.set_cookie.as_deref().is_some_and(|cookie| cookie.contains("Max-Age=0"))
    }

    /// What the handler returned, of a request that was answered with success.
    pub fn ok(self) -> T {
        assert_eq!(self.error, None);
        self.output.unwrap()
    }

    /// The kind of the error that the visitor got, from the handler or after it.
    pub fn failure(&self) -> Option<ErrorKind> {
        self.output.as_ref().err().map(unsticky::Error::kind).or(self.error)
    }
}

/// One request with this Cookie header field; a handler's error is a response of its status.
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
    let exchange = Exchange::begin(sessions, [cookie], None);
    let output = match exchange.handle().session().await {
        Ok(session) => handler(session).await,
        Err(error) => Err(error),
    };
    let status = output.as_ref().map_or_else(unsticky::Error::status, |_| 200);
    let reply = match exchange.finish(status) {
        Finish::Ready(reply) => reply,
        Finish::Pending(reply) => reply.await,
    };
    Visit { output, set_cookie: reply.set_cookie, error: reply.error.map(|error| error.kind()) }
}
