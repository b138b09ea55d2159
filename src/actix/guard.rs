//! The middleware that protects a group of routes with a guard.

use std::future::{Ready, ready};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{Service, ServiceRequest, ServiceResponse, Transform, forward_ready};
use actix_web::{HttpMessage as _, HttpResponse};

use super::head;
use crate::error::Result;
use crate::exchange::{SessionHandle, missing_layer};
use crate::guard::Guard;

const FIX: &str = "add `.wrap(unsticky::actix::SessionMiddleware::new(sessions))` to the App, or to the \
                   scope after its GuardMiddleware, so that the GuardMiddleware is inside";

/// The actix-web middleware that protects a group of routes with a [`Guard`]. Place this middleware inside
/// the [`SessionMiddleware`](super::SessionMiddleware).
///
/// If the guard refuses a request, the handler is not called, and the response's `error()` returns an
/// [`Error`](crate::Error).
///
/// ```
/// # #[cfg(all(feature = "actix", feature = "memory"))]
/// # #[actix_web::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use actix_web::http::StatusCode;
/// use actix_web::{App, test, web};
/// use unsticky::actix::{GuardMiddleware, SessionMiddleware};
/// use unsticky::{Guard, Next, Sessions};
///
/// let sessions =
///     Sessions::builder(unsticky::connect("memory:")?).sign_in_page("/sign-in").build()?;
/// let app = App::new()
///     // The middleware that is wrapped last is the outermost.
///     .wrap(GuardMiddleware::new(Guard::same_origin()))
///     .wrap(SessionMiddleware::new(sessions))
///     .route("/sign-in", web::get().to(async |next: Next| format!("then to {}", next.or("/"))))
///     .service(
///         web::scope("/account")
///             .wrap(GuardMiddleware::new(Guard::signed_in()))
///             .route("", web::get().to(async || "yours alone")),
///     );
///
/// let app = test::init_service(app).await;
/// let request = test::TestRequest::get().uri("/account").to_request();
/// let response = test::call_service(&app, request).await;
/// assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
/// # Ok(())
/// # }
/// # #[cfg(not(all(feature = "actix", feature = "memory")))]
/// # fn main() {}
/// ```
#[doc(alias("login_required", "require_login", "permission_required"))]
#[derive(Debug, Clone)]
pub struct GuardMiddleware {
    guard: Arc<Guard>,
}

impl GuardMiddleware {
    /// Creates a middleware that lets a request pass only if `guard` permits it.
    #[must_use]
    pub fn new(guard: Guard) -> Self {
        Self { guard: Arc::new(guard) }
    }
}

impl<S, B> Transform<S, ServiceRequest> for GuardMiddleware
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = actix_web::Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<EitherBody<B>>;
    type Error = actix_web::Error;
    type Transform = GuardService<S>;
    type InitError = ();
    type Future = Ready<Result<Self::Transform, Self::InitError>>;

    fn new_transform(&self, service: S) -> Self::Future {
        ready(Ok(GuardService { inner: Rc::new(service), guard: self.guard.clone() }))
    }
}

/// The service made by [`GuardMiddleware`].
#[derive(Debug)]
pub struct GuardService<S> {
    inner: Rc<S>,
    guard: Arc<Guard>,
}

impl<S, B> Service<ServiceRequest> for GuardService<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = actix_web::Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<EitherBody<B>>;
    type Error = actix_web::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>>>>;

    forward_ready!(inner);

    fn call(&self, request: ServiceRequest) -> Self::Future {
        let (inner, guard) = (self.inner.clone(), self.guard.clone());
        Box::pin(async move {
            match check(&guard, &request).await {
                Ok(()) => inner.call(request).await.map(ServiceResponse::map_into_left_body),
                // Returned as a response, not as an error, so that the middleware outside sees what the visitor gets.
                Err(error) => {
                    let response = HttpResponse::from_error(error).map_into_right_body();
                    // `into_response` would drop the error.
                    Ok(ServiceResponse::new(request.into_parts().0, response))
                }
            }
        })
    }
}

async fn check(guard: &Guard, request: &ServiceRequest) -> Result<()> {
    guard.check_head(&head::of(request.request()))?;
    if !guard.needs_session() {
        return Ok(());
    }
    let handle = request.extensions().get::<SessionHandle>().cloned();
    let session = handle.ok_or_else(|| missing_layer(FIX))?.session().await?;
    guard.check(session, &head::of(request.request()))
}
