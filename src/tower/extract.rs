//! Extractors and responses for axum.

use axum_core::body::Body;
use axum_core::extract::FromRequestParts;
use axum_core::response::{IntoResponse, Response};
use http::request::Parts;

use super::future::rendered;
use crate::error::{Error, Result};
use crate::exchange::{SessionHandle, missing_layer};
use crate::session::Session;
use crate::session::signed_in::{AuthenticatedWithin, SignInRejection, SignedIn};
use crate::settings::Sessions;

const FIX: &str = "add `.layer(unsticky::tower::SessionLayer::new(sessions))` to the router, after \
                   the routes that use the session";

fn handle(parts: &Parts) -> Result<SessionHandle> {
    parts.extensions.get::<SessionHandle>().cloned().ok_or_else(|| missing_layer(FIX))
}

/// The session before it is read; for several layers, see [`SessionHandle::of`].
impl<S: Send + Sync> FromRequestParts<S> for SessionHandle {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        handle(parts)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Session {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        handle(parts)?.session().await
    }
}

/// The configuration of the innermost layer.
impl<S: Send + Sync> FromRequestParts<S> for Sessions {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        Ok(handle(parts)?.sessions().clone())
    }
}

impl<S: Send + Sync> FromRequestParts<S> for SignedIn {
    type Rejection = SignInRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, SignInRejection> {
        handle(parts)?.session().await?.try_into()
    }
}

impl<S: Send + Sync, const SECONDS: u64> FromRequestParts<S> for AuthenticatedWithin<SECONDS> {
    type Rejection = SignInRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, SignInRejection> {
        handle(parts)?.session().await?.try_into()
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = rendered((&self).into()).map(Body::from);
        response.extensions_mut().insert(self);
        response
    }
}

impl IntoResponse for SignInRejection {
    fn into_response(self) -> Response {
        match self {
            Self::Session(error) => error.into_response(),
            rejection => rendered((&rejection).into()).map(Body::from),
        }
    }
}
