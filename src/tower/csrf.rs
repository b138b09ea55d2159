//! The CSRF token for axum: extracted for pages, and verified in requests.

use axum_core::body::Body;
use axum_core::extract::{FromRequest, FromRequestParts, Request};
use axum_core::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue};

use crate::error::{Error, Result};
use crate::session::Session;
use crate::session::csrf::{Carrier, Csrf, CsrfToken};

impl<S: Send + Sync> FromRequestParts<S> for CsrfToken {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        Session::from_request_parts(parts, state).await?.csrf_token().await
    }
}

impl<S: Send + Sync, E: FromRequest<S>> FromRequest<S> for Csrf<E> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let (mut parts, mut body) = request.into_parts();
        let session = Session::from_request_parts(&mut parts, state).await;
        let session = session.map_err(Error::into_response)?;
        let carrier = carrier(&parts.headers);
        let mut form = Bytes::new();
        if carrier == Carrier::Form {
            let whole = Bytes::from_request(Request::from_parts(parts.clone(), body), state).await;
            form = whole.map_err(|rejection| rejection.into_response())?;
            body = Body::from(form.clone());
        }
        session.verify_csrf(carrier, &form).map_err(Error::into_response)?;
        let verified = E::from_request(Request::from_parts(parts, body), state).await;
        verified.map(Self).map_err(|rejection| rejection.into_response())
    }
}

fn carrier(headers: &HeaderMap) -> Carrier {
    Carrier::of(
        headers.get_all(CsrfToken::HEADER).into_iter().map(HeaderValue::as_bytes),
        headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes),
        headers.contains_key(CONTENT_ENCODING),
    )
}
