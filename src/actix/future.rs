//! The response future: commits the session, and adds the session's header fields.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::ServiceResponse;
use actix_web::http::header::{CACHE_CONTROL, HeaderMap, HeaderValue, SET_COOKIE, VARY};
use actix_web::{HttpMessage as _, HttpResponse};
use pin_project_lite::pin_project;

use super::extract::rendered;
use crate::error::Error;
use crate::exchange::{
    Commit, ErrorRenderer, Exchange, Finish, REPLACED_FIELDS, Rendered, Reply, SessionHandle,
};

type Answer<B> = Result<ServiceResponse<B>, actix_web::Error>;

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
        // The handle of the middleware outside this one.
        outer: Option<SessionHandle>,
        renderer: Option<ErrorRenderer>,
        answered: Option<(Answer<B>, Commit)>,
    }
}

impl<F, B> ResponseFuture<F, B> {
    pub(super) fn new(
        inner: F,
        exchange: Exchange,
        outer: Option<SessionHandle>,
        renderer: Option<ErrorRenderer>,
    ) -> Self {
        Self { inner, exchange: Some(exchange), outer, renderer, answered: None }
    }
}

impl<F, B> Future for ResponseFuture<F, B>
where
    F: Future<Output = Answer<B>>,
    B: MessageBody + 'static,
{
    type Output = Answer<EitherBody<B>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let (answer, mut commit) = match this.answered.take() {
            Some(answered) => answered,
            None => {
                let answer = ready!(this.inner.poll(cx));
                let status = match &answer {
                    Ok(response) => response.status(),
                    // A middleware inside this one failed. The error's status counts like a handler's status.
                    Err(error) => error.as_response_error().status_code(),
                };
                let finish = this.exchange.take().map(|exchange| exchange.finish(status.as_u16()));
                match finish {
                    Some(Finish::Pending(commit)) => (answer, commit),
                    Some(Finish::Ready(reply)) => {
                        let renderer = this.renderer.as_ref();
                        return Poll::Ready(answered(answer, reply, this.outer.take(), renderer));
                    }
                    None => return Poll::Ready(answer.map(ServiceResponse::map_into_left_body)),
                }
            }
        };
        match Pin::new(&mut commit).poll(cx) {
            Poll::Ready(reply) => {
                let renderer = this.renderer.as_ref();
                Poll::Ready(answered(answer, reply, this.outer.take(), renderer))
            }
            Poll::Pending => {
                *this.answered = Some((answer, commit));
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

/// Returns the response for the middleware outside this one.
fn answered<B: MessageBody + 'static>(
    answer: Answer<B>,
    mut reply: Reply,
    outer: Option<SessionHandle>,
    renderer: Option<&ErrorRenderer>,
) -> Answer<EitherBody<B>> {
    match answer {
        Ok(response) => {
            // The middleware outside this one shares the request's extensions.
            if let Some(outer) = outer {
                response.request().extensions_mut().insert(outer);
            }
            if reply.is_empty() && renderer.is_none() {
                return Ok(response.map_into_left_body());
            }
            let (request, response) = response.into_parts();
            let error = reply.error.take().or_else(|| renderer.and_then(|_| unrendered(&response)));
            let response = replied(response, reply, error, renderer);
            Ok(ServiceResponse::new(request, response))
        }
        Err(error) => Err(failed(error, reply, renderer)),
    }
}

/// Adds the header fields of the exchange to an error's response, or replaces the error. An error that is not
/// replaced keeps its type, because the middleware outside this one may examine it.
fn failed(
    error: actix_web::Error,
    mut reply: Reply,
    renderer: Option<&ErrorRenderer>,
) -> actix_web::Error {
    let (mut error, earlier) = match reply.error.take() {
        Some(ours) => (ours.into(), error.error_response().headers().clone()),
        None => (error, HeaderMap::new()),
    };
    if reply.is_empty() && renderer.is_none() && earlier.is_empty() {
        return error;
    }
    let (renderer, cookie) = (renderer.cloned(), cookie_of(&mut reply));
    error.add_response_mapper(move |mut response| {
        // Rendered here rather than earlier, because some errors can return their response only once.
        if let Some((renderer, ours)) = renderer.as_ref().zip(unrendered(&response)) {
            response = rendered(response, renderer.render(&ours));
            response.extensions_mut().insert(Rendered);
        }
        keep_headers(response.headers_mut(), &earlier);
        add_headers(response.headers_mut(), &reply, cookie.clone());
        response
    });
    error
}

/// Returns the error that a response contains, unless the application has already rendered it.
fn unrendered<B>(response: &HttpResponse<B>) -> Option<Error> {
    let extensions = response.extensions();
    let is_rendered = extensions.get::<Rendered>().is_some();
    extensions.get::<Error>().filter(|_| !is_rendered).cloned()
}

/// Adds the header fields of the exchange to the response, or replaces the response with an error.
fn replied<B: MessageBody>(
    response: HttpResponse<B>,
    mut reply: Reply,
    error: Option<Error>,
    renderer: Option<&ErrorRenderer>,
) -> HttpResponse<EitherBody<B>> {
    let mut response = match error {
        Some(error) => replaced(&response, error, renderer).map_into_right_body(),
        None => response.map_into_left_body(),
    };
    let cookie = cookie_of(&mut reply);
    add_headers(response.headers_mut(), &reply, cookie);
    response
}

/// Replaces this response with an error's response.
fn replaced<B>(
    response: &HttpResponse<B>,
    error: Error,
    renderer: Option<&ErrorRenderer>,
) -> HttpResponse {
    let answer = renderer.map(|renderer| renderer.render(&error));
    let mut replaced = HttpResponse::from_error(error);
    if let Some(answer) = answer {
        replaced = rendered(replaced, answer);
        replaced.extensions_mut().insert(Rendered);
    }
    keep_headers(replaced.headers_mut(), response.headers());
    replaced
}

/// Keeps the header fields of the earlier response, except those that describe its body.
fn keep_headers(headers: &mut HeaderMap, earlier: &HeaderMap) {
    for (name, value) in earlier {
        let is_there = headers.get_all(name).any(|there| there == value);
        if !REPLACED_FIELDS.contains(&name.as_str()) && !is_there {
            headers.append(name.clone(), value.clone());
        }
    }
}

fn cookie_of(reply: &mut Reply) -> Option<HeaderValue> {
    reply.set_cookie.take().and_then(|cookie| HeaderValue::try_from(cookie).ok())
}

fn add_headers(headers: &mut HeaderMap, reply: &Reply, cookie: Option<HeaderValue>) {
    if reply.adds_vary(headers.get_all(VARY).map(HeaderValue::as_bytes)) {
        headers.append(VARY, HeaderValue::from_static("cookie"));
    }
    if let Some(cookie) = cookie {
        // Appended, so that the handler's own cookies are kept.
        headers.append(SET_COOKIE, cookie);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
}
