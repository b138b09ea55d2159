//! The layer that protects a group of routes with a guard.

use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::future::rendered;
use super::head;
use crate::error::{Error, Result};
use crate::exchange::{ErrorResponse, SessionHandle, missing_layer};
use crate::guard::Guard;

const FIX: &str = "add `.layer(unsticky::tower::SessionLayer::new(sessions))` to the router, after \
                   the GuardLayer, so that the GuardLayer is inside";

/// The tower layer that protects a group of routes with a [`Guard`]. Place this layer inside the
/// [`SessionLayer`](super::SessionLayer).
///
/// The inner service must implement `Clone`, and its response body must implement `From<Bytes>`. If the guard
/// refuses a request, the inner service is not called, and the response's extensions contain the [`Error`].
///
/// ```
/// # #[cfg(all(feature = "axum", feature = "memory"))]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use axum::Router;
/// use axum::body::Body;
/// use axum::http::{Request, StatusCode};
/// use axum::routing::get;
/// use tower::ServiceExt as _;
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
///
/// // Programs get a status code, and browsers are sent to the sign-in page.
/// let request = Request::get("/account").body(Body::empty())?;
/// let response = app.clone().oneshot(request).await?;
/// assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
///
/// let request = Request::get("/account").header("accept", "text/html").body(Body::empty())?;
/// let response = app.oneshot(request).await?;
/// assert_eq!(response.status(), StatusCode::SEE_OTHER);
/// # Ok(())
/// # }
/// # #[cfg(not(all(feature = "axum", feature = "memory")))]
/// # fn main() {}
/// ```
#[doc(alias("login_required", "require_login", "permission_required"))]
#[derive(Debug, Clone)]
pub struct GuardLayer {
    guard: Arc<Guard>,
}

impl GuardLayer {
    /// Creates a layer that lets a request pass only if `guard` permits it.
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

/// The service made by [`GuardLayer`].
#[derive(Debug, Clone)]
pub struct GuardService<S> {
    inner: S,
    guard: Arc<Guard>,
}

pin_project! {
    /// The response future of [`GuardService`].
    #[must_use = "futures do nothing unless polled"]
    pub struct GuardFuture<F, B, E> {
        #[pin]
        state: State<F, B, E>,
    }
}

/// Reads and checks the request's session, and then calls the inner service.
type Checking<B, E> = Pin<Box<dyn Future<Output = Result<Response<B>, E>> + Send>>;

pin_project! {
    #[project = StateProjection]
    enum State<F, B, E> {
        Refused { #[pin] answer: Ready<Result<Response<B>, E>> },
        // Used if the guard needs no session, so that no future is boxed.
        Passing { #[pin] inner: F },
        Checking { checking: Checking<B, E> },
    }
}

impl<F, B, E> Future for GuardFuture<F, B, E>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProjection::Refused { answer } => answer.poll(cx),
            StateProjection::Passing { inner } => inner.poll(cx),
            StateProjection::Checking { checking } => checking.as_mut().poll(cx),
        }
    }
}

impl<F, B, E> std::fmt::Debug for GuardFuture<F, B, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuardFuture").finish_non_exhaustive()
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for GuardService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone + Send + 'static,
    S::Future: Send,
    ReqBody: Send + 'static,
    ResBody: From<Bytes>,
{
    type Response = Response<ResBody>;
    type Error = S::Error;
    type Future = GuardFuture<S::Future, ResBody, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        if let Err(error) = self.guard.check_head(&head::of(&request)) {
            return GuardFuture { state: State::Refused { answer: ready(Ok(refused(error))) } };
        }
        if !self.guard.needs_session() {
            return GuardFuture { state: State::Passing { inner: self.inner.call(request) } };
        }
        let guard = self.guard.clone();
        // Calls the service that was polled to readiness, and keeps its clone for the next request.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let checking = Box::pin(async move {
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
        });
        GuardFuture { state: State::Checking { checking } }
    }
}

fn refused<B: From<Bytes>>(error: Error) -> Response<B> {
    let mut response = rendered(ErrorResponse::from(&error)).map(B::from);
    response.extensions_mut().insert(error);
    response
}
