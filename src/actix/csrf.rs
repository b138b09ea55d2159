//! The CSRF token for actix-web: extracted for pages, and verified in requests.

use std::pin::Pin;

use actix_web::dev::Payload;
use actix_web::http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue};
use actix_web::web::Bytes;
use actix_web::{FromRequest, HttpRequest};

use super::extract::Extracted;
use crate::error::Error;
use crate::session::Session;
use crate::session::csrf::{Carrier, Csrf, CsrfToken};

impl FromRequest for CsrfToken {
    type Error = Error;
    type Future = Extracted<Self>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let session = Session::from_request(request, payload);
        Box::pin(async move { session.await?.csrf_token().await })
    }
}

impl<E: FromRequest + 'static> FromRequest for Csrf<E> {
    type Error = actix_web::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Self::Error>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let session = Session::from_request(request, payload);
        let (request, mut payload) = (request.clone(), payload.take());
        Box::pin(async move {
            let session = session.await?;
            let carrier = carrier(request.headers());
            let mut form = Bytes::new();
            if carrier == Carrier::Form {
                form = Bytes::from_request(&request, &mut payload).await?;
                payload = Payload::from(form.clone());
            }
            session.verify_csrf(carrier, &form)?;
            E::from_request(&request, &mut payload).await.map(Self).map_err(Into::into)
        })
    }
}

fn carrier(headers: &HeaderMap) -> Carrier {
    Carrier::of(
        headers.get_all(CsrfToken::HEADER).map(HeaderValue::as_bytes),
        headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes),
        headers.contains_key(CONTENT_ENCODING),
    )
}
