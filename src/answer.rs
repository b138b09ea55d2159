//! The response that is sent for an error.

use std::borrow::Cow;

use crate::error::Error;
use crate::head::request::Wants;

/// The response that every adapter sends for an error.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ErrorResponse {
    /// The status code.
    pub status: u16,
    /// The body. By default, the kind's [`message`](crate::ErrorKind::message), which contains no details of
    /// the deployment.
    pub body: Cow<'static, str>,
    /// The `Content-Type` header. By default, plain text.
    pub content_type: Cow<'static, str>,
    /// The `Location` header, if the response redirects.
    pub location: Option<Cow<'static, str>>,
    /// The `Retry-After` header, in seconds.
    pub retry_after: Option<&'static str>,
    /// The `Vary` headers: the request headers that this response depends on. Each string may list several
    /// headers.
    pub vary: Vec<&'static str>,
}

impl ErrorResponse {
    /// Replaces the body with an HTML page. The status and the other headers stay the same.
    #[must_use]
    pub fn html(self, page: impl Into<String>) -> Self {
        self.with_body("text/html; charset=utf-8", page.into())
    }

    /// Replaces the body with JSON text. The status and the other headers stay the same.
    #[must_use]
    pub fn json(self, text: impl Into<String>) -> Self {
        self.with_body("application/json", text.into())
    }

    /// Returns the response's headers, with names in lower case. For adapters.
    ///
    /// The headers include `Cache-Control: no-store`, so the response is not cached.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let fields = [
            ("cache-control", "no-store"),
            ("content-type", &*self.content_type),
            ("retry-after", self.retry_after.unwrap_or_default()),
            ("location", self.location.as_deref().unwrap_or_default()),
        ];
        let vary = self.vary.iter().map(|names| ("vary", *names));
        fields.into_iter().filter(|(_, value)| !value.is_empty()).chain(vary)
    }

    fn with_body(self, content_type: &'static str, body: String) -> Self {
        Self { content_type: content_type.into(), body: body.into(), ..self }
    }

    /// Records that the body depends on whether the request wants a page or data.
    pub(crate) fn varies_by_wants(&mut self) {
        if !self.vary.contains(&Wants::VARY) {
            self.vary.push(Wants::VARY);
        }
    }
}

impl From<&Error> for ErrorResponse {
    fn from(error: &Error) -> Self {
        let status = error.status();
        Self {
            status,
            body: error.kind().message().into(),
            content_type: "text/plain; charset=utf-8".into(),
            location: error.location().map(|page| page.to_owned().into()),
            retry_after: (status == 503).then_some("1"),
            vary: error.vary().into_iter().collect(),
        }
    }
}

/// The application's function that renders errors.
pub(crate) type OnError = dyn Fn(ErrorResponse, &Error, Wants) -> ErrorResponse + Send + Sync;
