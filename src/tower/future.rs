//! The response future: commits the session, and adds the session's header fields.

use std::borrow::Cow;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, SET_COOKIE, VARY};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use pin_project_lite::pin_project;

use crate::error::Error;
use crate::exchange::{
    Commit, ErrorRenderer, ErrorResponse, Exchange, Finish, REPLACED_FIELDS, Rendered, Reply,
};

pin_project! {
    /// The response future of [`SessionService`](super::SessionService).
    ///
    /// If the future is dropped before the handler has responded, changes that have not been saved yet are
    /// discarded, but a session that the handler has ended still ends. If the future is dropped later, the
    /// commit still runs to completion.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, B> {
        #[pin]
        inner: F,
        exchange: Option<Exchange>,
        renderer: Option<ErrorRenderer>,
        answered: Option<(Response<B>, Commit)>,
    }
}

impl<F, B> ResponseFuture<F, B> {
    pub(super) fn new(inner: F, exchange: Exchange, renderer: Option<ErrorRenderer>) -> Self {
        Self { inner, exchange: Some(exchange), renderer, answered: None }
    }
}

impl<F, B, E> Future for ResponseFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: From<Bytes>,
{
    type Output = Result<Response<B>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let (response, mut commit) = match this.answered.take() {
            Some(answered) => answered,
            None => {
                let response = match ready!(this.inner.poll(cx)) {
                    Ok(response) => response,
                    Err(error) => {
                        // No response will follow, but a session that the handler has ended must still end.
                        drop(this.exchange.take().map(|exchange| exchange.finish(500)));
                        return Poll::Ready(Err(error));
                    }
                };
                let finish = this
                    .exchange
                    .take()
                    .map(|exchange| exchange.finish(response.status().as_u16()));
                match finish {
                    Some(Finish::Pending(commit)) => (response, commit),
                    Some(Finish::Ready(reply)) => {
                        return Poll::Ready(Ok(replied(response, reply, this.renderer.as_ref())));
                    }
                    None => return Poll::Ready(Ok(response)),
                }
            }
        };
        match Pin::new(&mut commit).poll(cx) {
            Poll::Ready(reply) => Poll::Ready(Ok(replied(response, reply, this.renderer.as_ref()))),
            Poll::Pending => {
                *this.answered = Some((response, commit));
                Poll::Pending
            }
        }
    }
}

impl<F, B> std::fmt::Debug for ResponseFuture<F, B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

/// Adds the header fields of the exchange to the response, or replaces the response with an error.
fn replied<B: From<Bytes>>(
    response: Response<B>,
    mut reply: Reply,
    renderer: Option<&ErrorRenderer>,
) -> Response<B> {
    if reply.is_empty() && renderer.is_none() {
        return response;
    }
    let error = reply.error.take().or_else(|| renderer.and_then(|_| unrendered(&response)));
    let mut response = match error {
        Some(error) => replaced(&response, error, renderer),
        None => response,
    };
    let headers = response.headers_mut();
    if reply.adds_vary(headers.get_all(VARY).into_iter().map(HeaderValue::as_bytes)) {
        headers.append(VARY, HeaderValue::from_static("cookie"));
    }
    if let Some(cookie) = reply.set_cookie.and_then(|cookie| HeaderValue::try_from(cookie).ok()) {
        // Appended, so that the handler's own cookies are kept.
        headers.append(SET_COOKIE, cookie);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

/// Returns the error that a response contains, unless the application has already rendered it.
fn unrendered<B>(response: &Response<B>) -> Option<Error> {
    let extensions = response.extensions();
    let is_rendered = extensions.get::<Rendered>().is_some();
    extensions.get::<Error>().filter(|_| !is_rendered).cloned()
}

/// Replaces this response with an error's response.
fn replaced<B: From<Bytes>>(
    response: &Response<B>,
    error: Error,
    renderer: Option<&ErrorRenderer>,
) -> Response<B> {
    let answer = renderer.map_or_else(|| (&error).into(), |renderer| renderer.render(&error));
    let mut replaced = rendered(answer).map(B::from);
    for (name, value) in response.headers() {
        let is_there = || replaced.headers().get_all(name).iter().any(|there| there == value);
        if !REPLACED_FIELDS.contains(&name.as_str()) && !is_there() {
            replaced.headers_mut().append(name.clone(), value.clone());
        }
    }
    if renderer.is_some() {
        replaced.extensions_mut().insert(Rendered);
    }
    replaced.extensions_mut().insert(error);
    replaced
}

/// Converts a rendered error to a response.
pub(super) fn rendered(rendered: ErrorResponse) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() =
        StatusCode::from_u16(rendered.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in rendered.headers() {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().append(HeaderName::from_static(name), value);
        }
    }
    *response.body_mut() = match rendered.body {
        Cow::Borrowed(body) => Bytes::from_static(body.as_bytes()),
        Cow::Owned(body) => body.into(),
    };
    response
}
