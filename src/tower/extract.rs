//! Extractors and responses for axum.

use std::convert::Infallible;

use axum_core::body::Body;
use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
use http::request::Parts;

use super::future::rendered;
use super::head;
use crate::error::{Error, Result};
use crate::exchange::{ErrorResponse, SessionHandle, missing_layer};
use crate::head::local_path::Next;
use crate::head::request::Wants;
use crate::session::Session;
use crate::session::signed_in::{AuthenticatedWithin, Guarded, Maybe, SignedIn};
use crate::settings::Sessions;

const FIX: &str = "add `.layer(unsticky::tower::SessionLayer::new(sessions))` to the router, after \
                   the routes that use the session";

fn handle(parts: &Parts) -> Result<SessionHandle> {
    parts.extensions.get::<SessionHandle>().cloned().ok_or_else(|| missing_layer(FIX))
}

async fn session(parts: &Parts) -> Result<Session> {
    handle(parts)?.session().await
}

/// Gives access to the session without reading it. For nested layers, see [`SessionHandle::of`].
impl<S: Send + Sync> FromRequestParts<S> for SessionHandle {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        handle(parts)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Session {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        session(parts).await
    }
}

/// Extracts the [`Sessions`] of the innermost layer.
impl<S: Send + Sync> FromRequestParts<S> for Sessions {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        Ok(handle(parts)?.sessions().clone())
    }
}

impl<S: Send + Sync> FromRequestParts<S> for SignedIn {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        Self::of(session(parts).await?, &head::of_parts(parts))
    }
}

impl<S: Send + Sync, const SECONDS: u64> FromRequestParts<S> for AuthenticatedWithin<SECONDS> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        Self::of(session(parts).await?, &head::of_parts(parts))
    }
}

impl<S: Send + Sync, T: Guarded> FromRequestParts<S> for Maybe<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        Self::of(session(parts).await?, &head::of_parts(parts))
    }
}

/// The same as [`Maybe<SignedIn>`](Maybe): `None` if no user is signed in, and an error if the store failed.
impl<S: Send + Sync> OptionalFromRequestParts<S> for SignedIn {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Option<Self>> {
        let Maybe(user) = Maybe::<Self>::from_request_parts(parts, state).await?;
        Ok(user)
    }
}

/// The same as [`Maybe<AuthenticatedWithin>`](Maybe): `None` if no user is signed in or the last
/// authentication was too long ago, and an error if the store failed.
impl<S: Send + Sync, const SECONDS: u64> OptionalFromRequestParts<S>
    for AuthenticatedWithin<SECONDS>
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Option<Self>> {
        let Maybe(user) = Maybe::<Self>::from_request_parts(parts, state).await?;
        Ok(user)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Next {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&head::of_parts(parts)))
    }
}

/// For handlers that serve both browsers and programs, such as the fallback for unknown paths.
impl<S: Send + Sync> FromRequestParts<S> for Wants {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(head::of_parts(parts).wants())
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = rendered(ErrorResponse::from(&self)).map(Body::from);
        response.extensions_mut().insert(self);
        response
    }
}
