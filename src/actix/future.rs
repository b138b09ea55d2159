use std::pin::Pin;
use std::task::{Context, Poll, ready};

use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::ServiceResponse;
use actix_web::error::InternalError;
use actix_web::http::header::{
    CACHE_CONTROL, HeaderMap, HeaderName, HeaderValue, SET_COOKIE, VARY,
};
use actix_web::{HttpMessage as _, HttpResponse};
use pin_project_lite::pin_project;

use crate::exchange::{Commit, Exchange, Finish, REPLACED_FIELDS, Reply, SessionHandle};

type Answer<B> = Result<ServiceResponse<B>, actix_web::Error>;

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
        // That of a middleware further out.
        outer: Option<SessionHandle>,
        answered: Option<(Answer<B>, Commit)>,
    }
}

impl<F, B> ResponseFuture<F, B> {
    pub(super) fn new(inner: F, exchange: Exchange, outer: Option<SessionHandle>) -> Self {
        Self { inner, exchange: Some(exchange), outer, answered: None }
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
                    // A middleware further in failed; as a response it is what a handler's failure is.
                    Err(error) => error.as_response_error().status_code(),
                };
                let finish = this.exchange.take().map(|exchange| exchange.finish(status.as_u16()));
                match finish {
                    Some(Finish::Pending(commit)) => (answer, commit),
                    Some(Finish::Ready(reply)) => {
                        return Poll::Ready(answered(answer, reply, this.outer.take()));
                    }
                    None => return Poll::Ready(answer.map(ServiceResponse::map_into_left_body)),
                }
            }
        };
        match Pin::new(&mut commit).poll(cx) {
            Poll::Ready(reply) => Poll::Ready(answered(answer, reply, this.outer.take())),
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

/// What goes on to the middleware further out.
fn answered<B: MessageBody + 'static>(
    answer: Answer<B>,
    reply: Reply,
    outer: Option<SessionHandle>,
) -> Answer<EitherBody<B>> {
    match answer {
        Ok(response) => {
            // Requests share their extensions with what is further out.
            if let Some(outer) = outer {
                response.request().extensions_mut().insert(outer);
            }
            if reply.is_empty() {
                return Ok(response.map_into_left_body());
            }
            let (request, response) = response.into_parts();
            Ok(ServiceResponse::new(request, replied(response, reply)))
        }
        Err(error) if reply.is_empty() => Err(error),
        Err(error) => {
            let response = replied(error.error_response(), reply);
            Err(InternalError::from_response(error, response.map_into_boxed_body()).into())
        }
    }
}

/// The response with what the exchange adds to it, or the error that takes its place.
fn replied<B: MessageBody>(
    response: HttpResponse<B>,
    mut reply: Reply,
) -> HttpResponse<EitherBody<B>> {
    let mut response = match reply.error.take() {
        Some(error) => {
            let mut replaced = HttpResponse::from_error(error).map_into_right_body();
            let is_replaced = |name: &HeaderName| REPLACED_FIELDS.contains(&name.as_str());
            for (name, value) in response.headers().iter().filter(|(name, _)| !is_replaced(name)) {
                replaced.headers_mut().append(name.clone(), value.clone());
            }
            replaced
        }
        None => response.map_into_left_body(),
    };
    add_headers(response.headers_mut(), reply);
    response
}

fn add_headers(headers: &mut HeaderMap, reply: Reply) {
    if reply.adds_vary(headers.get_all(VARY).map(HeaderValue::as_bytes)) {
        headers.append(VARY, HeaderValue::from_static("cookie"));
    }
    if let Some(cookie) = reply.set_cookie.and_then(|cookie| HeaderValue::try_from(cookie).ok()) {
        // Added: the handler's own cookies stay.
        headers.append(SET_COOKIE, cookie);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
}
