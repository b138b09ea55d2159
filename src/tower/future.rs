use std::borrow::Cow;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION, RETRY_AFTER, SET_COOKIE, VARY};
use http::{HeaderValue, Response, StatusCode};
use pin_project_lite::pin_project;

use crate::exchange::{Commit, ErrorResponse, Exchange, Finish, REPLACED_FIELDS, Reply};

pin_project! {
    /// The response future of [`SessionService`](super::SessionService).
    ///
    /// Dropped before the handler has answered, it keeps nothing but an end of the session; dropped
    /// later, the commit goes on all the same.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, B> {
        #[pin]
        inner: F,
        exchange: Option<Exchange>,
        answered: Option<(Response<B>, Commit)>,
    }
}

impl<F, B> ResponseFuture<F, B> {
    pub(super) fn new(inner: F, exchange: Exchange) -> Self {
        Self { inner, exchange: Some(exchange), answered: None }
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
                        // There is no response to wait for; an end is carried out all the same.
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
                        return Poll::Ready(Ok(replied(response, reply)));
                    }
                    None => return Poll::Ready(Ok(response)),
                }
            }
        };
        match Pin::new(&mut commit).poll(cx) {
            Poll::Ready(reply) => Poll::Ready(Ok(replied(response, reply))),
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

/// The response with what the exchange adds to it, or the error that takes its place.
fn replied<B: From<Bytes>>(response: Response<B>, mut reply: Reply) -> Response<B> {
    if reply.is_empty() {
        return response;
    }
    let mut response = match reply.error.take() {
        Some(error) => {
            let mut replaced = rendered((&error).into()).map(B::from);
            replaced.extensions_mut().insert(error);
            let mut kept = response.into_parts().0.headers;
            for name in REPLACED_FIELDS {
                kept.remove(name);
            }
            kept.extend(std::mem::take(replaced.headers_mut()));
            *replaced.headers_mut() = kept;
            replaced
        }
        None => response,
    };
    let headers = response.headers_mut();
    if reply.adds_vary(headers.get_all(VARY).into_iter().map(HeaderValue::as_bytes)) {
        headers.append(VARY, HeaderValue::from_static("cookie"));
    }
    if let Some(cookie) = reply.set_cookie.and_then(|cookie| HeaderValue::try_from(cookie).ok()) {
        // Added: the handler's own cookies stay.
        headers.append(SET_COOKIE, cookie);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

/// The response that an error becomes.
pub(super) fn rendered(rendered: ErrorResponse) -> Response<Bytes> {
    let mut response = Response::new(match rendered.body {
        Cow::Borrowed(body) => Bytes::from_static(body.as_bytes()),
        Cow::Owned(body) => body.into(),
    });
    *response.status_mut() =
        StatusCode::from_u16(rendered.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(seconds) = rendered.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from_static(seconds));
    }
    let location = rendered.location.as_deref().and_then(|page| HeaderValue::from_str(page).ok());
    if let Some(location) = location {
        headers.insert(LOCATION, location);
    }
    response
}
