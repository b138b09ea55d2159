//! The layer for a group of routes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use super::future::rendered;
use super::head;
use crate::error::{Error, Result};
use crate::exchange::{ErrorResponse, SessionHandle, missing_layer};
use crate::guard::Guard;

const FIX: &str = "add `.layer(unsticky::tower::SessionLayer::new(sessions))` to the router, after \
                   the GuardLayer, which belongs inside";

/// The tower layer that puts a [`Guard`] around a group of routes, inside the
/// [`SessionLayer`](super::SessionLayer).
///
/// The inner service must be `Clone`, and its body `From<Bytes>`. The [`Error`] of a request that is turned
/// away is in the response's extensions.
///
/// ```
/// # #[cfg(all(feature = "axum", feature = "memory"))]
/// # fn example() -> Result<axum::Router, Box<dyn std::error::Error>> {
/// use axum::Router;
/// use axum::routing::get;
/// use unsticky::tower::{GuardLayer, SessionLayer};
/// use unsticky::{Guard, Next, Sessions};
///
/// let sessions =
///     Sessions::builder(unsticky::connect("memory:")?).sign_in_page("/sign-in").build()?;
/// let account = Router::new()
///     .route("/account", get(async || "yours alone"))
///     .route_layer(GuardLayer::new(Guard::signed_in()));
/// let app = Router::new()
///     .route("/sign-in", get(async |next: Next| format!("then to {}", next.or("/"))))
///     .merge(account)
///     .layer(SessionLayer::new(sessions));
/// # Ok(app)
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct GuardLayer {
    guard: Arc<Guard>,
}

impl GuardLayer {
    /// A layer of this guard.
    #[must_use]
    pub fn new(guard: Guard) -> Self {
        Self { guard: Arc::new(guard) }
    }
}

impl<S> Layer<S> for GuardLayer {
    type Service = GuardService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        GuardService { inner, guard: self.guard.clone() }
    }
}

/// The service that [`GuardLayer`] makes.
#[derive(Debug, Clone)]
pub struct GuardService<S> {
    inner: S,
    guard: Arc<Guard>,
}

/// The response future of [`GuardService`].
pub type GuardFuture<B, E> = Pin<Box<dyn Future<Output = Result<Response<B>, E>> + Send>>;

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for GuardService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone + Send + 'static,
    S::Future: Send,
    ReqBody: Send + 'static,
    ResBody: From<Bytes>,
{
    type Response = Response<ResBody>;
    type Error = S::Error;
    type Future = GuardFuture<ResBody, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let guard = self.guard.clone();
        // The one that is ready.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        Box::pin(async move {
            let handle = request.extensions().get::<SessionHandle>().cloned();
            let session = match handle {
                Some(handle) => handle.session().await,
                None => Err(missing_layer(FIX)),
            };
            let checked = session.and_then(|session| guard.check(session, &head::of(&request)));
            match checked {
                Ok(()) => inner.call(request).await,
                Err(error) => Ok(refused(error)),
            }
        })
    }
}

fn refused<B: From<Bytes>>(error: Error) -> Response<B> {
    let mut response = rendered(ErrorResponse::from(&error)).map(B::from);
    response.extensions_mut().insert(error);
    response
}
