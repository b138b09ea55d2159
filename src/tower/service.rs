//! The service that gives requests their session.

use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{COOKIE, HeaderValue, ORIGIN};
use http::{Request, Response};
use tower_service::Service;

use super::future::ResponseFuture;
use super::head;
use crate::exchange::{ErrorRenderer, Exchange, SessionHandle};
use crate::settings::Sessions;

/// The service made by [`SessionLayer`](super::SessionLayer).
#[derive(Debug, Clone)]
pub struct SessionService<S> {
    inner: S,
    sessions: Sessions,
}

impl<S> SessionService<S> {
    pub(super) fn new(inner: S, sessions: Sessions) -> Self {
        Self { inner, sessions }
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for SessionService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: From<Bytes>,
{
    type Response = Response<ResBody>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let outer = request.extensions().get::<SessionHandle>().cloned();
        let renderer = ErrorRenderer::of(&self.sessions, || head::of(&request));
        let cookies = request.headers().get_all(COOKIE).into_iter().cloned();
        let mut exchange = Exchange::begin(&self.sessions, cookies, outer);
        let origin = request.headers().get(ORIGIN).map(HeaderValue::as_bytes);
        exchange.note_origin(origin, || head::of(&request));
        request.extensions_mut().insert(exchange.handle());
        ResponseFuture::new(self.inner.call(request), exchange, renderer)
    }
}
