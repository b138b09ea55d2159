//! Extractors and responses for actix-web.

use std::borrow::Cow;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;

use actix_web::body::BoxBody;
use actix_web::dev::Payload;
use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::{FromRequest, HttpMessage as _, HttpRequest, HttpResponse, ResponseError};

use super::head;
use crate::error::{Error, Result};
use crate::exchange::{ErrorResponse, RequestHead, SessionHandle, missing_layer};
use crate::head::local_path::Next;
use crate::head::request::Wants;
use crate::session::Session;
use crate::session::signed_in::{AuthenticatedWithin, Guarded, Maybe, SignedIn};
use crate::settings::Sessions;

const FIX: &str = "add `.wrap(unsticky::actix::SessionMiddleware::new(sessions))` to the App or to \
                   the scope of the routes that use the session";

pub(super) type Extracted<T> = Pin<Box<dyn Future<Output = Result<T>>>>;

fn handle(request: &HttpRequest) -> Result<SessionHandle> {
    request.extensions().get::<SessionHandle>().cloned().ok_or_else(|| missing_layer(FIX))
}

/// Gives access to the session without reading it. For nested middleware, see [`SessionHandle::of`].
impl FromRequest for SessionHandle {
    type Error = Error;
    type Future = Ready<Result<Self>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(handle(request))
    }
}

impl FromRequest for Session {
    type Error = Error;
    type Future = Extracted<Self>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let handle = handle(request);
        Box::pin(async move { handle?.session().await })
    }
}

/// Extracts the [`Sessions`] of the innermost middleware.
impl FromRequest for Sessions {
    type Error = Error;
    type Future = Ready<Result<Self>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(handle(request).map(|handle| handle.sessions().clone()))
    }
}

impl FromRequest for SignedIn {
    type Error = Error;
    type Future = Extracted<Self>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        extracted(request, Self::of)
    }
}

impl<const SECONDS: u64> FromRequest for AuthenticatedWithin<SECONDS> {
    type Error = Error;
    type Future = Extracted<Self>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        extracted(request, Self::of)
    }
}

impl<T: Guarded + 'static> FromRequest for Maybe<T> {
    type Error = Error;
    type Future = Extracted<Self>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        extracted(request, Self::of)
    }
}

impl FromRequest for Next {
    type Error = Infallible;
    type Future = Ready<Result<Self, Infallible>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Ok(Self::of(&head::of(request))))
    }
}

/// For handlers that serve both browsers and programs, such as the default service for unknown paths.
impl FromRequest for Wants {
    type Error = Infallible;
    type Future = Ready<Result<Self, Infallible>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Ok(head::of(request).wants()))
    }
}

/// Extracts a value that depends on the session and the head of a request.
fn extracted<T: 'static>(
    request: &HttpRequest,
    decide: fn(Session, &RequestHead<'_>) -> Result<T>,
) -> Extracted<T> {
    let (handle, request) = (handle(request), request.clone());
    Box::pin(async move { decide(handle?.session().await?, &head::of(&request)) })
}

impl ResponseError for Error {
    fn status_code(&self) -> StatusCode {
        status_code(self.status())
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = rendered(HttpResponse::new(StatusCode::OK), self.into());
        // The response keeps the error, even if the application's own error type produced the response.
        response.extensions_mut().insert(self.clone());
        response
    }
}

fn status_code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// Applies a rendered error to a response. The other parts of the response, such as its error, stay
/// unchanged.
pub(super) fn rendered(mut response: HttpResponse, answer: ErrorResponse) -> HttpResponse {
    *response.status_mut() = status_code(answer.status);
    response.headers_mut().clear();
    for (name, value) in answer.headers() {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().append(HeaderName::from_static(name), value);
        }
    }
    match answer.body {
        Cow::Borrowed(body) => response.set_body(BoxBody::new(body)),
        Cow::Owned(body) => response.set_body(BoxBody::new(body)),
    }
}
