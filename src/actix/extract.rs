//! Extractors and responses for actix-web.

use std::future::{Ready, ready};
use std::pin::Pin;

use actix_web::dev::Payload;
use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use actix_web::{FromRequest, HttpMessage as _, HttpRequest, HttpResponse, ResponseError};

use crate::error::{Error, Result};
use crate::exchange::{ErrorResponse, SessionHandle, missing_layer};
use crate::session::Session;
use crate::session::signed_in::{AuthenticatedWithin, SignInRejection, SignedIn};
use crate::settings::Sessions;

const FIX: &str = "add `.wrap(unsticky::actix::SessionMiddleware::new(sessions))` to the App or to \
                   the scope of the routes that use the session";

type Extracted<T, E = Error> = Pin<Box<dyn Future<Output = Result<T, E>>>>;

fn handle(request: &HttpRequest) -> Result<SessionHandle> {
    request.extensions().get::<SessionHandle>().cloned().ok_or_else(|| missing_layer(FIX))
}

/// The session before it is read; for several middlewares, see [`SessionHandle::of`].
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

/// The configuration of the innermost middleware.
impl FromRequest for Sessions {
    type Error = Error;
    type Future = Ready<Result<Self>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(handle(request).map(|handle| handle.sessions().clone()))
    }
}

impl FromRequest for SignedIn {
    type Error = SignInRejection;
    type Future = Extracted<Self, SignInRejection>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let handle = handle(request);
        Box::pin(async move { handle?.session().await?.try_into() })
    }
}

impl<const SECONDS: u64> FromRequest for AuthenticatedWithin<SECONDS> {
    type Error = SignInRejection;
    type Future = Extracted<Self, SignInRejection>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let handle = handle(request);
        Box::pin(async move { handle?.session().await?.try_into() })
    }
}

impl ResponseError for Error {
    fn status_code(&self) -> StatusCode {
        status_code(&self.into())
    }

    fn error_response(&self) -> HttpResponse {
        rendered(self.into())
    }
}

impl ResponseError for SignInRejection {
    fn status_code(&self) -> StatusCode {
        status_code(&self.into())
    }

    fn error_response(&self) -> HttpResponse {
        rendered(self.into())
    }
}

fn status_code(rendered: &ErrorResponse) -> StatusCode {
    StatusCode::from_u16(rendered.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn rendered(rendered: ErrorResponse) -> HttpResponse {
    let mut response = HttpResponse::build(status_code(&rendered));
    response.insert_header((CONTENT_TYPE, "text/plain; charset=utf-8"));
    response.insert_header((CACHE_CONTROL, "no-store"));
    if let Some(seconds) = rendered.retry_after {
        response.insert_header((RETRY_AFTER, seconds));
    }
    if let Some(location) = &rendered.location {
        response.insert_header((LOCATION, location.as_ref()));
    }
    response.body(rendered.body.into_owned())
}
